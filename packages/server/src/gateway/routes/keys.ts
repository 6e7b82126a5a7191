import { createdKeyItemSchema, itemOf, keyCreateSchema, keyItemSchema, listOf } from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['api-keys']

export function keyRoutes(app: Routes, { keys }: GatewayParts): void {
  app.post(
    '/v1/api-keys',
    {
      schema: {
        summary: 'Make an API key; it is shown this once',
        tags,
        body: keyCreateSchema,
        response: { 201: itemOf(createdKeyItemSchema) },
      },
    },
    async (request, reply) => reply.status(201).send({ item: await keys.create(callerOf(request), request.body) }),
  )

  app.get(
    '/v1/api-keys',
    { schema: { summary: 'List API keys, without the keys themselves', tags, response: { 200: listOf(keyItemSchema) } } },
    async (request) => ({ items: keys.list(callerOf(request)), next: null }),
  )

  app.delete(
    '/v1/api-keys/:id',
    {
      schema: {
        summary: 'Revoke an API key',
        description: 'Requests with it are refused from then on, and what is open with it is closed.',
        tags,
        params: z.object({ id: z.string().max(64) }),
        response: { 204: z.null() },
      },
    },
    async (request, reply) => {
      await keys.revoke(callerOf(request), request.params.id)
      return reply.status(204).send(null)
    },
  )
}
