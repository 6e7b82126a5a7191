import type { ServerResponse } from 'node:http'
import {
  execRequestSchema,
  execResultSchema,
  executeRequestSchema,
  executeResultSchema,
  itemOf,
  listOf,
  maxStdinBytes,
  type RestoreParsed,
  type SandboxCreateParsed,
  type SandboxState,
  sandboxCreateSchema,
  sandboxFromSnapshotSchema,
  sandboxItemSchema,
  sandboxListQuerySchema,
  sandboxStates,
  sandboxStatsSchema,
  sandboxUpdateSchema,
  ThawError,
} from '@thaw/protocol'
import { z } from 'zod'
import { callerOf } from '../auth.ts'
import { answered, goneSignal } from '../gone.ts'
import { invalidRequest } from '../invalid.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['sandboxes']
const params = z.object({ id: z.string().min(1).max(64) })
/** stdin in base64, and what is around it. */
const bodyLimit = maxStdinBytes * 2 + 1024 * 1024

/** `/v1/sandboxes`, and `/v1/instances`, another name for it. */
export function sandboxRoutes(app: Routes, parts: GatewayParts, { stallMs }: { stallMs: number }): void {
  for (const base of ['/v1/sandboxes', '/v1/instances']) lifeRoutes(app, parts, base, stallMs)
  executeRoute(app, parts, stallMs)
}

function lifeRoutes(app: Routes, { sandboxes, snapshots }: GatewayParts, base: string, stallMs: number): void {
  const item = { 200: itemOf(sandboxItemSchema) }

  app.post(
    base,
    {
      schema: {
        summary: 'Create a sandbox',
        description:
          'With a name: 200 and the sandbox that has it already, where there is one. With a snapshot_id it goes on from there: image, driver, resources and network are those of the snapshot and cannot be given.',
        tags,
        body: sandboxCreateSchema,
        response: { ...item, 201: itemOf(sandboxItemSchema) },
      },
      validatorCompiler: ({ schema, httpPart }) => createValidator(schema as unknown as z.ZodType, httpPart),
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const body = request.body as SandboxCreateParsed | (RestoreParsed & { snapshot_id: string })
      const { item, created } = isFromSnapshot(body)
        ? await snapshots.restore(caller, body.snapshot_id, body)
        : await sandboxes.create(caller, body)
      return reply.status(created ? 201 : 200).send({ item })
    },
  )

  app.get(
    base,
    { schema: { summary: 'List sandboxes', tags, querystring: sandboxListQuerySchema, response: { 200: listOf(sandboxItemSchema) } } },
    async (request) => {
      const { limit, cursor, state, metadata, ...rest } = request.query
      const items = await sandboxes.list(callerOf(request), {
        ...rest,
        limit: limit + 1,
        before: cursor,
        states: state === undefined ? undefined : parseStates(state),
        metadata: metadata === undefined ? undefined : Object.fromEntries(new URLSearchParams(metadata)),
      })
      const page = items.slice(0, limit)
      return { items: page, next: items.length > limit ? (page.at(-1)?.id ?? null) : null }
    },
  )

  app.get(`${base}/:id`, { schema: { summary: 'Get a sandbox, by id or name', tags, params, response: item } }, async (request) => ({
    item: await sandboxes.get(callerOf(request), request.params.id),
  }))

  app.patch(
    `${base}/:id`,
    { schema: { summary: 'Change ports, timeouts or metadata', tags, params, body: sandboxUpdateSchema, response: item } },
    async (request) => ({ item: await sandboxes.update(callerOf(request), request.params.id, request.body) }),
  )

  app.delete(
    `${base}/:id`,
    { schema: { summary: 'End a sandbox and forget it', tags, params, response: { 204: z.null() } } },
    async (request, reply) => {
      await sandboxes.delete(callerOf(request), request.params.id)
      return reply.status(204).send(null)
    },
  )

  const actions = {
    pause: { summary: 'Stop the processes of a sandbox where they are', run: sandboxes.pause },
    hibernate: { summary: 'Put the memory of a sandbox on disk, and end its processes; the next call wakes it', run: sandboxes.hibernate },
    resume: { summary: 'Let a sandbox go on', run: sandboxes.resume },
    stop: { summary: 'End a sandbox and keep its record', run: sandboxes.stop },
  }
  for (const [name, { summary, run }] of Object.entries(actions)) {
    app.post(`${base}/:id/${name}`, { schema: { summary, tags, params, response: item } }, async (request) => ({
      item: await run.call(sandboxes, callerOf(request), request.params.id),
    }))
  }

  app.post(
    `${base}/:id/exec`,
    {
      bodyLimit,
      schema: { summary: 'Run a command in a sandbox', tags, params, body: execRequestSchema, response: { 200: execResultSchema } },
    },
    async (request, reply) => {
      const result = await sandboxes.exec(callerOf(request), request.params.id, request.body, callerAt(reply.raw))
      reply.raw.setTimeout(stallMs)
      return result
    },
  )

  app.get(
    `${base}/:id/stats`,
    { schema: { summary: 'What a sandbox uses', tags, params, response: { 200: itemOf(sandboxStatsSchema) } } },
    async (request) => ({ item: await sandboxes.stats(callerOf(request), request.params.id) }),
  )
}

function executeRoute(app: Routes, { executor }: GatewayParts, stallMs: number): void {
  app.post(
    '/v1/execute',
    { bodyLimit, schema: { summary: 'Run a command, wherever', tags, body: executeRequestSchema, response: { 200: executeResultSchema } } },
    async (request, reply) => {
      const outcome = await executor.execute(callerOf(request), request.body, callerAt(reply.raw))
      reply.raw.setTimeout(stallMs)
      return { request_id: request.id, ...outcome }
    },
  )
}

/** Large answers stay in memory until the client has them: one that takes nothing for `stallMs` loses its connection. */
function callerAt(response: ServerResponse) {
  return { signal: goneSignal(response), answered: answered(response) }
}

function parseStates(text: string): SandboxState[] {
  return text.split(',').map((state) => {
    if ((sandboxStates as readonly string[]).includes(state)) return state as SandboxState
    throw new ThawError('invalid_request', `There is no state ${state}.`, { fix: `Use ${sandboxStates.join(', ')}.` })
  })
}

function isFromSnapshot(
  body: SandboxCreateParsed | (RestoreParsed & { snapshot_id: string }),
): body is RestoreParsed & { snapshot_id: string } {
  return typeof body.snapshot_id === 'string'
}

/** What starts from a snapshot has fewer fields of its own, and no defaults: whatever is left out stays as it was. */
function createValidator(schema: z.ZodType, httpPart: string | undefined): (data: unknown) => { value: unknown } | { error: Error } {
  return (data) => {
    const fromSnapshot = httpPart === 'body' && typeof data === 'object' && data !== null && 'snapshot_id' in data
    const parsed = (fromSnapshot ? sandboxFromSnapshotSchema : schema).safeParse(data)
    return parsed.success ? { value: parsed.data } : { error: invalidRequest(parsed.error) }
  }
}
