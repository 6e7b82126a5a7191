import { Readable } from 'node:stream'
import {
  forkResultSchema,
  forkSchema,
  itemOf,
  listOf,
  pageQuerySchema,
  restoreSchema,
  sandboxItemSchema,
  sandboxTreeSchema,
  snapshotCreateSchema,
  snapshotItemSchema,
  ThawError,
} from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['snapshots']
const archiveTypes = ['application/zstd', 'application/octet-stream']
const params = z.object({ id: z.string().min(1).max(64) })

export function snapshotRoutes(app: Routes, parts: GatewayParts): void {
  for (const base of ['/v1/sandboxes', '/v1/instances']) takingRoutes(app, parts, base)
  keepingRoutes(app, parts)
  // Apart from the others, which take no such body.
  app.register(async (scope) => transferRoutes(scope as unknown as Routes, parts))
}

function takingRoutes(app: Routes, { snapshots }: GatewayParts, base: string): void {
  app.post(
    `${base}/:id/snapshot`,
    {
      schema: {
        summary: 'Keep a sandbox as it is now; it goes on',
        tags,
        params,
        body: snapshotCreateSchema,
        response: { 201: itemOf(snapshotItemSchema) },
      },
    },
    async (request, reply) => reply.status(201).send({ item: await snapshots.take(callerOf(request), request.params.id, request.body) }),
  )

  app.post(
    `${base}/:id/fork`,
    {
      schema: {
        summary: 'New sandboxes that go on from where this one is',
        description: 'All of them, or none. The parent goes on as well.',
        tags,
        params,
        body: forkSchema,
        response: { 201: forkResultSchema },
      },
    },
    async (request, reply) => reply.status(201).send(await snapshots.fork(callerOf(request), request.params.id, request.body)),
  )

  app.get(
    `${base}/:id/tree`,
    { schema: { summary: 'What a sandbox was forked from, and what from it', tags, params, response: { 200: sandboxTreeSchema } } },
    async (request) => snapshots.tree(callerOf(request), request.params.id),
  )
}

function keepingRoutes(app: Routes, { snapshots }: GatewayParts): void {
  app.get(
    '/v1/snapshots',
    {
      schema: {
        summary: 'List snapshots',
        tags,
        querystring: pageQuerySchema.extend({ sandbox_id: z.string().max(64).optional() }),
        response: { 200: listOf(snapshotItemSchema) },
      },
    },
    async (request) => {
      const { limit, cursor, sandbox_id } = request.query
      const items = await snapshots.list(callerOf(request), { sandbox_id, before: cursor, limit: limit + 1 })
      const page = items.slice(0, limit)
      return { items: page, next: items.length > limit ? (page.at(-1)?.id ?? null) : null }
    },
  )

  app.get(
    '/v1/snapshots/:id',
    { schema: { summary: 'Get a snapshot', tags, params, response: { 200: itemOf(snapshotItemSchema) } } },
    async (request) => ({ item: await snapshots.get(callerOf(request), request.params.id) }),
  )

  app.delete(
    '/v1/snapshots/:id',
    { schema: { summary: 'Delete a snapshot; sandboxes that came from it go on', tags, params, response: { 204: z.null() } } },
    async (request, reply) => {
      await snapshots.delete(callerOf(request), request.params.id)
      return reply.status(204).send(null)
    },
  )

  app.post(
    '/v1/snapshots/:id/restore',
    {
      schema: {
        summary: 'A new sandbox that goes on from a snapshot',
        tags,
        params,
        body: restoreSchema,
        response: { 200: itemOf(sandboxItemSchema), 201: itemOf(sandboxItemSchema) },
      },
    },
    async (request, reply) => {
      const { item, created } = await snapshots.restore(callerOf(request), request.params.id, request.body)
      return reply.status(created ? 201 : 200).send({ item })
    },
  )
}

function transferRoutes(app: Routes, { snapshots }: GatewayParts): void {
  app.addContentTypeParser(archiveTypes, (_request, payload, done) => done(null, payload))

  app.get(
    '/v1/snapshots/:id/export',
    {
      schema: {
        summary: 'A snapshot as one file',
        description: 'A tar archive compressed by zstd. It holds the memory of the sandbox, and all secrets that are in it.',
        tags,
        params,
      },
    },
    async (request, reply) => {
      const archive = await snapshots.export(callerOf(request), request.params.id)
      return reply
        .header('content-type', 'application/zstd')
        .header('content-disposition', `attachment; filename="${request.params.id}.tar.zst"`)
        .send(archive)
    },
  )

  app.post(
    '/v1/snapshots/import',
    {
      schema: {
        summary: 'Take in a snapshot that was exported',
        description: 'For admins: what goes on in a sandbox of it is decided by whoever made the file.',
        tags,
        consumes: archiveTypes,
        querystring: z.strictObject({ name: z.string().min(1).max(128).optional() }),
        response: { 201: itemOf(snapshotItemSchema) },
      },
    },
    async (request, reply) => {
      if (!(request.body instanceof Readable)) throw new ThawError('unsupported_media_type', `Send one of ${archiveTypes.join(', ')}.`)
      return reply.status(201).send({ item: await snapshots.import(callerOf(request), request.body, request.query.name) })
    },
  )
}
