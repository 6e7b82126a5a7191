import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { toThawError } from '@thaw/protocol'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Caller } from '../control/caller.ts'
import type { SandboxPorts } from '../control/sandboxes/ports.ts'
import { respondError } from './respond.ts'
import { readPort } from './sandbox-hosts.ts'

/** Says that the sender writes no more, as TCP does: a WebSocket can only end as a whole. */
const endMessage = 'end'
/** Clients cut what they send into pieces: a tunnel has no messages of its own. */
const maxMessageBytes = 1024 * 1024
const heartbeatMs = 15_000
/** How long a client may take to hear why its connection is closed. */
const farewellMs = 2000

/**
 * `/v1/sandboxes/{id}/tunnel/{port}`: one TCP connection to a listed port, over a WebSocket. Binary messages are its bytes;
 * the text `end` says that this side writes no more. Closed with 1000 when both have said so, 1011 when the connection inside
 * broke off.
 */
export class SandboxTunnels {
  readonly #ports: SandboxPorts
  readonly #handshake = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: maxMessageBytes,
  })
  readonly #open = new Set<WebSocket>()

  constructor(ports: SandboxPorts) {
    this.#ports = ports
  }

  /** `response` writes to `socket`, until the handshake is done: nobody listens inside is still an answer of HTTP. */
  async upgrade(
    caller: Caller,
    idOrName: string,
    port: string,
    request: IncomingMessage,
    response: ServerResponse,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    try {
      const use = await this.#ports.use(caller, idOrName, readPort(port))
      const stream = await use.connect().catch((error: unknown) => {
        use[Symbol.dispose]()
        throw error
      })
      // A handshake that is refused ends the socket; the sandbox stays awake until then.
      const end = () => {
        stream.destroy()
        use[Symbol.dispose]()
      }
      stream.on('error', () => stream.destroy())
      if (socket.destroyed) return end()
      socket.once('close', end)
      const tcp = socket as Socket
      response.detachSocket(tcp)
      tcp.setKeepAlive(true, heartbeatMs)
      this.#handshake.handleUpgrade(request, socket, head, (opened) => {
        this.#open.add(opened)
        opened.once('close', () => this.#open.delete(opened))
        join(opened, stream)
      })
    } catch (error) {
      if (response.socket === null) socket.destroy()
      else respondError(response, toThawError(error))
    }
  }

  /** Ends all tunnels. */
  close(): void {
    for (const opened of this.#open) leave(opened, 1001, 'the server is shutting down')
  }
}

/** Bytes go both ways, no faster than they are taken. */
function join(webSocket: WebSocket, stream: Duplex): void {
  let sent = false
  let received = false
  // For whatever stands between and ends silent connections. An answer is not waited for: a client whose own reader takes
  // nothing reads no pings either. Whether it still lives is known by TCP.
  const heartbeat = setInterval(() => webSocket.ping(), heartbeatMs)
  const bothEnded = () => {
    if (sent && received) leave(webSocket, 1000, '')
  }
  stream.on('data', (bytes: Buffer) => {
    stream.pause()
    webSocket.send(bytes, () => stream.resume())
  })
  stream.once('end', () => {
    sent = true
    webSocket.send(endMessage, bothEnded)
  })
  stream.once('close', () => {
    if (!(sent && received)) leave(webSocket, sent ? 1000 : 1011, 'the connection inside ended')
  })
  webSocket.on('message', (data, isBinary) => {
    if (isBinary) {
      if (!received && !stream.write(data as Buffer)) {
        webSocket.pause()
        stream.once('drain', () => webSocket.resume())
      }
    } else if (String(data) === endMessage) {
      received = true
      stream.end(bothEnded)
    } else leave(webSocket, 1008, 'messages are binary, or the text end')
  })
  // Too large a message, or none that is of the protocol: ws closes with the code for it.
  webSocket.on('error', () => undefined)
  webSocket.once('close', () => {
    clearInterval(heartbeat)
    stream.destroy()
  })
}

/** Says why it ends, and ends. */
function leave(webSocket: WebSocket, code: number, reason: string): void {
  if (webSocket.readyState === webSocket.CLOSED) return
  webSocket.close(code, reason)
  // A client that is not listened to could not agree to the end.
  webSocket.resume()
  const farewell = setTimeout(() => webSocket.terminate(), farewellMs)
  webSocket.once('close', () => clearTimeout(farewell))
}
