import { type IncomingMessage, ServerResponse, STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { type ThawError, toThawError } from '@thaw/protocol'
import type { Loan } from '../control/loan.ts'
import { answerHeaders, checkHeader, endToEnd } from './headers.ts'
import { joinWebSocket, type WebSocketLimits } from './websocket-join.ts'

/** An answer on a connection that left HTTP because of its Upgrade header; the connection ends behind it. */
export function answerUpgrade(request: IncomingMessage, socket: Duplex): ServerResponse {
  const response = new ServerResponse(request)
  response.shouldKeepAlive = false
  response.assignSocket(socket as Socket)
  response.once('finish', () => socket.end())
  // Whoever went away hears no answer; `close` follows.
  socket.on('error', () => socket.destroy())
  return response
}

export interface TunnelLimits extends WebSocketLimits {
  /** How long there may be no byte in either direction. */
  idleMs: number
}

/** A connection on which client and function speak WebSocket: frames pass both ways as they are. */
export class Tunnel {
  /** Both ends are connected. */
  joined = false
  readonly #client: Duplex
  readonly #early: Buffer
  readonly #limits: TunnelLimits
  #function: Duplex | undefined

  /** `early`: what the client sent behind its request. */
  constructor(client: Duplex, early: Buffer, limits: TunnelLimits) {
    this.#client = client
    this.#early = early
    this.#limits = limits
  }

  destroy(): void {
    this.#client.destroy()
    this.#function?.destroy()
  }

  /** The function agreed: `stream` is its end, `head` what it sent behind its answer. */
  join(loan: Loan, response: ServerResponse, answer: IncomingMessage, stream: Duplex, head: Buffer): void {
    const client = this.#client as Socket
    let text: string
    try {
      text = switching(loan, answer)
    } catch (error) {
      stream.destroy()
      loan.cancel(toThawError(error) as ThawError)
      return
    }
    this.joined = true
    this.#function = stream
    loan.answered(null)
    loan.last()
    response.detachSocket(client)
    client.write(text, 'latin1')
    // All bytes of both directions pass the client's end, so it knows how long there were none.
    client.setTimeout(this.#limits.idleMs, () => this.destroy())
    stream.on('error', () => stream.destroy())
    const joined = joinWebSocket({ stream: client, early: this.#early }, { stream, early: head }, this.#limits)
    let functionFirst = false
    stream.once('close', () => {
      functionFirst = !client.destroyed
      if (!joined.isClosing) client.destroySoon()
    })
    client.once('close', () => {
      if (!joined.isClosing) stream.destroy()
      loan.counted(client.bytesRead, client.bytesWritten)
      if (functionFirst) loan.hungUp()
      else loan.complete()
    })
    if (client.destroyed) {
      stream.destroy()
      loan.complete()
    }
  }
}

/** The head of a 101 answer. */
function switching(loan: Loan, answer: IncomingMessage): string {
  const headers = endToEnd(answer.rawHeaders)
  headers.push('Connection', 'Upgrade', 'Upgrade', answer.headers.upgrade ?? 'websocket')
  if (loan.info !== null) for (const [name, value] of Object.entries(answerHeaders(loan.info))) headers.push(name, String(value))
  let text = `HTTP/1.1 101 ${STATUS_CODES[101]}\r\n`
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i] as string
    const value = headers[i + 1] as string
    checkHeader(name, value)
    text += `${name}: ${value}\r\n`
  }
  return `${text}\r\n`
}
