import { imageCreateSchema, imageItemSchema, itemOf, listOf, pruneResultSchema, toThawError } from '@thaw/protocol'
import { z } from 'zod'
import { adminOf, callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['images']

export function imageRoutes(app: Routes, { images }: GatewayParts): void {
  app.get('/v1/images', { schema: { summary: 'List images', tags, response: { 200: listOf(imageItemSchema) } } }, async (request) => ({
    items: await images.list(callerOf(request)),
    next: null,
  }))

  app.post(
    '/v1/images',
    {
      schema: {
        summary: 'Build or pull an image',
        description: 'With progress=1 the answer is application/x-ndjson: {"progress": text} lines, then one {"item": …} or {"error": …}.',
        tags,
        body: imageCreateSchema,
        querystring: z.strictObject({ progress: z.enum(['0', '1']).default('0') }),
        response: { 201: itemOf(imageItemSchema) },
      },
    },
    async (request, reply) => {
      const gone = new AbortController()
      reply.raw.once('close', () => gone.abort())
      if (request.query.progress === '0')
        return reply.status(201).send({ item: await images.ensure(request.body.ref, () => undefined, gone.signal) })
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'application/x-ndjson' })
      const line = (value: object) => reply.raw.write(`${JSON.stringify(value)}\n`)
      try {
        line({ item: await images.ensure(request.body.ref, (progress) => line({ progress }), gone.signal) })
      } catch (error) {
        line(toThawError(error).toBody(request.id))
      }
      reply.raw.end()
    },
  )

  app.delete(
    '/v1/images',
    {
      schema: {
        summary: 'Remove an image',
        tags,
        querystring: z.strictObject({ ref: z.string().min(1).max(512) }),
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      adminOf(request)
      await images.remove(request.query.ref)
      return reply.status(204).send(null)
    },
  )

  app.post(
    '/v1/images/prune',
    { schema: { summary: 'Remove images that nothing uses', tags, response: { 200: itemOf(pruneResultSchema) } } },
    async (request) => {
      adminOf(request)
      return { item: await images.prune(0) }
    },
  )
}
