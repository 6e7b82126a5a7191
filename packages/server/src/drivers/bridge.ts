import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2, constants } from 'node:http2'
import type { Duplex } from 'node:stream'
import { ThawError } from '@thaw/protocol'

/** A socket that nobody listens on yet is asked for again after this time. */
const retryMs = 20

/** stdin and stdout of `thaw-agent bridge` in a sandbox; `stderr`: the end of what it printed there. */
export type BridgeConnection = Duplex & { readonly stderr: string }

/**
 * The way into a sandbox whose files we do not share: a program of ours inside, started through the engine, which speaks
 * HTTP/2 on its stdin and stdout. A CONNECT to `unix:<path>` makes a byte stream to a socket inside.
 */
export class Bridge {
  readonly #start: () => Promise<BridgeConnection>
  #session: Promise<ClientHttp2Session> | undefined
  /** The connection that showed that somebody listens; a runtime takes only one. */
  readonly #first = new Map<string, ClientHttp2Stream>()

  /** @param start starts the program inside. */
  constructor(start: () => Promise<BridgeConnection>) {
    this.#start = start
  }
  /** Rejects with `driver_failed` when nothing listens there. */
  async dial(path: string): Promise<Duplex> {
    const first = this.#first.get(path)
    this.#first.delete(path)
    return first === undefined || first.destroyed ? this.#connectTo(path) : first
  }

  async #connectTo(path: string): Promise<ClientHttp2Stream> {
    const session = await this.#open()
    const stream = session.request({ ':method': 'CONNECT', ':authority': `unix:${encodeURIComponent(path)}` }, { endStream: false })
    const status = await answerOf(stream)
    if (status === 200) return asSocket(stream)
    stream.close(constants.NGHTTP2_CANCEL)
    throw new ThawError('driver_failed', 'The sandbox has no socket to connect to.', { details: { status } })
  }

  /** Resolves once something listens there; the next `dial` gets that connection. Rejects when `signal` aborts, with its reason. */
  async waitFor(path: string, signal: AbortSignal): Promise<void> {
    for (;;) {
      signal.throwIfAborted()
      try {
        this.#first.set(path, await this.#abortable(this.#connectTo(path), signal))
        return
      } catch {
        signal.throwIfAborted()
        await new Promise((resolve) => setTimeout(resolve, retryMs))
      }
    }
  }

  close(): void {
    this.#session?.then((session) => session.destroy()).catch(() => undefined)
    this.#session = undefined
    this.#first.clear()
  }

  #abortable<Value>(promise: Promise<Value>, signal: AbortSignal): Promise<Value> {
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason)
      signal.addEventListener('abort', abort, { once: true })
      promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
    })
  }

  #open(): Promise<ClientHttp2Session> {
    if (this.#session !== undefined) return this.#session
    const opening = this.#connect()
    const drop = () => {
      if (this.#session === opening) this.#session = undefined
    }
    opening.then((session) => (session.closed || session.destroyed ? drop() : session.once('close', drop)), drop)
    this.#session = opening
    return opening
  }

  async #connect(): Promise<ClientHttp2Session> {
    const connection = await this.#start()
    const session = connectHttp2('http://sandbox', { createConnection: () => connection })
    return new Promise((resolve, reject) => {
      session.once('remoteSettings', () => resolve(session))
      session.once('error', reject)
      session.once('close', () =>
        reject(
          new ThawError('driver_failed', `The way into the sandbox closed. ${connection.stderr}`.trim(), {
            details: { stderr: connection.stderr },
          }),
        ),
      )
      // What goes wrong later shows at the streams.
      session.on('error', () => undefined)
      session.unref()
    })
  }
}

/**
 * What an HTTP client needs of a connection and a stream of HTTP/2 lacks.
 *
 * Pieces that wait together are written as one. Node.js (24.21) holds the memory of several by the last one, and an empty last one,
 * by which a client ends a body that was piped to it, counts as sent at once: what goes over the wire for the others is whatever
 * their memory is used for by then.
 */
function asSocket(stream: ClientHttp2Stream): ClientHttp2Stream {
  const same = () => stream
  const writev: Duplex['_writev'] = (pieces, done) => stream._write(Buffer.concat(pieces.map(bytesOf)), 'buffer' as BufferEncoding, done)
  // An `http.Agent` that keeps a connection between requests calls what only sockets have.
  return Object.assign(stream, { _writev: writev, setKeepAlive: same, ref: same, unref: same })
}

function bytesOf({ chunk, encoding }: { chunk: string | Buffer; encoding: BufferEncoding }): Buffer {
  return typeof chunk === 'string' ? Buffer.from(chunk, encoding) : chunk
}

function answerOf(stream: ClientHttp2Stream): Promise<number> {
  return new Promise((resolve, reject) => {
    stream.once('response', (headers) => resolve(Number(headers[':status'])))
    stream.once('error', (cause) => reject(new ThawError('driver_failed', 'The socket of the sandbox cannot be connected to.', { cause })))
    stream.once('close', () => reject(new ThawError('driver_failed', 'The way into the sandbox closed.')))
  })
}
