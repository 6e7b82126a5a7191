import type { ServerResponse } from 'node:http'
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
