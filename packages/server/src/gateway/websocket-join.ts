import type { Duplex } from 'node:stream'
import { closeFrame, WebSocketFrames } from './websocket-frames.ts'

export interface WebSocketLimits {
  /** Of all frames of a message together. */
  maxMessageBytes: number
  /** How long an end may take nothing while the other has more for it. */
  stallMs: number
}

/** One end of a WebSocket, and what it sent behind its part of the handshake. */
export interface WebSocketEnd {
  stream: Duplex
  early: Buffer
}

/** How long both ends have to hear why their WebSocket is closed. */
const farewellMs = 2000

/**
 * Lets a client and a server talk after their handshake. Whoever reads slowly makes the other write slowly; nothing is
 * kept but what fills the buffer of a socket. A message over the limit ends both sides with 1009, an end that takes
 * nothing for `stallMs` with 1013 (RFC 6455, 7.4.1). When one stream is closed the caller closes the other, unless
 * `isClosing`: then both end by themselves, because one that is cut off would not hear why.
 */
export function joinWebSocket(client: WebSocketEnd, server: WebSocketEnd, limits: WebSocketLimits): { readonly isClosing: boolean } {
  let isClosing = false
  const close = (code: number, reason: string) => {
    if (isClosing) return
    isClosing = true
    for (const { stream } of [client, server]) {
      const farewell = setTimeout(() => stream.destroy(), farewellMs)
      stream.once('close', () => clearTimeout(farewell))
    }
    up.close(code, reason)
    down.close(code, reason)
  }
  const up = new Direction(client.stream, server.stream, true, limits, close)
  const down = new Direction(server.stream, client.stream, false, limits, close)
  down.begin(server.early)
  up.begin(client.early)
  return {
    get isClosing() {
      return isClosing
    },
  }
}

class Direction {
  readonly #from: Duplex
  readonly #to: Duplex
  readonly #isMasked: boolean
  readonly #stallMs: number
  readonly #frames: WebSocketFrames
  readonly #onBreach: (code: number, reason: string) => void
  #stall: NodeJS.Timeout | undefined
  #farewell: Buffer | undefined
  /** What still comes is read and forgotten, so that the sender gets to hear why. */
  #isDeaf = false

  constructor(from: Duplex, to: Duplex, isMasked: boolean, limits: WebSocketLimits, onBreach: (code: number, reason: string) => void) {
    this.#from = from
    this.#to = to
    this.#isMasked = isMasked
    this.#stallMs = limits.stallMs
    this.#frames = new WebSocketFrames(limits.maxMessageBytes)
    this.#onBreach = onBreach
  }

  begin(early: Buffer): void {
    this.#to.on('drain', () => this.#moved())
    this.#to.once('close', () => clearTimeout(this.#stall))
    this.#from.once('end', () => this.#to.end())
    if (early.length > 0) this.#take(early)
    this.#from.on('data', (bytes: Buffer) => this.#take(bytes))
  }

  close(code: number, reason: string): void {
    this.#frames.stop()
    this.#farewell = closeFrame(code, reason, this.#isMasked)
    // Whoever takes nothing cannot be sent the rest of a frame, behind which the farewell would have its place.
    if (this.#stall !== undefined && this.#frames.isWithinFrame) this.#isDeaf = true
    clearTimeout(this.#stall)
    this.#sayFarewell()
    this.#from.resume()
  }

  #take(bytes: Buffer): void {
    if (this.#isDeaf) return
    const passage = this.#frames.push(bytes)
    if (passage.bytes.length > 0 && !this.#to.write(passage.bytes)) this.#wait()
    if (passage.tooLarge) this.#onBreach(1009, 'the message is larger than allowed')
    this.#sayFarewell()
  }

  #wait(): void {
    this.#from.pause()
    this.#stall ??= setTimeout(() => this.#onBreach(1013, 'too slow in reading'), this.#stallMs)
  }

  #moved(): void {
    clearTimeout(this.#stall)
    this.#stall = undefined
    this.#from.resume()
  }

  #sayFarewell(): void {
    if (this.#farewell === undefined || this.#isDeaf || this.#frames.isWithinFrame) return
    this.#isDeaf = true
    this.#to.end(this.#farewell)
  }
}
