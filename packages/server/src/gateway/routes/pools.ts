import { itemOf, listOf, poolItemSchema, poolUpdateSchema, prewarmSchema } from '@thaw/protocol'
import { z } from 'zod'
import { adminOf, callerOf } from '../auth.ts'
import { goneSignal } from '../gone.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['pools']

export function poolRoutes(app: Routes, { pools }: GatewayParts): void {
  app.get(
    '/v1/pools',
    { schema: { summary: 'List pools of started sandboxes', tags, response: { 200: listOf(poolItemSchema) } } },
    async (request) => ({
      items: pools.list(callerOf(request)),
      next: null,
    }),
  )

  app.put(
    '/v1/pools/:image',
    {
      schema: {
        summary: 'Fix the size of a pool, or let it follow demand',
        tags,
        params: z.object({ image: z.string().min(1).max(512) }),
        body: poolUpdateSchema,
        response: { 200: itemOf(poolItemSchema) },
      },
    },
    async (request, reply) => {
      adminOf(request)
      const { size, ...kind } = request.body
      return { item: await pools.configure({ image: request.params.image, ...kind }, size, goneSignal(reply.raw)) }
    },
  )

  app.post(
    '/v1/prewarm',
    {
      schema: {
        summary: 'Start sandboxes ahead of a burst; answers once they wait',
        tags,
        body: prewarmSchema,
        response: { 200: itemOf(poolItemSchema) },
      },
    },
    async (request, reply) => {
      adminOf(request)
      const { count, ...kind } = request.body
      return { item: await pools.prewarm(kind, count, goneSignal(reply.raw)) }
    },
  )
}
