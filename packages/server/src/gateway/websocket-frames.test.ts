import { expect, test } from 'vitest'
import { closeFrame, WebSocketFrames } from './websocket-frames.ts'

/** An unmasked or masked frame with a payload of so many bytes; opcode 0 goes on with a message. */
function frame(size: number, { last = true, opcode = 2, masked = false } = {}): Buffer {
  const first = (last ? 0x80 : 0) | opcode
  const mask = masked ? 0x80 : 0
  const head =
    size < 126
      ? Buffer.from([first, mask | size])
      : size < 65_536
        ? Buffer.from([first, mask | 126, size >> 8, size & 0xff])
        : Buffer.concat([Buffer.from([first, mask | 127]), Buffer.from(BigInt(size).toString(16).padStart(16, '0'), 'hex')])
  return Buffer.concat([head, Buffer.alloc(masked ? 4 : 0, 0xaa), Buffer.alloc(size, 0x81)])
}

test.each([1, 2, 3, 7, 100, 70_000])('frames of all sizes pass unchanged in pieces of %i bytes', (pieceBytes) => {
  const all = Buffer.concat([
    ...[0, 1, 125, 126, 300, 65_535, 65_536].flatMap((size) => [frame(size), frame(size, { masked: true })]),
    frame(10, { last: false }),
    frame(0, { opcode: 9 }),
    frame(10, { opcode: 0 }),
  ])
  const frames = new WebSocketFrames(65_536)
  const passed: Buffer[] = []
  for (let offset = 0; offset < all.length; offset += pieceBytes) {
    const passage = frames.push(all.subarray(offset, offset + pieceBytes))
    expect(passage.tooLarge).toBe(false)
    passed.push(passage.bytes)
  }
  expect(Buffer.concat(passed).equals(all)).toBe(true)
  expect(frames.isWithinFrame).toBe(false)
})

test.each([
  ['one frame', [frame(50)], frame(101)],
  ['a frame that says it is larger than any memory', [frame(50)], Buffer.from('827fffffffffffffffff', 'hex')],
  ['a continuation', [frame(60, { last: false }), frame(5, { opcode: 9 })], frame(41, { opcode: 0 })],
])('what is before a message that is too large passes, and nothing of it: %s', (_, before, large) => {
  const frames = new WebSocketFrames(100)
  const passage = frames.push(Buffer.concat([...before, large]))
  expect(passage.tooLarge).toBe(true)
  expect(passage.bytes.equals(Buffer.concat(before))).toBe(true)
  expect(frames.push(frame(1))).toMatchObject({ tooLarge: false, bytes: Buffer.alloc(0) })
})

test('messages are counted one by one', () => {
  const frames = new WebSocketFrames(100)
  for (let i = 0; i < 10; i++) {
    expect(frames.push(frame(60, { last: false })).tooLarge).toBe(false)
    expect(frames.push(frame(40, { opcode: 0 })).tooLarge).toBe(false)
  }
})

test('after stop the current frame goes on to its end', () => {
  const frames = new WebSocketFrames(100)
  const whole = frame(50)
  frames.push(whole.subarray(0, 20))
  frames.stop()
  expect(frames.isWithinFrame).toBe(true)
  const { bytes } = frames.push(Buffer.concat([whole.subarray(20), frame(10)]))
  expect(bytes.equals(whole.subarray(20))).toBe(true)
  expect(frames.isWithinFrame).toBe(false)
})

test('a close frame has its code and reason, masked towards a server', () => {
  expect(closeFrame(1009, 'why', false)).toEqual(Buffer.concat([Buffer.from([0x88, 5, 0x03, 0xf1]), Buffer.from('why')]))
  const masked = closeFrame(1009, 'why', true)
  expect(masked[1]).toBe(0x85)
  const mask = masked.subarray(2, 6)
  expect(Buffer.from(masked.subarray(6).map((byte, index) => byte ^ (mask[index % 4] as number)))).toEqual(
    closeFrame(1009, 'why', false).subarray(2),
  )
})
