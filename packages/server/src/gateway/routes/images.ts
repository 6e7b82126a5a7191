import { Readable } from 'node:stream'
import {
  type ImageItem,
  imageCreateSchema,
  imageItemSchema,
  itemOf,
  listOf,
  pruneResultSchema,
  ThawError,
  toThawError,
} from '@thaw/protocol'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { z } from 'zod'
import { adminOf, callerOf } from '../auth.ts'
import type { GatewayParts } from '../parts.ts'
import type { Routes } from '../server.ts'

const tags = ['images']
const archiveTypes = ['application/x-tar', 'application/gzip', 'application/octet-stream']

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
      const caller = callerOf(request)
      const { ref } = request.body
      return report(request, reply, request.query.progress === '1', (onProgress, signal) => images.ensure(caller, ref, onProgress, signal))
    },
  )

  // Apart from the others, which take no such body.
  app.register(async (scope) => buildRoute(scope as unknown as Routes, images))

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

function buildRoute(app: Routes, images: GatewayParts['images']): void {
  app.addContentTypeParser(archiveTypes, (_request, payload, done) => done(null, payload))
  app.post(
    '/v1/images/build',
    {
      schema: {
        summary: 'Build an image from a Dockerfile',
        description:
          'The body is a tar or tar.gz of the folder with the Dockerfile. With progress=1 the answer is application/x-ndjson: {"progress": text} lines, then one {"item": …} or {"error": …}.',
        tags,
        consumes: archiveTypes,
        querystring: z.strictObject({
          ref: z.string().min(1).max(512).describe('what the image is to be called'),
          dockerfile: z
            .string()
            .min(1)
            .max(512)
            .regex(/^[^\0]*$/)
            .default('Dockerfile')
            .describe('path of the Dockerfile in the folder'),
          progress: z.enum(['0', '1']).default('0'),
        }),
        response: { 201: itemOf(imageItemSchema) },
      },
    },
    async (request, reply) => {
      // Its name is one for all tenants, and its steps run on the engine's host.
      adminOf(request)
      if (!(request.body instanceof Readable)) throw new ThawError('unsupported_media_type', `Send one of ${archiveTypes.join(', ')}.`)
      const { ref, dockerfile, progress } = request.query
      const body = request.body
      return report(request, reply, progress === '1', (onProgress, signal) => images.build(ref, body, dockerfile, onProgress, signal))
    },
  )
}

/** Answers with what `make` gives: as one answer, or line by line with its progress. A client that goes away ends it. */
async function report(
  request: FastifyRequest,
  reply: FastifyReply,
  withProgress: boolean,
  make: (onProgress: (line: string) => void, signal: AbortSignal) => Promise<ImageItem>,
): Promise<{ item: ImageItem } | undefined> {
  const gone = new AbortController()
  reply.raw.once('close', () => gone.abort())
  if (!withProgress) {
    const item = await make(() => undefined, gone.signal)
    reply.status(201)
    return { item }
  }
  reply.hijack()
  reply.raw.writeHead(200, { 'content-type': 'application/x-ndjson' })
  const line = (value: object) => reply.raw.write(`${JSON.stringify(value)}\n`)
  try {
    line({ item: await make((progress) => line({ progress }), gone.signal) })
  } catch (error) {
    line(toThawError(error).toBody(request.id))
  }
  reply.raw.end()
  return undefined
}
