import { type StreamEvent, ThawError } from '@thaw/protocol'
import { errorOfBody } from '../failures.ts'
import type { Http } from '../http.ts'
import { openSocket, type Socket } from './socket.ts'

/** Hears messages one after the other; while it has not finished with one, the next ones wait. */
export type Receiver = (message: StreamEvent) => void | Promise<void>

/** The server sends a heartbeat every 15 s; three that do not come mean that nobody is there. */
const silentMs = 50_000
/** Messages that wait for the receiver, in characters, before the other side is asked to hold back. */
const maxWaiting = 1024 * 1024

/** A WebSocket to the stream of one sandbox. It keeps the sandbox awake while it is open. */
export class StreamConnection {
  /** Resolves when all messages have been received: null after `close`, else with why the connection ended. */
  readonly closed: Promise<ThawError | null>
  readonly #url: string
  readonly #receive: Receiver
  readonly #hold: ((held: boolean) => void) | undefined
  readonly #waiting: string[] = []
  #waitingLength = 0
  #receiving = false
  #held = false
  #silence: ReturnType<typeof setTimeout> | undefined
  #socket: Socket | undefined
  #closing = false
  #ended: ThawError | null | undefined
  #resolveClosed: (error: ThawError | null) => void = () => undefined

  private constructor(url: string, receive: Receiver, hold: ((held: boolean) => void) | undefined) {
    this.#url = url
    this.#receive = receive
    this.#hold = hold
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
  }

  /** `hold` is to ask the server for a pause while the receiver is behind: the connection itself is always read, or it would count as dead. */
  static async open(
    http: Http,
    sandboxId: string,
    receive: Receiver,
    signal: AbortSignal | undefined,
    hold?: (held: boolean) => void,
  ): Promise<StreamConnection> {
    const target = http.socketTarget(`/v1/sandboxes/${encodeURIComponent(sandboxId)}/stream?encoding=base64`)
    const connection = new StreamConnection(http.url, receive, hold)
    connection.#socket = await openSocket(
      target,
      {
        onMessage: (text) => connection.#take(text),
        onSign: () => connection.#listen(),
        onClose: (code, reason) => connection.#onClose(code, reason),
      },
      signal,
    )
    connection.#listen()
    return connection
  }

  /** Resolves when the message has left this process. What is sent behind the end is lost. */
  async send(message: object): Promise<void> {
    await this.#socket?.send(JSON.stringify(message))
  }

  close(): void {
    this.#closing = true
    this.#socket?.close()
    // A peer that does not answer the closing is not waited for.
    const timer = setTimeout(() => this.#socket?.destroy(), 2000)
    void this.closed.then(() => clearTimeout(timer))
  }

  #take(text: string): void {
    if (this.#closing) return
    this.#waiting.push(text)
    this.#waitingLength += text.length
    if (!this.#receiving) void this.#drain()
    if (this.#waitingLength > maxWaiting) this.#setHeld(true)
  }

  async #drain(): Promise<void> {
    this.#receiving = true
    try {
      for (let text = this.#waiting.shift(); text !== undefined; text = this.#waiting.shift()) {
        this.#waitingLength -= text.length
        const result = this.#receive(parse(text))
        if (result !== undefined) await result
        if (this.#waitingLength <= maxWaiting / 2) this.#setHeld(false)
      }
    } catch (error) {
      this.#waiting.length = 0
      this.#ended ??= error instanceof ThawError ? error : new ThawError('internal', String(error), { cause: error })
      this.close()
    } finally {
      this.#receiving = false
    }
    if (this.#ended !== undefined && this.#socket === undefined) this.#resolveClosed(this.#ended)
  }

  #setHeld(held: boolean): void {
    if (this.#held === held || this.#closing) return
    this.#held = held
    this.#hold?.(held)
  }

  #listen(): void {
    clearTimeout(this.#silence)
    if (this.#socket === undefined) return
    this.#silence = setTimeout(() => {
      this.#ended ??= lost(this.#url, 'it was silent for too long')
      this.#socket?.destroy()
    }, silentMs)
  }

  #onClose(code: number, reason: string): void {
    clearTimeout(this.#silence)
    this.#socket = undefined
    this.#ended ??= this.#closing ? null : lost(this.#url, reason === '' ? `code ${code}` : `${reason}, code ${code}`)
    if (!this.#receiving) this.#resolveClosed(this.#ended)
  }
}

/** The error that a message carries. */
export function errorOf(message: Extract<StreamEvent, { type: 'error' }>): ThawError {
  return errorOfBody({ error: message.error }) ?? new ThawError('internal', 'The stream of the sandbox failed without saying why.')
}

function lost(url: string, why: string): ThawError {
  return new ThawError('unreachable', `The connection to ${url} broke: ${why}.`, {
    fix: 'Look whether the server and the sandbox still run. A process that was started without kill_on_close goes on: attach to its pid.',
  })
}

function parse(text: string): StreamEvent {
  try {
    return JSON.parse(text) as StreamEvent
  } catch (cause) {
    throw new ThawError('unreachable', 'The stream of the sandbox sent something that is not JSON.', {
      fix: 'Check that this address is a thaw server, and what stands between.',
      cause,
    })
  }
}
