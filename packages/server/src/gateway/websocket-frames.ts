import { randomBytes } from 'node:crypto'

/** What one direction of a WebSocket lets through. */
export interface Passage {
  /** May be sent on. */
  bytes: Buffer
  /** A message has become larger than allowed: nothing from its last frame on was let through. */
  tooLarge: boolean
}

const nothing = Buffer.alloc(0)

/**
 * Watches one direction of a WebSocket (RFC 6455, 5.2) for the size of its messages: all frames of one together, as they
 * are sent, so compressed where the ends agreed on that. Payloads are not looked at, and nothing is held back but the
 * beginning of a head (13 bytes), so that what was let through ends between two frames or within a payload.
 */
export class WebSocketFrames {
  readonly #maxMessageBytes: number
  #head: Buffer = nothing
  /** Of the payload of the current frame. */
  #bytesLeft = 0
  #messageBytes = 0
  #stopped = false

  constructor(maxMessageBytes: number) {
    this.#maxMessageBytes = maxMessageBytes
  }

  /** What was let through ends within a frame: no other frame may follow yet. */
  get isWithinFrame(): boolean {
    return this.#bytesLeft > 0
  }

  /** Lets through what belongs to the current frame, and no further one. */
  stop(): void {
    this.#stopped = true
  }

  push(bytes: Buffer): Passage {
    const data = this.#head.length === 0 ? bytes : Buffer.concat([this.#head, bytes])
    this.#head = nothing
    let offset = 0
    for (;;) {
      const piece = Math.min(this.#bytesLeft, data.length - offset)
      offset += piece
      this.#bytesLeft -= piece
      if (offset === data.length || this.#stopped) break
      const head = readHead(data, offset)
      if (head === null) {
        this.#head = data.subarray(offset)
        break
      }
      if (!head.isControl) this.#messageBytes += head.payloadBytes
      if (this.#messageBytes > this.#maxMessageBytes || head.payloadBytes > this.#maxMessageBytes) {
        this.#stopped = true
        return { bytes: data.subarray(0, offset), tooLarge: true }
      }
      if (head.isLast && !head.isControl) this.#messageBytes = 0
      offset += head.headBytes
      this.#bytesLeft = head.payloadBytes
    }
    return { bytes: data.subarray(0, offset), tooLarge: false }
  }
}

/** Null: the head is not complete yet. */
function readHead(data: Buffer, offset: number) {
  if (data.length < offset + 2) return null
  const first = data[offset] as number
  const second = data[offset + 1] as number
  const short = second & 0x7f
  const lengthBytes = short === 126 ? 2 : short === 127 ? 8 : 0
  const headBytes = 2 + lengthBytes + (second & 0x80 ? 4 : 0)
  if (data.length < offset + headBytes) return null
  const payloadBytes =
    lengthBytes === 0 ? short : lengthBytes === 2 ? data.readUInt16BE(offset + 2) : Number(data.readBigUInt64BE(offset + 2))
  return { headBytes, payloadBytes, isLast: (first & 0x80) !== 0, isControl: (first & 0x08) !== 0 }
}

/** A close frame (RFC 6455, 5.5.1). What goes to a server is masked. `reason` has at most 123 bytes. */
export function closeFrame(code: number, reason: string, masked: boolean): Buffer {
  const payload = Buffer.alloc(2 + Buffer.byteLength(reason))
  payload.writeUInt16BE(code, 0)
  payload.write(reason, 2)
  if (!masked) return Buffer.concat([Buffer.from([0x88, payload.length]), payload])
  const mask = randomBytes(4)
  const hidden = payload.map((byte, index) => byte ^ (mask[index % 4] as number))
  return Buffer.concat([Buffer.from([0x88, 0x80 | payload.length]), mask, hidden])
}
