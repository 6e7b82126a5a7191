import { itemOf, listOf, secretCreateSchema, secretItemSchema, secretNameSchema, secretUpdateSchema } from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const params = z.object({ name: secretNameSchema })
const tags = ['secrets']

export function secretRoutes(app: Routes, { secrets }: GatewayParts): void {
  app.post(
    '/v1/secrets',
    { schema: { summary: 'Create a secret', tags, body: secretCreateSchema, response: { 201: itemOf(secretItemSchema) } } },
    async (request, reply) =>
      reply.status(201).send({ item: await secrets.create(callerOf(request), request.body.name, request.body.value) }),
  )

  app.get(
    '/v1/secrets',
    { schema: { summary: 'List secrets, without their values', tags, response: { 200: listOf(secretItemSchema) } } },
    async (request) => ({ items: await secrets.list(callerOf(request)), next: null }),
  )

  app.get(
    '/v1/secrets/:name',
    { schema: { summary: 'Get a secret, without its value', tags, params, response: { 200: itemOf(secretItemSchema) } } },
    async (request) => ({ item: await secrets.get(callerOf(request), request.params.name) }),
  )

  app.put(
    '/v1/secrets/:name',
    {
      schema: {
        summary: 'Give a secret another value',
        description: 'Instances that start from then on see it; those that run keep the old one until they end.',
        tags,
        params,
        body: secretUpdateSchema,
        response: { 200: itemOf(secretItemSchema) },
      },
    },
    async (request) => ({ item: await secrets.set(callerOf(request), request.params.name, request.body.value) }),
  )

  app.delete(
    '/v1/secrets/:name',
    { schema: { summary: 'Delete a secret that no function uses', tags, params, response: { 204: z.null() } } },
    async (request, reply) => {
      await secrets.delete(callerOf(request), request.params.name)
      return reply.status(204).send(null)
    },
  )
}
