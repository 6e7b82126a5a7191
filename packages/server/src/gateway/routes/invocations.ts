import { invocationItemSchema, invocationListQuerySchema, itemOf, listOf, logEntrySchema, logQuerySchema } from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const params = z.object({ id: z.string().max(64) })
const tags = ['invocations']

export function invocationRoutes(app: Routes, { invocations }: GatewayParts): void {
  app.get(
    '/v1/invocations',
    {
      schema: {
        summary: 'List invocations, newest first',
        tags,
        querystring: invocationListQuerySchema,
        response: { 200: listOf(invocationItemSchema) },
      },
    },
    (request) => invocations.list(callerOf(request), request.query),
  )

  app.get(
    '/v1/invocations/:id',
    { schema: { summary: 'Get an invocation', tags, params, response: { 200: itemOf(invocationItemSchema) } } },
    async (request) => ({
      item: await invocations.get(callerOf(request), request.params.id),
    }),
  )

  app.get(
    '/v1/invocations/:id/logs',
    {
      schema: {
        summary: 'What an invocation printed',
        tags,
        params,
        querystring: logQuerySchema.omit({ follow: true }),
        response: { 200: listOf(logEntrySchema) },
      },
    },
    async (request) => ({ items: await invocations.logs(callerOf(request), request.params.id, request.query.limit), next: null }),
  )

  app.post(
    '/v1/invocations/:id/cancel',
    { schema: { summary: 'End a running invocation', tags, params, response: { 200: itemOf(invocationItemSchema) } } },
    async (request) => ({ item: await invocations.cancel(callerOf(request), request.params.id) }),
  )
}
