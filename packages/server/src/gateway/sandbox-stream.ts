import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { maxStreamMessageBytes, type StreamEvent, streamCommandSchema, ThawError, toThawError } from '@thaw/protocol'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Caller } from '../control/caller.ts'
import type { Lease } from '../control/sandboxes/live-sandbox.ts'
import type { Sandboxes } from '../control/sandboxes/sandboxes.ts'
import type { Snapshots } from '../control/sandboxes/snapshots.ts'
import { SandboxStream } from '../control/sandboxes/stream.ts'
import type { StreamOutput } from '../control/sandboxes/stream-line.ts'
import { respondError } from './respond.ts'
import { parseStrictJson } from './strict-json.ts'

export interface StreamSocketParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  /** How long a client may take nothing of what is there for it. */
  stallMs: number
}

const encodings = ['utf8', 'base64'] as const
type Encoding = (typeof encodings)[number]

const heartbeatMs = 15_000
/** What may wait for a client before nothing more is read from the sandbox for it. */
const fullBytes = 256 * 1024
/** What is not read from the sandbox but told by others, such as events, may add to that. */
const mostBytes = 8 * 1024 * 1024
/** How long a client may take to hear why its connection is closed. */
const farewellMs = 2000

/** `/v1/sandboxes/{id}/stream`: what docs/sandboxes-stream.md describes, over a WebSocket. */
export class StreamSockets {
  readonly #parts: StreamSocketParts
  readonly #handshake = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: maxStreamMessageBytes,
  })
  readonly #open = new Set<StreamSocket>()

  constructor(parts: StreamSocketParts) {
    this.#parts = parts
  }

  /** `response` writes to `socket`, until the handshake is done. */
  async upgrade(
    caller: Caller,
    idOrName: string,
    query: string,
    request: IncomingMessage,
    response: ServerResponse,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    try {
      const encoding = readEncoding(query)
      const lease = await this.#parts.sandboxes.use(caller, idOrName)
      if (socket.destroyed) return lease.release()
      response.detachSocket(socket as Socket)
      // A handshake that is refused ends the socket.
      socket.once('close', () => lease.release())
      this.#handshake.handleUpgrade(request, socket, head, (opened) => this.#begin(opened, socket as Socket, caller, lease, encoding))
    } catch (error) {
      respondError(response, toThawError(error))
    }
  }

  /** Ends all streams, and what was to end with them. */
  async close(): Promise<void> {
    await Promise.all([...this.#open].map((stream) => stream.close(1001, 'the server is shutting down')))
  }

  #begin(webSocket: WebSocket, socket: Socket, caller: Caller, lease: Lease, encoding: Encoding): void {
    const { sandboxes, snapshots, stallMs } = this.#parts
    const stream = new StreamSocket(webSocket, socket, stallMs)
    this.#open.add(stream)
    webSocket.once('close', () => this.#open.delete(stream))
    stream.begin(
      new SandboxStream({
        sandboxes,
        snapshots,
        caller,
        lease,
        encoding,
        output: stream,
        onEnd: (state) => void stream.close(1001, `the sandbox is ${state}`),
      }),
    )
  }
}

function readEncoding(query: string): Encoding {
  const text = new URLSearchParams(query).get('encoding') ?? 'utf8'
  const encoding = encodings.find((known) => known === text)
  if (encoding === undefined) throw new ThawError('invalid_request', 'encoding must be utf8 or base64.')
  return encoding
}

/** The WebSocket of one stream: JSON in both directions, with back-pressure, signs of life and an end that is told. */
class StreamSocket implements StreamOutput {
  readonly #webSocket: WebSocket
  readonly #socket: Socket
  readonly #stallMs: number
  #stream: SandboxStream | undefined
  /** Reasons not to read from the client. */
  #holds = 0
  #room: Promise<void> | null = null
  #stall: NodeJS.Timeout | undefined
  #heartbeat: NodeJS.Timeout | undefined
  #isAlive = true
  #isOver = false

  constructor(webSocket: WebSocket, socket: Socket, stallMs: number) {
    this.#webSocket = webSocket
    this.#socket = socket
    this.#stallMs = stallMs
  }

  begin(stream: SandboxStream): void {
    this.#stream = stream
    this.#webSocket.on('message', (data, isBinary) => this.#onMessage(data as Buffer, isBinary))
    this.#webSocket.on('pong', () => {
      this.#isAlive = true
    })
    // Too large a message, or none that is of the protocol: ws closes with the code for it.
    this.#webSocket.on('error', () => undefined)
    this.#webSocket.once('close', () => {
      clearInterval(this.#heartbeat)
      clearTimeout(this.#stall)
      this.#isOver = true
      void stream.close()
    })
    this.#heartbeat = setInterval(() => this.#beat(), heartbeatMs)
  }

  send(event: StreamEvent): void {
    if (this.#isOver) return
    this.#webSocket.send(JSON.stringify(event))
    if (this.#socket.writableLength > mostBytes) void this.close(1013, 'too slow in reading')
    else if (this.#socket.writableLength > fullBytes) this.#wait()
  }

  room(): Promise<void> | null {
    return this.#isOver ? null : this.#room
  }

  holdInput(): () => void {
    if (this.#holds++ === 0) this.#webSocket.pause()
    let held = true
    return () => {
      if (!held) return
      held = false
      if (--this.#holds === 0) this.#webSocket.resume()
    }
  }

  /** Says why it ends, and ends. Resolves when what was to end with the stream has been ended. */
  async close(code: number, reason: string): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    clearInterval(this.#heartbeat)
    clearTimeout(this.#stall)
    this.#webSocket.close(code, reason)
    // A client that is not listened to could not agree to the end.
    this.#webSocket.resume()
    const farewell = setTimeout(() => this.#webSocket.terminate(), farewellMs)
    this.#webSocket.once('close', () => clearTimeout(farewell))
    const given = new Promise<void>((resolve) => setTimeout(resolve, farewellMs).unref())
    await Promise.race([this.#stream?.close(), given])
  }

  /** The client takes nothing for now: nothing more is read for it, nor from it. */
  #wait(): void {
    if (this.#room !== null) return
    const release = this.holdInput()
    this.#stall = setTimeout(() => void this.close(1013, 'too slow in reading'), this.#stallMs)
    this.#room = new Promise((resolve) => {
      const moved = () => {
        this.#socket.off('drain', moved)
        this.#socket.off('close', moved)
        clearTimeout(this.#stall)
        this.#room = null
        release()
        resolve()
      }
      this.#socket.on('drain', moved)
      this.#socket.on('close', moved)
    })
  }

  #beat(): void {
    // Whoever is not listened to cannot answer.
    if (!this.#isAlive && this.#holds === 0) {
      this.#webSocket.terminate()
      return
    }
    this.#isAlive = this.#holds > 0
    this.#webSocket.ping()
    if (this.#room === null) this.send({ type: 'heartbeat', time: new Date().toISOString() })
  }

  #onMessage(data: Buffer, isBinary: boolean): void {
    if (this.#isOver) return
    this.#isAlive = true
    let id: string | undefined
    try {
      if (isBinary)
        throw new ThawError('invalid_request', 'Messages are text.', { fix: 'Send JSON; with encoding=base64 data carries any bytes.' })
      const message = parseStrictJson(data)
      const given = (message as { id?: unknown } | null)?.id
      if (typeof given === 'string' && given.length <= 64) id = given
      const parsed = streamCommandSchema.safeParse(message)
      if (!parsed.success) {
        const issues = parsed.error.issues.map(({ path, message: text }) => ({ path: path.join('.'), message: text }))
        const first = issues[0]
        throw new ThawError(
          'invalid_request',
          `The message is not understood. ${first?.path ? `${first.path}: ` : ''}${first?.message ?? ''}`,
          {
            fix: 'Compare it with docs/sandboxes-stream.md.',
            details: { issues },
          },
        )
      }
      this.#stream?.receive(parsed.data)
    } catch (error) {
      this.send({ type: 'error', ...(id === undefined ? {} : { id }), ended: false, error: toThawError(error).toBody().error })
    }
  }
}
