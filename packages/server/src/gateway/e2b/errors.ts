import type { IncomingMessage, ServerResponse } from 'node:http'
import { type ErrorCode, ThawError, toThawError } from '@thaw/protocol'
import { endLingering, retryAfter } from '../respond.ts'

/** Errors of the control API of E2B: `code` is the status. */
export interface E2bError {
  code: number
  message: string
  /** The code of thaw, which is finer. */
  error_code: string
}

/** Where E2B has another status for the same thing. */
const statuses: Partial<Record<ErrorCode, number>> = {
  snapshot_unsupported: 400,
  snapshot_not_found: 404,
  image_not_found: 404,
  image_unresolvable: 404,
}

export function e2bError(error: ThawError): E2bError {
  return { code: statuses[error.code] ?? error.status, message: `${error.message} ${error.fix}`.trim(), error_code: error.code }
}

/** Refuses what E2B has and thaw does not. */
export function unsupported(what: string, fix: string): ThawError {
  return new ThawError('invalid_request', `thaw does not support ${what}.`, { fix })
}

/** Answers by hand, for requests that never reach the framework. */
export function respondE2bError(request: IncomingMessage, response: ServerResponse, error: unknown): void {
  const thaw = toThawError(error)
  respondJson(request, response, e2bError(thaw).code, e2bError(thaw), retryAfter(thaw))
}

/** What the proxy in front of E2B's sandboxes says; clients recognise the messages. */
export const gatewayMessages = {
  notFound: 'The sandbox was not found',
  portClosed: 'The sandbox is running but port is not open',
} as const

export function respondGatewayError(
  request: IncomingMessage,
  response: ServerResponse,
  sandboxId: string,
  message: string,
  port?: number,
): void {
  respondJson(request, response, 502, { sandboxId, message, ...(port === undefined ? {} : { port }), code: 502 })
}

export function respondJson(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  body: object,
  headers: Record<string, string> = {},
): void {
  if (response.headersSent) return void response.destroy()
  const text = JSON.stringify(body)
  response.writeHead(status, {
    'content-type': 'application/json; charset=utf-8',
    'content-length': Buffer.byteLength(text),
    ...headers,
    // A body that was not read to its end would be taken for the next request.
    ...(request.complete ? {} : { connection: 'close' }),
  })
  if (request.complete) response.end(text)
  else endLingering(response, text)
}
