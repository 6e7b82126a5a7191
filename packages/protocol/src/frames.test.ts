import { describe, expect, test } from 'vitest'
import {
  decodeMetaPayload,
  encodeFrame,
  encodeJsonFrame,
  encodeMetaFrame,
  type Frame,
  FrameDecoder,
  FrameError,
  frameTypes,
  maxFramePayloadBytes,
  parseJson,
} from './frames.ts'

function decodeAll(chunks: Iterable<Buffer>, decoder = new FrameDecoder()): Frame[] {
  const frames: Frame[] = []
  for (const chunk of chunks) decoder.push(chunk, (frame) => frames.push({ ...frame, payload: Buffer.from(frame.payload) }))
  return frames
}

/** A small linear generator: the same splits in every run. */
function randomNumbers(seed: number): (limit: number) => number {
  let state = seed
  return (limit) => {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    return Math.floor((state / 2_147_483_648) * limit)
  }
}

function* splitAt(bytes: Buffer, sizes: () => number): Generator<Buffer> {
  for (let offset = 0; offset < bytes.length; ) {
    const size = sizes()
    yield bytes.subarray(offset, offset + size)
    offset += size
  }
}

const header = (length: number, type = 0x01, stream = 0) => {
  const bytes = Buffer.alloc(9)
  bytes.writeUInt32BE(length, 0)
  bytes[4] = type
  bytes.writeUInt32BE(stream, 5)
  return bytes
}

describe('what is encoded', () => {
  test('has the form of docs/runtime-protocol.md', () => {
    expect(encodeFrame(frameTypes.body, 0x01020304, Buffer.from('ab')).toString('hex')).toBe('00000007' + '03' + '01020304' + '6162')
    expect(encodeFrame(frameTypes.bodyEnd, 1).toString('hex')).toBe('00000005' + '04' + '00000001')
  })

  test.each(Object.entries(frameTypes))('comes back: %s', (_, type) => {
    const payload = Buffer.from([0, 255, 1, 128])
    expect(decodeAll([encodeFrame(type, 4_294_967_295, payload)])).toEqual([{ type, stream: 4_294_967_295, payload }])
  })

  test('JSON comes back, counted in bytes and not in letters', () => {
    const value = { text: 'ä€😀\u2028', list: [1, null] }
    const [frame] = decodeAll([encodeJsonFrame(frameTypes.load, 0, value)])
    expect(parseJson(frame?.payload ?? Buffer.alloc(0))).toEqual(value)
  })

  test('meta and body come back, the body as it was', () => {
    const body = Buffer.from([0, 1, 2, 255])
    const [frame] = decodeAll([encodeMetaFrame(frameTypes.invoke, 7, { id: 'ä' }, body)])
    const decoded = decodeMetaPayload(frame?.payload ?? Buffer.alloc(0))
    expect(decoded.meta).toEqual({ id: 'ä' })
    expect(decoded.body.equals(body)).toBe(true)
  })
})

describe('however the bytes are cut', () => {
  const payloads = [0, 1, 8, 9, 10, 255, 4096, 70_000].map((size, index) => Buffer.alloc(size, index))
  const wire = Buffer.concat(payloads.map((payload, index) => encodeFrame(frameTypes.chunk, index, payload)))
  const check = (frames: Frame[]) => {
    expect(frames.map((frame) => frame.stream)).toEqual(payloads.map((_, index) => index))
    for (const [index, frame] of frames.entries()) expect(frame.payload.equals(payloads[index] ?? Buffer.alloc(0))).toBe(true)
  }

  test.each([1, 2, 3, 4, 5, 8, 9, 10, 11, 1000, wire.length])('in pieces of %i', (size) => {
    check(decodeAll(splitAt(wire, () => size)))
  })

  test('at random', () => {
    const random = randomNumbers(7)
    for (let round = 0; round < 200; round++) check(decodeAll(splitAt(wire, () => 1 + random(round % 2 === 0 ? 20 : 30_000))))
  })

  test('with empty pieces in between', () => {
    check(decodeAll([...splitAt(wire, () => 3)].flatMap((piece) => [Buffer.alloc(0), piece, Buffer.alloc(0)])))
  })

  test('an unfinished frame is not given out', () => {
    const frame = encodeFrame(frameTypes.result, 1, Buffer.alloc(100))
    expect(decodeAll([frame.subarray(0, -1)])).toEqual([])
  })
})

describe('hostile input', () => {
  test.each([0, 1, 4])('a length of %i, too short for type and stream, is refused', (length) => {
    expect(() => decodeAll([header(length)])).toThrow(FrameError)
  })

  test.each([maxFramePayloadBytes + 6, 0x7fffffff, 0x80000000, 0xffffffff])(
    'a length of %i is refused as soon as the header is there',
    (length) => {
      expect(() => decodeAll([header(length)])).toThrow(FrameError)
      expect(() => decodeAll(splitAt(header(length), () => 1))).toThrow(FrameError)
    },
  )

  test('the largest frame is taken', () => {
    const [frame] = decodeAll([encodeFrame(frameTypes.chunk, 1, Buffer.alloc(maxFramePayloadBytes))])
    expect(frame?.payload.length).toBe(maxFramePayloadBytes)
  })

  test('the limit can be lower', () => {
    const frame = encodeFrame(frameTypes.chunk, 1, Buffer.alloc(11))
    expect(() => decodeAll([frame], new FrameDecoder(10))).toThrow(FrameError)
    expect(decodeAll([frame], new FrameDecoder(11))).toHaveLength(1)
  })

  test.each(['', '{', 'NaN', '\u0000', '{"a":1}x'])('a payload that is not JSON is refused: %j', (text) => {
    expect(() => parseJson(Buffer.from(text))).toThrow(FrameError)
  })

  test.each<[string, Buffer]>([
    ['nothing', Buffer.alloc(0)],
    ['three bytes', Buffer.alloc(3)],
    ['meta longer than the payload', Buffer.from([0, 0, 0, 5, 0x7b, 0x7d])],
    ['the largest length', Buffer.from([255, 255, 255, 255, 0x7b, 0x7d])],
    ['meta that is not JSON', Buffer.from([0, 0, 0, 1, 0x7b, 0x7d])],
    ['no meta', Buffer.from([0, 0, 0, 0])],
  ])('a meta payload is refused: %s', (_, payload) => {
    expect(() => decodeMetaPayload(payload)).toThrow(FrameError)
  })

  test('noise is either frames or a refusal, never anything else', () => {
    const random = randomNumbers(99)
    for (let round = 0; round < 2000; round++) {
      const noise = Buffer.from(Array.from({ length: random(64) }, () => (random(3) === 0 ? random(256) : 0)))
      try {
        for (const frame of decodeAll(splitAt(noise, () => 1 + random(8)))) expect(frame.payload.length).toBeLessThanOrEqual(noise.length)
      } catch (error) {
        expect(error).toBeInstanceOf(FrameError)
      }
    }
  })
})
