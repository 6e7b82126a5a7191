import type { IncomingMessage, ServerResponse } from 'node:http'
import { errorTable, newId, type ThawError } from '@thaw/protocol'
import type { AnswerInfo } from '../control/run.ts'
import { answerHeaders } from './headers.ts'

export interface ErrorReport {
  /** Hears of errors that are the platform's fault, with the id that the client was told. */
  onPlatformError(error: ThawError, context: { requestId: string; functionName: string; invocationId: string | null }): void
}

/** Writes an error answer, unless an answer has begun: then the connection is broken, so that nobody takes it for whole. */
export function respondError(
  response: ServerResponse,
  error: ThawError,
  headers: Record<string, string> = {},
  requestId = newId('req'),
): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  const body = JSON.stringify(error.toBody(requestId))
  response.writeHead(error.status, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': Buffer.byteLength(body),
    ...retryAfter(error),
    ...challenge(error),
    ...headers,
  })
  if (headers.connection === 'close' && !response.req.complete) endLingering(response, body)
  else response.end(body)
}

/** For so long, and so many bytes, what a client still sends is read after its request was refused. */
const lingerMs = 1000
const lingerBytes = 16 * 1024 * 1024

/**
 * A connection that is closed while the client still sends is reset by the kernel, and the answer may be lost with that (RFC 9112, 9.6).
 * So the client gets all of it, and a moment to see it, before the connection is closed.
 */
export function endLingering(response: ServerResponse, body: string): void {
  const { req: request } = response
  response.write(body)
  let bytes = 0
  const end = () => {
    clearTimeout(timer)
    response.end()
  }
  const timer = setTimeout(end, lingerMs)
  request.unpipe()
  request.on('data', (piece: Buffer) => {
    bytes += piece.length
    if (bytes > lingerBytes) end()
  })
  for (const event of ['end', 'close', 'error']) request.once(event, end)
  request.resume()
  if (request.destroyed) end()
}

/** Answers a request whose body nobody has read: the connection is closed behind the answer rather than read to the body's end. */
export function refuseUnread(
  request: IncomingMessage,
  response: ServerResponse,
  error: ThawError,
  headers: Record<string, string> = {},
): void {
  const { 'content-length': length, 'transfer-encoding': coding } = request.headers
  const hasNone = coding === undefined && (length === undefined || length === '0')
  respondError(response, error, hasNone ? headers : { ...headers, connection: 'close' })
}

/** How to come in (RFC 9110, 11.6.1). */
function challenge(error: ThawError): Record<string, string> {
  return error.code === 'unauthorized' ? { 'www-authenticate': 'Bearer realm="thaw"' } : {}
}

/** Retry-After for what is worth another try. */
export function retryAfter(error: ThawError): Record<string, string> {
  if (!error.retryable || (error.status !== 429 && error.status !== 503 && error.code !== 'idempotency_in_flight')) return {}
  const seconds = (error.details as { retry_after_s?: unknown } | undefined)?.retry_after_s
  return { 'retry-after': String(typeof seconds === 'number' ? seconds : 1) }
}

/** Answers an invocation that failed. `info` is null when no instance was reached. */
export function respondRunError(
  report: ErrorReport,
  functionName: string,
  response: ServerResponse,
  error: ThawError,
  info: AnswerInfo | null,
): void {
  const requestId = newId('req')
  if (errorTable[error.code].blame === 'platform') {
    report.onPlatformError(error, { requestId, functionName, invocationId: info?.invocationId ?? null })
  }
  if (response.destroyed) return
  const headers: Record<string, string> = { 'thaw-function': functionName }
  if (info !== null) for (const [name, value] of Object.entries(answerHeaders(info))) headers[name] = String(value)
  // A body that was not read to its end would be taken for the next request.
  if (!response.req.complete) headers.connection = 'close'
  respondError(response, error, headers, requestId)
}
