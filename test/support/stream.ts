import { once } from 'node:events'
import type { IncomingMessage } from 'node:http'
import type { StreamCommand, StreamEvent } from '@thaw/protocol'
import { type ClientOptions, WebSocket } from 'ws'

type EventOf<Type extends StreamEvent['type']> = Extract<StreamEvent, { type: Type }>

/** A client of `/v1/sandboxes/{id}/stream` that remembers all it hears. */
export class StreamClient implements Disposable {
  readonly socket: WebSocket
  readonly heard: StreamEvent[] = []
  readonly closed: Promise<{ code: number; reason: string }>
  #wake: () => void = () => undefined

  private constructor(socket: WebSocket) {
    this.socket = socket
    this.closed = once(socket, 'close').then(([code, reason]) => ({ code: Number(code), reason: String(reason) }))
    void this.closed.then(
      () => this.#wake(),
      () => undefined,
    )
    socket.on('error', () => undefined)
    socket.on('message', (data) => {
      this.heard.push(JSON.parse(String(data)) as StreamEvent)
      this.#wake()
    })
  }

  static open(url: string, id: string, query = '', options: ClientOptions = {}): Promise<StreamClient> {
    return StreamClient.openAt(url, `/v1/sandboxes/${id}/stream${query}`, options)
  }

  static async openAt(url: string, path: string, options: ClientOptions = {}): Promise<StreamClient> {
    const client = new StreamClient(new WebSocket(url.replace('http', 'ws') + path, { perMessageDeflate: false, ...options }))
    await once(client.socket, 'open')
    return client
  }

  /** The status of a handshake that is refused. */
  static async refused(url: string, path: string, options: ClientOptions = {}): Promise<number | undefined> {
    const socket = new WebSocket(url.replace('http', 'ws') + path, options)
    const [, answer] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
    answer.resume()
    return answer.statusCode
  }

  send(command: StreamCommand | object): void {
    this.socket.send(JSON.stringify(command))
  }

  /** The first event of this type that fits, which may have been heard already. Rejects when the connection ends without it. */
  async event<Type extends StreamEvent['type']>(type: Type, fits: Record<string, unknown> = {}): Promise<EventOf<Type>> {
    const wanted = Object.entries(fits)
    return (await this.until((heard) =>
      heard.find((event) => event.type === type && wanted.every(([name, value]) => event[name as keyof StreamEvent] === value)),
    )) as EventOf<Type>
  }

  async until<Found>(look: (heard: StreamEvent[]) => Found | undefined): Promise<Found> {
    for (;;) {
      const found = look(this.heard)
      if (found !== undefined) return found
      if (this.socket.readyState === WebSocket.CLOSED) throw new Error(`closed without it: ${JSON.stringify(this.heard).slice(-2000)}`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** All that an id has written so far. */
  text(id: string, type: 'stdout' | 'stderr' = 'stdout'): string {
    return this.heard.map((event) => (event.type === type && event.id === id ? event.data : '')).join('')
  }

  bytes(id: string): Buffer {
    return Buffer.concat(
      this.heard.map((event) => (event.type === 'stdout' && event.id === id ? Buffer.from(event.data, 'base64') : Buffer.alloc(0))),
    )
  }

  /** Waits until an id has written this. */
  async writes(id: string, text: string): Promise<void> {
    await this.until(() => (this.text(id).includes(text) ? true : undefined))
  }

  [Symbol.dispose](): void {
    this.socket.terminate()
  }
}
