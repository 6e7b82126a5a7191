/**
 * The frame codec of the runtime protocol (docs/runtime-protocol.md).
 *
 *     frame = u32 length · u8 type · u32 stream · payload          (big-endian)
 *
 * `length` counts everything after itself, so it is 5 + the bytes of the payload. Stream 0 is the instance itself;
 * every invocation has a stream of its own, numbered by the worker.
 */
export const frameTypes = {
  // worker → runtime
  load: 0x01,
  invoke: 0x02,
  body: 0x03,
  bodyEnd: 0x04,
  cancel: 0x05,
  hook: 0x06,
  ping: 0x07,
  // runtime → worker
  hello: 0x80,
  ready: 0x81,
  loadFailed: 0x82,
  result: 0x83,
  chunk: 0x84,
  end: 0x85,
  failed: 0x86,
  log: 0x87,
  hookDone: 0x88,
  pong: 0x89,
} as const

export type FrameType = (typeof frameTypes)[keyof typeof frameTypes]

export interface Frame {
  type: number
  stream: number
  payload: Buffer
}

export const protocolVersion = 1

/** A frame's payload may not be larger; larger bodies travel in several frames. Bounds what a hostile peer can make us hold. */
export const maxFramePayloadBytes = 1024 * 1024 + 64 * 1024
/** Bodies are cut into pieces of at most this size. */
export const bodyChunkBytes = 256 * 1024

const headerBytes = 9

export class FrameError extends Error {
  override readonly name = 'FrameError'
}

/** What comes before a payload of `size` bytes, for those who send the payload by itself. */
export function encodeFrameHead(type: FrameType, stream: number, size: number): Buffer {
  const head = Buffer.allocUnsafe(headerBytes)
  head.writeUInt32BE(size + 5, 0)
  head[4] = type
  head.writeUInt32BE(stream, 5)
  return head
}

export function encodeFrame(type: FrameType, stream: number, payload?: Uint8Array): Buffer {
  const size = payload?.byteLength ?? 0
  const frame = Buffer.allocUnsafe(headerBytes + size)
  frame.writeUInt32BE(size + 5, 0)
  frame[4] = type
  frame.writeUInt32BE(stream, 5)
  if (payload !== undefined) frame.set(payload, headerBytes)
  return frame
}

export function encodeJsonFrame(type: FrameType, stream: number, value: unknown): Buffer {
  const json = JSON.stringify(value)
  const size = Buffer.byteLength(json)
  const frame = Buffer.allocUnsafe(headerBytes + size)
  frame.writeUInt32BE(size + 5, 0)
  frame[4] = type
  frame.writeUInt32BE(stream, 5)
  frame.write(json, headerBytes)
  return frame
}

/** A frame whose payload is `u32 meta length · meta JSON · body` (invoke and result). */
export function encodeMetaFrame(type: FrameType, stream: number, meta: unknown, body: Uint8Array): Buffer {
  const json = JSON.stringify(meta)
  const metaBytes = Buffer.byteLength(json)
  const size = 4 + metaBytes + body.byteLength
  const frame = Buffer.allocUnsafe(headerBytes + size)
  frame.writeUInt32BE(size + 5, 0)
  frame[4] = type
  frame.writeUInt32BE(stream, 5)
  frame.writeUInt32BE(metaBytes, headerBytes)
  frame.write(json, headerBytes + 4)
  frame.set(body, headerBytes + 4 + metaBytes)
  return frame
}

/** Splits the payload of an invoke or result frame, without a look into its meta. Throws FrameError when it is malformed. */
export function splitMetaPayload(payload: Buffer): { meta: Buffer; body: Buffer } {
  if (payload.length < 4) throw new FrameError('payload too short for its meta')
  const metaBytes = payload.readUInt32BE(0)
  if (metaBytes > payload.length - 4) throw new FrameError('meta is longer than the payload')
  return { meta: payload.subarray(4, 4 + metaBytes), body: payload.subarray(4 + metaBytes) }
}

/** The same, with the meta parsed. */
export function decodeMetaPayload(payload: Buffer): { meta: unknown; body: Buffer } {
  const { meta, body } = splitMetaPayload(payload)
  return { meta: parseJson(meta), body }
}

export function parseJson(payload: Buffer): unknown {
  try {
    return JSON.parse(payload.toString('utf8'))
  } catch (cause) {
    throw new FrameError('payload is not JSON', { cause })
  }
}

/** Turns arriving bytes into frames. Holds at most one unfinished frame. */
export class FrameDecoder {
  #held: Buffer[] = []
  #heldBytes = 0
  readonly #maxPayloadBytes: number

  constructor(maxPayloadBytes: number = maxFramePayloadBytes) {
    this.#maxPayloadBytes = maxPayloadBytes
  }

  /** Calls `onFrame` for each frame that `bytes` completes. Throws FrameError for a frame that no peer may send. */
  push(bytes: Buffer, onFrame: (frame: Frame) => void): void {
    let data = bytes
    if (this.#heldBytes > 0) {
      this.#held.push(bytes)
      this.#heldBytes += bytes.length
      if (this.#heldBytes < this.#needed) return
      data = Buffer.concat(this.#held, this.#heldBytes)
      this.#held = []
      this.#heldBytes = 0
    }
    let offset = 0
    while (data.length - offset >= headerBytes) {
      const length = data.readUInt32BE(offset)
      if (length < 5 || length - 5 > this.#maxPayloadBytes) throw new FrameError(`frame of ${length} bytes`)
      const end = offset + 4 + length
      if (end > data.length) {
        this.#needed = 4 + length
        this.#hold(data.subarray(offset))
        return
      }
      onFrame({
        type: data[offset + 4] as number,
        stream: data.readUInt32BE(offset + 5),
        payload: data.subarray(offset + headerBytes, end),
      })
      offset = end
    }
    if (offset < data.length) {
      this.#needed = headerBytes
      this.#hold(data.subarray(offset))
    }
  }

  #needed = headerBytes

  #hold(rest: Buffer): void {
    this.#held.push(rest)
    this.#heldBytes = rest.length
  }
}
