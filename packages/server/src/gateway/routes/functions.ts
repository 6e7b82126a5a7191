import {
  deployQuerySchema,
  type FunctionConfig,
  functionConfigSchema,
  functionCreateSchema,
  functionItemSchema,
  functionNameSchema,
  functionUpdateSchema,
  itemOf,
  listOf,
  logEntrySchema,
  logQuerySchema,
  pageQuerySchema,
  rollbackSchema,
  ThawError,
  versionItemSchema,
} from '@thaw/protocol'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import type { Caller } from '../../control/caller.ts'
import type { CodeInput, DeployInput } from '../../control/functions.ts'
import { callerOf } from '../auth.ts'
import { answerOnce } from '../idempotency.ts'
import { invalidRequest } from '../invalid.ts'
import type { GatewayOptions, GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'
import { parseStrictJson } from '../strict-json.ts'

const params = z.object({ name: functionNameSchema })
const versionParams = params.extend({ version: z.coerce.number().int().min(1) })
const tags = ['functions']

export function functionRoutes(app: Routes, parts: GatewayParts, options: GatewayOptions): void {
  const { functions, invocations } = parts
  // Base64 makes four characters of three bytes.
  const bodyLimit = Math.ceil(options.maxArchiveBytes * 1.34) + 1024 * 1024

  app.post(
    '/v1/functions',
    {
      bodyLimit,
      schema: {
        summary: 'Create a function',
        tags,
        querystring: deployQuerySchema,
        body: functionCreateSchema,
        response: { 201: itemOf(functionItemSchema) },
      },
      validatorCompiler: ({ schema, httpPart }) => validateUnlessMultipart(schema as unknown as z.ZodType, httpPart),
    },
    async (request, reply) => {
      const { name, input } = await readDeploy(request, functionConfigSchema.extend({ name: functionNameSchema }))
      const wait = request.query.wait === 'true'
      return answerOnce(
        request,
        reply,
        parts.idempotency,
        () => [JSON.stringify({ name, config: input.config }), ...Object.entries(input.code).flat()],
        async (token) => ({ status: 201, body: { item: await functions.create(callerOf(request), name ?? '', input, wait, token) } }),
      )
    },
  )

  app.get(
    '/v1/functions',
    { schema: { summary: 'List functions', tags, querystring: pageQuerySchema, response: { 200: listOf(functionItemSchema) } } },
    (request) => Promise.resolve(functions.list(callerOf(request), { after: request.query.cursor, limit: request.query.limit })),
  )

  app.get(
    '/v1/functions/:name',
    { schema: { summary: 'Get a function', tags, params, response: { 200: itemOf(functionItemSchema) } } },
    async (request) => ({
      item: functions.get(callerOf(request), request.params.name),
    }),
  )

  app.put(
    '/v1/functions/:name',
    {
      bodyLimit,
      schema: {
        summary: 'Make a new version of a function',
        tags,
        params,
        querystring: deployQuerySchema,
        body: functionUpdateSchema,
        response: { 200: itemOf(functionItemSchema) },
      },
      validatorCompiler: ({ schema, httpPart }) => validateUnlessMultipart(schema as unknown as z.ZodType, httpPart),
    },
    async (request) => {
      const { input } = await readDeploy(request, functionConfigSchema)
      return { item: await functions.update(callerOf(request), request.params.name, input, request.query.wait === 'true') }
    },
  )

  app.delete(
    '/v1/functions/:name',
    { schema: { summary: 'Delete a function and all its versions', tags, params, response: { 204: z.null() } } },
    async (request, reply) => {
      await functions.delete(callerOf(request), request.params.name)
      return reply.status(204).send(null)
    },
  )

  app.get(
    '/v1/functions/:name/versions',
    { schema: { summary: 'List versions, newest first', tags, params, response: { 200: listOf(versionItemSchema) } } },
    async (request) => ({
      items: await functions.versions(callerOf(request), request.params.name),
      next: null,
    }),
  )

  app.get(
    '/v1/functions/:name/versions/:version',
    { schema: { summary: 'Get a version', tags, params: versionParams, response: { 200: itemOf(versionItemSchema) } } },
    async (request) => ({
      item: await functions.version(callerOf(request), request.params.name, request.params.version),
    }),
  )

  app.get(
    '/v1/functions/:name/versions/:version/build-log',
    {
      schema: {
        summary: 'The log of a build; follow=1 until it ends',
        tags,
        params: versionParams,
        querystring: z.strictObject({ follow: z.enum(['0', '1']).default('0') }),
      },
    },
    async (request, reply) => {
      const { text, running } = await functions.buildLog(callerOf(request), request.params.name, request.params.version)
      if (running === undefined || request.query.follow === '0') return reply.type('text/plain; charset=utf-8').send(text)
      reply.hijack()
      reply.raw.writeHead(200, { 'content-type': 'text/plain; charset=utf-8' })
      reply.raw.flushHeaders()
      const stop = running.follow(
        (more) => reply.raw.write(more),
        () => reply.raw.end(),
      )
      reply.raw.once('close', stop)
    },
  )

  app.post(
    '/v1/functions/:name/rollback',
    {
      schema: {
        summary: 'Make an earlier version the active one',
        tags,
        params,
        body: rollbackSchema.optional(),
        response: { 200: itemOf(functionItemSchema) },
      },
    },
    async (request) => ({ item: await functions.rollback(callerOf(request), request.params.name, request.body?.version) }),
  )

  app.get(
    '/v1/functions/:name/logs',
    {
      schema: {
        summary: 'What a function printed',
        description: 'With follow=1 the answer is text/event-stream: the last `limit` entries, then each new one.',
        tags,
        params,
        querystring: logQuerySchema,
        response: { 200: listOf(logEntrySchema) },
      },
    },
    async (request, reply) => {
      const caller = callerOf(request)
      const { name } = request.params
      functions.get(caller, name)
      if (request.query.follow === '0') return { items: await invocations.logsOfFunction(caller, name, request.query.limit), next: null }
      return followLogs(reply, parts, caller, name, request.query.limit)
    },
  )
}

/** Follows before it reads what is there, so that no line falls between the two. */
async function followLogs(reply: FastifyReply, { invocations }: GatewayParts, caller: Caller, name: string, limit: number): Promise<void> {
  const send = (entry: object) => reply.raw.write(`data: ${JSON.stringify(entry)}\n\n`)
  const early: object[] = []
  let live = false
  const stop = invocations.followLogs(caller, name, (entry) => {
    if (!live) {
      early.push(entry)
      return
    }
    send(entry)
    // A reader that does not keep up is let go rather than buffered for.
    if (reply.raw.writableLength > 8 * 1024 * 1024) reply.raw.destroy()
  })
  reply.raw.once('close', stop)
  const past = await invocations.logsOfFunction(caller, name, limit)
  reply.hijack()
  reply.raw.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
  reply.raw.flushHeaders()
  const known = new Set(past.map((entry) => JSON.stringify(entry)))
  for (const entry of past) send(entry)
  for (const entry of early) if (!known.has(JSON.stringify(entry))) send(entry)
  live = true
}

/** A multipart body has no parsed form before its handler reads it; `readDeploy` validates it then. */
function validateUnlessMultipart(
  schema: z.ZodType,
  httpPart: string | undefined,
): (data: unknown) => { value: unknown } | { error: Error } {
  return (data) => {
    if (httpPart === 'body' && (data === undefined || data === null)) return { value: undefined }
    const parsed = schema.safeParse(data)
    return parsed.success ? { value: parsed.data } : { error: invalidRequest(parsed.error) }
  }
}

/** The configuration and the code, from JSON or from multipart/form-data with a field `config` and a file `archive`. */
async function readDeploy(
  request: FastifyRequest,
  multipartSchema: z.ZodType<FunctionConfig & { name?: string }>,
): Promise<{ name: string | undefined; input: DeployInput }> {
  if (!request.isMultipart()) {
    if (request.body === undefined || request.body === null) throw new ThawError('invalid_request', 'The request has no body.')
    const { code, name, ...config } = request.body as z.output<typeof functionUpdateSchema> & { name?: string }
    return { name, input: { config, code: decodeCode(code) } }
  }
  let archive: Buffer | undefined
  let config: unknown
  for await (const part of request.parts()) {
    if (part.type === 'file' && part.fieldname === 'archive') archive = await part.toBuffer()
    else if (part.type === 'field' && part.fieldname === 'config') config = parseStrictJson(String(part.value))
    else
      throw new ThawError(
        'invalid_request',
        `multipart/form-data takes a field "config" and a file "archive", not ${JSON.stringify(part.fieldname)}.`,
      )
  }
  if (archive === undefined || config === undefined)
    throw new ThawError('invalid_request', 'multipart/form-data needs a field "config" and a file "archive".')
  const parsed = multipartSchema.safeParse(config)
  if (!parsed.success) throw invalidRequest(parsed.error)
  const { name, ...rest } = parsed.data
  return { name, input: { config: rest, code: { archive } } }
}

function decodeCode(code: z.output<typeof functionUpdateSchema>['code']): CodeInput {
  if (code.inline !== undefined) return { inline: Buffer.from(code.inline, 'base64') }
  if (code.archive !== undefined) return { archive: Buffer.from(code.archive, 'base64') }
  return { image: code.image ?? '' }
}
