/** The frame codec of docs/runtime-protocol.md: `u32 length · u8 type · u32 stream · payload`, big-endian. */
export const frameTypes = {
  load: 0x01,
  invoke: 0x02,
  body: 0x03,
  bodyEnd: 0x04,
  cancel: 0x05,
  hook: 0x06,
  ping: 0x07,
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
}

/** Bodies travel in pieces of at most this size. */
export const pieceBytes = 256 * 1024

const headerBytes = 9
const maxPayloadBytes = 1024 * 1024 + 64 * 1024

// User code may replace globals after it is loaded; what carries its answers must not depend on that.
const { allocUnsafe, byteLength, concat } = Buffer
const { stringify } = JSON

function begin(type, stream, size) {
  const frame = allocUnsafe(headerBytes + size)
  frame.writeUInt32BE(size + 5, 0)
  frame[4] = type
  frame.writeUInt32BE(stream, 5)
  return frame
}

/** @param {string | Uint8Array} [payload] text goes out as UTF-8 */
export function encodeFrame(type, stream, payload = '') {
  if (typeof payload !== 'string') {
    const frame = begin(type, stream, payload.byteLength)
    frame.set(payload, headerBytes)
    return frame
  }
  const frame = begin(type, stream, byteLength(payload))
  frame.write(payload, headerBytes)
  return frame
}

export function encodeJsonFrame(type, stream, value) {
  return encodeFrame(type, stream, stringify(value))
}

/** @param {Buffer} meta JSON @param {string | Uint8Array} body */
export function encodeResultFrame(stream, meta, body) {
  const isText = typeof body === 'string'
  const bodyStart = headerBytes + 4 + meta.length
  const frame = begin(frameTypes.result, stream, 4 + meta.length + (isText ? byteLength(body) : body.byteLength))
  frame.writeUInt32BE(meta.length, headerBytes)
  frame.set(meta, headerBytes + 4)
  if (isText) frame.write(body, bodyStart)
  else frame.set(body, bodyStart)
  return frame
}

/** @param {1 | 2} source */
export function encodeLogFrame(stream, source, text) {
  const frame = begin(frameTypes.log, stream, 1 + byteLength(text))
  frame[headerBytes] = source
  frame.write(text, headerBytes + 1)
  return frame
}

/** Returns a function that takes arriving bytes and calls `onFrame(type, stream, payload)` for each frame they complete. */
export function frameDecoder(onFrame) {
  let held = []
  let heldBytes = 0
  let needed = headerBytes

  return (bytes) => {
    let data = bytes
    if (heldBytes > 0) {
      held.push(bytes)
      heldBytes += bytes.length
      if (heldBytes < needed) return
      data = concat(held, heldBytes)
      held = []
      heldBytes = 0
    }
    let offset = 0
    needed = headerBytes
    while (data.length - offset >= headerBytes) {
      const length = data.readUInt32BE(offset)
      if (length < 5 || length - 5 > maxPayloadBytes) throw new Error(`A frame of ${length} bytes is against the protocol.`)
      const end = offset + 4 + length
      if (end > data.length) {
        needed = 4 + length
        break
      }
      onFrame(data[offset + 4], data.readUInt32BE(offset + 5), data.subarray(offset + headerBytes, end))
      offset = end
    }
    if (offset < data.length) {
      held.push(data.subarray(offset))
      heldBytes = data.length - offset
    }
  }
}
