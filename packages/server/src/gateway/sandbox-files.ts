import type { IncomingMessage, ServerResponse } from 'node:http'
import { pipeline } from 'node:stream'
import { ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../control/caller.ts'
import { type FileTransfer, transferFile } from '../control/sandboxes/files.ts'
import type { Sandboxes } from '../control/sandboxes/sandboxes.ts'
import { goneSignal } from './gone.ts'
import { refuseUnread, respondError } from './respond.ts'

const methods = ['GET', 'HEAD', 'PUT', 'DELETE'] as const
/** Headers of a request that speak of the file. */
const asked = ['range', 'if-range', 'if-none-match', 'if-modified-since']
/** Headers of an answer that speak of the file. */
const answered = ['content-type', 'content-length', 'content-range', 'accept-ranges', 'etag', 'last-modified']

/** `/v1/sandboxes/{id}/files` and `…/files/tar`: bytes pass through as they come, with back-pressure both ways. */
export class SandboxFiles {
  readonly #sandboxes: Sandboxes

  constructor(sandboxes: Sandboxes) {
    this.#sandboxes = sandboxes
  }

  async handle(caller: Caller, id: string, tar: boolean, query: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const transfer = readTransfer(tar, query, request)
      using lease = await this.#sandboxes.use(caller, id)
      await pass(await transferFile(lease.agent, { ...transfer, signal: goneSignal(response) }), response)
    } catch (error) {
      const thaw = toThawError(error)
      if (response.headersSent || request.complete) respondError(response, thaw)
      else refuseUnread(request, response, thaw)
    }
  }
}

function readTransfer(tar: boolean, query: string, request: IncomingMessage): FileTransfer {
  const method = methods.find((known) => known === request.method)
  if (method === undefined) throw new ThawError('method_not_allowed', `${request.method} is not allowed here.`)
  const fields = new URLSearchParams(query)
  const path = fields.get('path')
  if (path === null || path === '') throw new ThawError('invalid_request', 'The path of the file is missing.', { fix: 'Add ?path=/a/b.' })
  if (path.includes('\0') || Buffer.byteLength(path) > 4096)
    throw new ThawError('file_invalid', 'The path is too long, or holds a NUL byte.')
  const headers: Record<string, string> = {}
  for (const name of asked) {
    const value = request.headers[name]
    if (typeof value === 'string') headers[name] = value
  }
  const length = request.headers['content-length']
  return {
    method,
    path,
    user: fields.get('user') ?? undefined,
    tar,
    headers,
    body: method === 'PUT' ? { stream: request, length: length === undefined ? undefined : Number(length) } : undefined,
  }
}

function pass(answer: IncomingMessage, response: ServerResponse): Promise<void> {
  const headers: Record<string, string> = { 'x-content-type-options': 'nosniff' }
  for (const name of answered) {
    const value = answer.headers[name]
    if (typeof value === 'string') headers[name] = value
  }
  // A page that came out of a sandbox must not run as a page of this server.
  if (headers['content-type']?.includes('html') || headers['content-type']?.includes('svg')) headers['content-disposition'] = 'attachment'
  response.writeHead(answer.statusCode ?? 502, headers)
  return new Promise((resolve) => pipeline(answer, response, () => resolve()))
}
