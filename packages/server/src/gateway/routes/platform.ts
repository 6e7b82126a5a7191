import { infoSchema, itemOf, ThawError } from '@thaw/protocol'
import { z } from 'zod'
import { adminOf, callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

export function platformRoutes(app: Routes, { platform, metrics }: GatewayParts): void {
  const status = z.object({ status: z.string() })
  app.get('/health', { schema: { summary: 'The process is alive', tags: ['platform'], response: { 200: status } } }, async () => ({
    status: 'ok',
  }))

  app.get('/ready', { schema: { summary: 'The server takes invocations', tags: ['platform'], response: { 200: status } } }, async () => {
    if (!platform.ready) throw new ThawError('shutting_down')
    return { status: 'ready' }
  })

  app.get('/metrics', { schema: { summary: 'Metrics for Prometheus', tags: ['platform'] } }, async (request, reply) => {
    adminOf(request)
    const { contentType, text } = await metrics.render()
    return reply.type(contentType).send(text)
  })

  app.get(
    '/v1/info',
    { schema: { summary: 'Version, drivers, limits', tags: ['platform'], response: { 200: itemOf(infoSchema) } } },
    async (request) => ({
      item: await platform.info(callerOf(request)),
    }),
  )
}
