import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { ThawError, toThawError } from '@thaw/protocol'
import type { E2bEntry, E2bProcess } from '../../control/sandboxes/e2b-entry.ts'
import { gatewayMessages } from './errors.ts'

const paths = /^\/process\.Process\/(Start|Connect)$/
const streamType = 'application/connect+json'
const headBytes = 5
const endOfStream = 0x02
const maxMessageBytes = 16 * 1024 * 1024

/** Whether a request starts a process, or joins one, in the form that is understood here. */
export function isProcessStream(path: string, { method, headers }: IncomingMessage): boolean {
  return method === 'POST' && paths.test(path) && headers['content-type'] === streamType && headers['content-encoding'] === undefined
}

/** The whole body of a request. Throws `payload_too_large`. */
export async function readMessage(request: IncomingMessage): Promise<Buffer> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length
    if (bytes > maxMessageBytes + headBytes) throw new ThawError('payload_too_large')
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

/** What is to be started or joined; null: let the agent judge it. */
export function readProcess(path: string, body: Buffer): E2bProcess | null {
  if (body.length < headBytes || body.readUInt8(0) !== 0 || body.readUInt32BE(1) !== body.length - headBytes) return null
  try {
    const message = JSON.parse(body.toString('utf8', headBytes)) as { process?: { pid?: unknown; cmd?: unknown } }
    if (path.endsWith('/Connect')) return typeof message.process?.pid === 'number' ? { pid: message.process.pid } : null
    return typeof message.process?.cmd === 'string' ? (message as E2bProcess) : null
  } catch {
    return null
  }
}

/**
 * Tells a client what happens to a process until it ends. Unlike a connection to the agent, this goes on while the sandbox is
 * snapshotted or forked: to E2B's clients a sandbox stands still then, and nothing breaks off.
 */
export async function streamProcess(
  entry: E2bEntry,
  what: E2bProcess,
  left: AbortController,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    response.once('close', () => {
      left.abort()
      resolve()
    })
  })
  response.writeHead(200, { 'content-type': streamType })
  response.flushHeaders()
  try {
    for await (const message of entry.follow(what, {
      user: userOf(request.headers),
      headers: passed(request.headers),
      signal: left.signal,
    })) {
      if (!response.write(frame(0, message))) await Promise.race([new Promise((resolve) => response.once('drain', resolve)), closed])
      if (response.destroyed) return
    }
    response.end(frame(endOfStream, {}))
  } catch (error) {
    if (left.signal.aborted) response.destroy()
    else response.end(frame(endOfStream, { error: connectError(error, entry.isOver) }))
  }
}

function frame(flags: number, message: object): Buffer {
  const body = Buffer.from(JSON.stringify(message), 'utf8')
  const head = Buffer.alloc(headBytes)
  head.writeUInt8(flags, 0)
  head.writeUInt32BE(body.length, 1)
  return Buffer.concat([head, body])
}

/** In the words of Connect, as the agent had it. */
function connectError(error: unknown, isOver: boolean): { code: string; message: string } {
  const { message, details } = toThawError(error)
  const code = (details as { agent_code?: unknown } | undefined)?.agent_code
  if (typeof code === 'string' && code !== 'unknown') return { code, message }
  return { code: 'unavailable', message: isOver ? gatewayMessages.notFound : message }
}

/** The user of a call comes by HTTP Basic, without a password. */
function userOf({ authorization }: IncomingHttpHeaders): string | undefined {
  const encoded = /^basic +(\S+)$/i.exec(authorization ?? '')?.[1]
  const user = encoded === undefined ? '' : (Buffer.from(encoded, 'base64').toString('utf8').split(':')[0] ?? '')
  return user === '' ? undefined : user
}

function passed(headers: IncomingHttpHeaders): Record<string, string> {
  const kept: Record<string, string> = {}
  for (const name of ['keepalive-ping-interval', 'connect-timeout-ms']) {
    const value = headers[name]
    if (typeof value === 'string') kept[name] = value
  }
  return kept
}
