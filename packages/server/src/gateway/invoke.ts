import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { bodyChunkBytes, functionNameSchema, invokeModes, type ResultMeta, ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../control/caller.ts'
import type { Idempotency } from '../control/idempotency.ts'
import type { AnswerSink, Invocation, InvokeRequest } from '../control/invocation.ts'
import type { Borrower, Loan } from '../control/loan.ts'
import type { AnswerInfo, RunRequest } from '../control/run.ts'
import type { Version } from '../control/version.ts'
import { carriesKey } from './auth.ts'
import { answerHeaders, functionHeaders, hopByHop } from './headers.ts'
import { idempotencyKeyOf, invokeOnce } from './idempotency.ts'
import { WebProxy } from './proxy.ts'
import { type ErrorReport, refuseUnread, respondError, respondRunError } from './respond.ts'
import type { TunnelLimits } from './upgrade.ts'

/** What the invoke paths need of control. */
export interface InvokeParts extends ErrorReport {
  active(caller: Caller, name: string): Version
  invoke(version: Version, request: InvokeRequest, sink: AnswerSink): Invocation
  borrow(version: Version, request: RunRequest, borrower: Borrower): Loan
  idempotency: Idempotency
  maxPayloadBytes: number
  websocket: TunnelLimits
}

/**
 * The two paths that run functions. They work on node:http itself: no framework, no parsing of the body, and for a
 * body of one piece and an idle instance, one write to the runtime and one to the client.
 */
export class InvokePaths {
  readonly #parts: InvokeParts
  readonly #proxy: WebProxy

  constructor(parts: InvokeParts) {
    this.#parts = parts
    this.#proxy = new WebProxy(parts)
  }

  /** Takes the request if its path is one of ours. `path` is without the query. */
  handle(caller: Caller, path: string, query: string, request: IncomingMessage, response: ServerResponse): boolean {
    if (path.startsWith('/fn/')) {
      this.#run(caller, splitTrigger(path, query), request, response, { trigger: 'http' })
      return true
    }
    if (path.startsWith('/v1/functions/') && path.endsWith('/invoke') && path.indexOf('/', 14) === path.length - 7) {
      this.#invoke(caller, path.slice(14, -7), request, response)
      return true
    }
    return false
  }

  /** A request for another protocol (WebSocket), on a connection that is no longer HTTP's. */
  upgrade(
    caller: Caller,
    path: string,
    query: string,
    request: IncomingMessage,
    response: ServerResponse,
    socket: Duplex,
    head: Buffer,
  ): void {
    try {
      if (!path.startsWith('/fn/'))
        throw new ThawError('route_not_found', `There is no WebSocket at ${JSON.stringify(path.slice(0, 200))}.`)
      const target = splitTrigger(path, query)
      const version = this.#parts.active(caller, functionName(target.name))
      if (version.config.contract !== 'http') {
        throw new ThawError('invalid_request', `${version.functionName} takes no WebSockets: its contract is ${version.config.contract}.`, {
          fix: 'Deploy a web server with the http contract.',
        })
      }
      this.#proxy.upgrade(version, { path: withQuery(target), prefix: `/fn/${target.name}` }, request, response, socket, head)
    } catch (error) {
      respondError(response, toThawError(error))
    }
  }

  /** Ends connections that are no longer HTTP's, which the server does not know. */
  close(): void {
    this.#proxy.close()
  }

  #invoke(caller: Caller, rawName: string, request: IncomingMessage, response: ServerResponse): void {
    if (request.method !== 'POST') {
      refuseUnread(request, response, new ThawError('method_not_allowed', 'Functions are invoked by POST.'), { allow: 'POST' })
      return
    }
    const mode = request.headers['thaw-mode']
    if (mode !== undefined && !(invokeModes as readonly unknown[]).includes(mode)) {
      refuseUnread(request, response, new ThawError('invalid_request', `Thaw-Mode must be one of ${invokeModes.join(', ')}.`))
      return
    }
    let timeoutMs: number | undefined
    const timeout = request.headers['thaw-timeout-ms']
    if (timeout !== undefined) {
      timeoutMs = Number(timeout)
      if (!/^\d{1,8}$/.test(String(timeout)) || timeoutMs < 1 || timeoutMs > 86_400_000) {
        refuseUnread(request, response, new ThawError('invalid_request', 'Thaw-Timeout-Ms must be a whole number from 1 to 86400000.'))
        return
      }
    }
    let key: string | null = null
    try {
      if (request.headers['idempotency-key'] !== undefined) key = idempotencyKeyOf(request)
      if (key !== null && mode === 'stream') throw new ThawError('invalid_request', 'A streamed answer is not kept for an Idempotency-Key.')
    } catch (error) {
      refuseUnread(request, response, toThawError(error))
      return
    }
    this.#run(caller, { name: rawName, path: '/', query: '' }, request, response, { trigger: 'invoke', timeoutMs }, key)
  }

  #run(
    caller: Caller,
    target: Trigger,
    request: IncomingMessage,
    response: ServerResponse,
    how: Pick<InvokeRequest, 'trigger' | 'timeoutMs'>,
    idempotencyKey: string | null = null,
  ): void {
    let version: Version
    let length: number | undefined
    try {
      version = this.#parts.active(caller, functionName(target.name))
      if (version.config.contract !== 'http') checkEncoding(request)
      length = this.#checkedLength(request)
    } catch (error) {
      refuseUnread(request, response, toThawError(error))
      return
    }
    if (version.config.contract === 'http') {
      const prefix = how.trigger === 'http' ? `/fn/${target.name}` : ''
      this.#proxy.request(version, { path: withQuery(target), prefix }, how, request, response)
      return
    }
    const http =
      how.trigger === 'http'
        ? { method: request.method ?? 'GET', path: target.path, query: target.query, headers: eventHeaders(request) }
        : undefined
    const contentType = request.headers['content-type'] ?? ''
    if (idempotencyKey !== null) {
      const { functionName } = version
      void invokeOnce(request, response, {
        idempotency: this.#parts.idempotency,
        key: idempotencyKey,
        caller,
        asked: ['invoke', functionName, contentType, String(how.timeoutMs ?? '')],
        functionName,
        maxPayloadBytes: this.#parts.maxPayloadBytes,
        report: this.#parts,
        direct: new ResponseSink(response, functionName, this.#parts),
        start: (body, sink) => this.#parts.invoke(version, { body, bodyBytes: body.length, contentType, ...how }, sink),
      })
      return
    }
    const start = (body: InvokeRequest['body'], bodyBytes: number) => {
      const sink = new ResponseSink(response, version.functionName, this.#parts)
      const invocation = this.#parts.invoke(
        version,
        { body, bodyBytes, contentType, ...how, ...(http === undefined ? {} : { http }) },
        sink,
      )
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
    const header = request.headers['content-length']
    if (header === undefined) return request.headers['transfer-encoding'] === undefined ? 0 : undefined
    const length = Number(header)
    if (length > this.#parts.maxPayloadBytes)
      throw new ThawError('payload_too_large', `The body of ${length} bytes is larger than ${this.#parts.maxPayloadBytes}.`)
    return length
  }
}

const empty = Buffer.alloc(0)
/** Copying more than this costs more than it saves. */
const smallBodyBytes = 8 * 1024

/** What a path asks for: a function, not yet checked, and what it is to see of the path. */
interface Trigger {
  name: string
  path: string
  query: string
}

/** Of `/fn/name/a/b`. */
function splitTrigger(path: string, query: string): Trigger {
  const slash = path.indexOf('/', 4)
  return slash < 0 ? { name: path.slice(4), path: '/', query } : { name: path.slice(4, slash), path: path.slice(slash), query }
}

function withQuery({ path, query }: Trigger): string {
  return query === '' ? path : `${path}?${query}`
}

/** Nobody unpacks bodies on the way to a handler, so nobody can be made to unpack a huge one. */
function checkEncoding(request: IncomingMessage): void {
  const encoding = request.headers['content-encoding']
  if (encoding === undefined || encoding === 'identity') return
  throw new ThawError('unsupported_media_type', `Bodies with Content-Encoding ${JSON.stringify(encoding)} are not taken.`, {
    fix: 'Send the body uncompressed.',
  })
}

/** The headers of a request as they stand in an event. */
function eventHeaders(request: IncomingMessage): Record<string, string> {
  const headers: Record<string, string> = {}
  for (const [name, value] of Object.entries(request.headers)) {
    if (value === undefined || hopByHop.has(name)) continue
    const text = Array.isArray(value) ? value.join(', ') : value
    if (!carriesKey(name, text)) headers[name] = text
  }
  return headers
}

/** Names that were found good, so that a call of the same function need not be checked again. */
const goodNames = new Set<string>()
const maxGoodNames = 1000

function functionName(raw: string): string {
  if (goodNames.has(raw)) return raw
  let name: string
  try {
    name = decodeURIComponent(raw)
  } catch {
    throw new ThawError('invalid_request', 'The function name in the path is not valid.')
  }
  const parsed = functionNameSchema.safeParse(name)
  if (!parsed.success) throw new ThawError('invalid_request', `The function name is not valid: ${parsed.error.issues[0]?.message ?? ''}.`)
  if (raw === name && goodNames.size < maxGoodNames) goodNames.add(name)
  return name
}

/** Head and a small body leave as one string: a Buffer would be a second piece, which costs the system call an array. */
function endWhole(response: ServerResponse, body: Buffer): void {
  if (body.length <= smallBodyBytes) response.end(body.toString('latin1'), 'latin1')
  else response.end(body)
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
    if (!meta.more) endWhole(this.#response, body)
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
    respondRunError(this.#parts, this.#functionName, this.#response, error, info)
  }
}
