import { fileItemSchema, fileListQuerySchema, fileMoveSchema, fileQuerySchema, folderCreateSchema, itemOf, listOf } from '@thaw/protocol'
import { z } from 'zod'
import { listFolder, makeFolder, moveFile, statFile } from '../../control/sandboxes/files.ts'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['files']
const params = z.object({ id: z.string().min(1).max(64) })

/** What is asked about files; their content goes past the framework (gateway/sandbox-files.ts). */
export function sandboxFileRoutes(app: Routes, { sandboxes }: GatewayParts): void {
  const base = '/v1/sandboxes/:id/files'

  app.get(
    `${base}/list`,
    { schema: { summary: 'List a folder', tags, params, querystring: fileListQuerySchema, response: { 200: listOf(fileItemSchema) } } },
    async (request) => {
      using lease = await sandboxes.use(callerOf(request), request.params.id)
      const { path, depth, user } = request.query
      return { items: await listFolder(lease.agent, path, depth, user), next: null }
    },
  )

  app.get(
    `${base}/stat`,
    { schema: { summary: 'What is at a path', tags, params, querystring: fileQuerySchema, response: { 200: itemOf(fileItemSchema) } } },
    async (request) => {
      using lease = await sandboxes.use(callerOf(request), request.params.id)
      return { item: await statFile(lease.agent, request.query.path, request.query.user) }
    },
  )

  app.post(
    `${base}/move`,
    { schema: { summary: 'Move or rename', tags, params, body: fileMoveSchema, response: { 200: itemOf(fileItemSchema) } } },
    async (request) => {
      using lease = await sandboxes.use(callerOf(request), request.params.id)
      const { from, to, user } = request.body
      return { item: await moveFile(lease.agent, from, to, user) }
    },
  )

  app.post(
    `${base}/mkdir`,
    {
      schema: {
        summary: 'Make a folder and its parents',
        tags,
        params,
        body: folderCreateSchema,
        response: { 201: itemOf(fileItemSchema) },
      },
    },
    async (request, reply) => {
      using lease = await sandboxes.use(callerOf(request), request.params.id)
      return reply.status(201).send({ item: await makeFolder(lease.agent, request.body.path, request.body.user) })
    },
  )
}
