import { type IncomingMessage, type ServerResponse, validateHeaderName, validateHeaderValue } from 'node:http'
import { bodyChunkBytes, errorTable, functionNameSchema, invokeModes, newId, type ResultMeta, ThawError, toThawError } from '@thaw/protocol'
import type { AnswerInfo, AnswerSink, Invocation, InvokeRequest } from '../control/invoker.ts'
import type { Version } from '../control/version.ts'
import { respondError } from './respond.ts'

/** What the invoke paths need of control. */
export interface InvokeParts {
  active(name: string): Version
  invoke(version: Version, request: InvokeRequest, sink: AnswerSink): Invocation
  maxPayloadBytes: number
  /** Hears of errors that are the platform's fault, with the id that the client was told. */
  onPlatformError(error: ThawError, context: { requestId: string; functionName: string; invocationId: string | null }): void
}

/** Headers that speak of one connection and are not passed on (RFC 9110, 7.6.1). */
const hopByHop = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])

/**
 * The two paths that run functions. They work on node:http itself: no framework, no parsing of the body, and for a
 * body of one piece and an idle instance, one write to the runtime and one to the client.
 */
export class InvokePaths {
  readonly #parts: InvokeParts

  constructor(parts: InvokeParts) {
    this.#parts = parts
  }

  /** Takes the request if its path is one of ours. `path` is without the query. */
  handle(path: string, query: string, request: IncomingMessage, response: ServerResponse): boolean {
    if (path.startsWith('/fn/')) {
      const slash = path.indexOf('/', 4)
      const name = slash < 0 ? path.slice(4) : path.slice(4, slash)
      this.#trigger(name, slash < 0 ? '/' : path.slice(slash), query, request, response)
      return true
    }
    if (path.startsWith('/v1/functions/') && path.endsWith('/invoke') && path.indexOf('/', 14) === path.length - 7) {
      this.#invoke(path.slice(14, -7), request, response)
      return true
    }
    return false
  }

  #invoke(rawName: string, request: IncomingMessage, response: ServerResponse): void {
    if (request.method !== 'POST') {
      refuse(request, response, new ThawError('method_not_allowed', 'Functions are invoked by POST.'), { allow: 'POST' })
      return
    }
    const mode = request.headers['thaw-mode']
    if (mode !== undefined && !(invokeModes as readonly unknown[]).includes(mode)) {
      refuse(request, response, new ThawError('invalid_request', `Thaw-Mode must be one of ${invokeModes.join(', ')}.`))
      return
    }
    let timeoutMs: number | undefined
    const timeout = request.headers['thaw-timeout-ms']
    if (timeout !== undefined) {
      timeoutMs = Number(timeout)
      if (!/^\d{1,8}$/.test(String(timeout)) || timeoutMs < 1 || timeoutMs > 86_400_000) {
        refuse(request, response, new ThawError('invalid_request', 'Thaw-Timeout-Ms must be a whole number from 1 to 86400000.'))
        return
      }
    }
    this.#run(rawName, request, response, { trigger: 'invoke', timeoutMs })
  }

  #trigger(rawName: string, path: string, query: string, request: IncomingMessage, response: ServerResponse): void {
    const headers: Record<string, string> = {}
    for (const [name, value] of Object.entries(request.headers)) {
      if (value !== undefined && !hopByHop.has(name)) headers[name] = Array.isArray(value) ? value.join(', ') : value
    }
    this.#run(rawName, request, response, { trigger: 'http', http: { method: request.method ?? 'GET', path, query, headers } })
  }

  #run(
    rawName: string,
    request: IncomingMessage,
    response: ServerResponse,
    how: Pick<InvokeRequest, 'trigger' | 'http' | 'timeoutMs'>,
  ): void {
    let version: Version
    let length: number | undefined
    try {
      version = this.#parts.active(functionName(rawName))
      length = this.#checkedLength(request)
    } catch (error) {
      refuse(request, response, toThawError(error))
      return
    }
    const contentType = request.headers['content-type'] ?? ''
    const start = (body: InvokeRequest['body'], bodyBytes: number) => {
      const sink = new ResponseSink(response, version.functionName, this.#parts)
      const invocation = this.#parts.invoke(version, { body, bodyBytes, contentType, ...how }, sink)
      sink.invocation = invocation
      // The client went away before it had the whole answer.
      response.once('close', () => {
        if (!response.writableFinished) invocation.cancel()
      })
      return invocation
    }
    if (length === 0) {
      start(empty, 0)
    } else if (length !== undefined && length <= bodyChunkBytes) {
      readSmall(request, length, (body) => start(body, body.length))
    } else {
      const body = new BoundedBody(request, this.#parts.maxPayloadBytes)
      const invocation = start(body, length ?? 0)
      body.onTooLarge = (error) => invocation.cancel(error)
    }
  }

  /** Bytes of the body, undefined when they are not announced. */
  #checkedLength(request: IncomingMessage): number | undefined {
    const encoding = request.headers['content-encoding']
    if (encoding !== undefined && encoding !== 'identity') {
      throw new ThawError('unsupported_media_type', `Bodies with Content-Encoding ${JSON.stringify(encoding)} are not taken.`, {
        fix: 'Send the body uncompressed.',
      })
    }
    const header = request.headers['content-length']
    if (header === undefined) return request.headers['transfer-encoding'] === undefined ? 0 : undefined
    const length = Number(header)
    if (length > this.#parts.maxPayloadBytes)
      throw new ThawError('payload_too_large', `The body of ${length} bytes is larger than ${this.#parts.maxPayloadBytes}.`)
    return length
  }
}

const empty = Buffer.alloc(0)

function functionName(raw: string): string {
  let name: string
  try {
    name = decodeURIComponent(raw)
  } catch {
    throw new ThawError('invalid_request', 'The function name in the path is not valid.')
  }
  const parsed = functionNameSchema.safeParse(name)
  if (!parsed.success) throw new ThawError('invalid_request', `The function name is not valid: ${parsed.error.issues[0]?.message ?? ''}.`)
  return name
}

/** Answers before the body was read; the connection is closed behind it rather than read to its end. */
function refuse(request: IncomingMessage, response: ServerResponse, error: ThawError, headers: Record<string, string> = {}): void {
  const drained = request.headers['content-length'] === undefined && request.headers['transfer-encoding'] === undefined
  respondError(response, error, drained ? headers : { ...headers, connection: 'close' })
}

/** Collects a body whose length is known and small. A client that goes away before the end starts nothing. */
function readSmall(request: IncomingMessage, length: number, onBody: (body: Buffer) => void): void {
  let first: Buffer | undefined
  let rest: Buffer[] | undefined
  request.on('data', (bytes: Buffer) => {
    if (first === undefined) first = bytes
    else {
      rest ??= [first]
      rest.push(bytes)
    }
  })
  request.once('end', () => onBody(rest === undefined ? (first ?? empty) : Buffer.concat(rest, length)))
}

/** A body that is passed on as it arrives, and breaks off when it becomes larger than allowed. */
class BoundedBody implements AsyncIterable<Buffer> {
  onTooLarge: (error: ThawError) => void = () => {}
  readonly #request: IncomingMessage
  readonly #maxBytes: number

  constructor(request: IncomingMessage, maxBytes: number) {
    this.#request = request
    this.#maxBytes = maxBytes
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Buffer> {
    let bytes = 0
    for await (const piece of this.#request as AsyncIterable<Buffer>) {
      bytes += piece.length
      if (bytes > this.#maxBytes) {
        const error = new ThawError('payload_too_large', `The body is larger than ${this.#maxBytes} bytes.`)
        this.onTooLarge(error)
        throw error
      }
      yield piece
    }
  }
}

/** Writes an answer to the HTTP response as it comes. */
class ResponseSink implements AnswerSink {
  invocation: Invocation | undefined
  readonly #response: ServerResponse
  readonly #functionName: string
  readonly #parts: InvokeParts

  constructor(response: ServerResponse, functionName: string, parts: InvokeParts) {
    this.#response = response
    this.#functionName = functionName
    this.#parts = parts
  }

  answer(meta: ResultMeta, body: Buffer, info: AnswerInfo): void {
    if (this.#response.destroyed) return
    const headers = answerHeaders(info)
    headers['content-type'] = meta.content_type
    if (!meta.more) headers['content-length'] = body.length
    try {
      this.#response.writeHead(meta.status ?? 200, meta.headers === undefined ? headers : { ...functionHeaders(meta.headers), ...headers })
    } catch (error) {
      this.error(toThawError(error), info)
      if (meta.more) this.invocation?.cancel()
      return
    }
    if (!meta.more) this.#response.end(body)
    else if (body.length > 0) this.chunk(body)
    else this.#response.flushHeaders()
  }

  chunk(bytes: Buffer): boolean {
    // The bytes lie in a buffer of the connection to the runtime, which is not used again: no copy is needed.
    if (this.#response.destroyed || this.#response.write(bytes)) return true
    this.#response.once('drain', () => this.invocation?.resume())
    return false
  }

  end(): void {
    this.#response.end()
  }

  error(error: ThawError, info: AnswerInfo | null): void {
    const requestId = newId('req')
    if (errorTable[error.code].blame === 'platform') {
      this.#parts.onPlatformError(error, { requestId, functionName: this.#functionName, invocationId: info?.invocationId ?? null })
    }
    if (this.#response.destroyed) return
    const headers: Record<string, string> = { 'thaw-function': this.#functionName }
    if (info !== null) for (const [name, value] of Object.entries(answerHeaders(info))) headers[name] = String(value)
    // A body that was not read to its end would be taken for the next request.
    if (!this.#response.req.complete) headers.connection = 'close'
    respondError(this.#response, error, headers, requestId)
  }
}

function answerHeaders(info: AnswerInfo): Record<string, string | number> {
  const { queue_ms, boot_ms, init_ms, run_ms } = info.timing
  return {
    'thaw-invocation-id': info.invocationId,
    'thaw-boot-method': info.bootMethod,
    'server-timing': `queue;dur=${queue_ms.toFixed(2)}, boot;dur=${boot_ms.toFixed(2)}, init;dur=${init_ms.toFixed(2)}, run;dur=${run_ms.toFixed(2)}`,
  }
}

/** Headers that a function chose: untrusted, so each is checked, and those of the connection are left out. */
function functionHeaders(headers: Record<string, string | string[]>): Record<string, string | string[]> {
  const kept: Record<string, string | string[]> = {}
  for (const [rawName, value] of Object.entries(headers)) {
    const name = rawName.toLowerCase()
    if (hopByHop.has(name) || name === 'content-length' || name.startsWith('thaw-')) continue
    try {
      validateHeaderName(name)
      for (const part of Array.isArray(value) ? value : [value]) validateHeaderValue(name, part)
    } catch {
      throw new ThawError(
        'function_failed',
        `The function answered with a header that is not allowed: ${JSON.stringify(rawName).slice(0, 100)}.`,
      )
    }
    kept[name] = value
  }
  return kept
}
