import type { IncomingMessage } from 'node:http'
import { ThawError } from '@thaw/protocol'
import { responseError } from '../failures.ts'

/** Where a WebSocket leads, and what its handshake carries. */
export interface SocketTarget {
  url: string
  headers: Record<string, string>
}

/** What a WebSocket tells its owner. After `onClose` nothing more comes. */
export interface SocketEvents {
  onMessage(text: string): void
  /** The peer showed that it lives, by a message or otherwise. */
  onSign(): void
  onClose(code: number, reason: string): void
}

/** The part of a WebSocket that the SDK needs. */
export interface Socket {
  /** Resolves when the bytes have left this process, so that who sends much waits for a slow peer. */
  send(text: string): Promise<void>
  close(): void
  /** Ends it at once. */
  destroy(): void
}

/** A sandbox that sleeps is woken during the handshake. */
export const handshakeMs = 300_000

/**
 * Opens a WebSocket. A server that refuses is thrown as its error. Uses `ws` on Node.js, whose global WebSocket neither says
 * why it was refused nor when bytes have left; and the global one elsewhere, which sends no headers, so no API key either.
 */
export async function openSocket(target: SocketTarget, events: SocketEvents, signal: AbortSignal | undefined): Promise<Socket> {
  signal?.throwIfAborted()
  const onNode = (globalThis as { process?: { versions?: { node?: string } } }).process?.versions?.node !== undefined
  const opening = onNode ? openOnNode(target, events, signal) : openElsewhere(target, events)
  if (signal === undefined) return opening
  return new Promise((resolve, reject) => {
    const abort = () => {
      reject(signal.reason)
      opening.then((socket) => socket.destroy()).catch(() => undefined)
    }
    signal.addEventListener('abort', abort, { once: true })
    opening.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}

async function openOnNode({ url, headers }: SocketTarget, events: SocketEvents, signal: AbortSignal | undefined): Promise<Socket> {
  const { WebSocket } = await import('ws')
  signal?.throwIfAborted()
  const socket = new WebSocket(url, { headers, perMessageDeflate: false, followRedirects: false, handshakeTimeout: handshakeMs })
  return new Promise((resolve, reject) => {
    let open = false
    socket.on('unexpected-response', (_request, answer) => {
      void refusal(answer, url).then(reject, reject)
    })
    socket.on('error', (error) => {
      // What happens to an open connection is told by `close`.
      if (!open) reject(unreachable(url, error))
    })
    socket.on('message', (data: Buffer) => {
      events.onSign()
      events.onMessage(data.toString('utf8'))
    })
    socket.on('ping', () => events.onSign())
    socket.on('close', (code, reason) => {
      if (open) events.onClose(code, reason.toString('utf8'))
      else reject(unreachable(url, undefined))
    })
    socket.once('open', () => {
      open = true
      resolve({
        send: (text) => new Promise((sent) => socket.send(text, () => sent())),
        close: () => socket.close(1000),
        destroy: () => socket.terminate(),
      })
    })
  })
}

function openElsewhere({ url }: SocketTarget, events: SocketEvents): Promise<Socket> {
  const socket = new WebSocket(url)
  return new Promise((resolve, reject) => {
    let open = false
    socket.onmessage = ({ data }) => {
      events.onSign()
      events.onMessage(String(data))
    }
    socket.onclose = ({ code, reason }) => {
      if (open) events.onClose(code, reason)
      else reject(unreachable(url, undefined))
    }
    socket.onopen = () => {
      open = true
      resolve({
        send: async (text) => socket.send(text),
        close: () => socket.close(1000),
        destroy: () => socket.close(),
      })
    }
  })
}

/** The error of an answer that is not 101. */
export async function refusal(answer: IncomingMessage, url: string): Promise<ThawError> {
  const pieces: Buffer[] = []
  for await (const piece of answer as AsyncIterable<Buffer>) pieces.push(piece)
  const headers = new Headers()
  for (const [name, value] of Object.entries(answer.headers)) if (typeof value === 'string') headers.set(name, value)
  const status = answer.statusCode ?? 0
  // A Response cannot have the status of an answer that is no end of a request.
  const body = new Response(Buffer.concat(pieces), {
    status: status >= 200 ? status : 500,
    statusText: answer.statusMessage ?? '',
    headers,
  })
  return (await responseError(body, url)).error
}

export function unreachable(url: string, cause: unknown): ThawError {
  const code = (cause as { code?: unknown } | undefined)?.code
  const why = typeof code === 'string' ? ` (${code})` : ''
  return new ThawError('unreachable', `No thaw server answers at ${url}${why}.`, { cause })
}
