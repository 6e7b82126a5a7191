import type { ServerResponse } from 'node:http'
import { newId, type ThawError } from '@thaw/protocol'

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
    ...headers,
  })
  response.end(body)
}

/** Retry-After for what is worth another try. */
export function retryAfter(error: ThawError): Record<string, string> {
  if (!error.retryable || (error.status !== 429 && error.status !== 503)) return {}
  const seconds = (error.details as { retry_after_s?: unknown } | undefined)?.retry_after_s
  return { 'retry-after': String(typeof seconds === 'number' ? seconds : 1) }
}
