import { ThawError } from '@thaw/protocol'
import { describe, expect, test } from 'vitest'
import { parseStrictJson } from './strict-json.ts'

function refusal(body: string | Uint8Array): ThawError {
  try {
    parseStrictJson(body)
  } catch (error) {
    if (error instanceof ThawError) return error
    throw error
  }
  throw new Error('the body was accepted')
}

test.each([
  'null',
  ' 3.5e2 ',
  '"text"',
  '[]',
  '{}',
  '{"a":{"b":1},"b":[{"a":1},{"a":2}]}',
  '{"a":"\\"b\\":1","b":"}{","c":"\\\\"}',
  '[["a","a"],"a"]',
  '{"constructor":1,"prototype":2,"proto":{"prototype":{}}}',
  '{"k":"k","v":"k"}',
  '[-0,1e5,-1.25E-3,true,false,null,[[]],{},[{}]]',
  '{"":1,"\u2028":"\ud83d\ude00"}',
])('%s is parsed as JSON.parse does', (text) => {
  expect(parseStrictJson(text)).toEqual(JSON.parse(text))
  expect(parseStrictJson(Buffer.from(text))).toEqual(JSON.parse(text))
})

describe('refused', () => {
  test.each([
    ['{"a":1,"a":2}', 'the key "a" is there twice (line 1, column 8)'],
    ['{"a":1,"\\u0061":2}', 'is there twice'],
    ['{\n  "x": [1, {"b": 1,\n  "b": 2}]}', '(line 3, column 3)'],
    ['{"a":{"x":1,"y":{}},"a":2}', 'twice'],
    ['{"__proto__":1}', '__proto__'],
    ['[{"a":{"\\u005f_proto__":{}}}]', '__proto__'],
    ['{"a":{"constructor":{"x":1,"prototype":{}}}}', 'constructor.prototype'],
    ['', 'it ends too early (line 1, column 1)'],
    ['{"a":', 'ends too early'],
    ['[{"a":1}', 'ends too early'],
    ['"abc', 'a text has no end'],
    ['{"a":1} x', 'nothing more is expected here (line 1, column 9)'],
    ['{"a":1}{"a":1}', 'nothing more'],
    ['1 2', 'nothing more'],
    ['{"a":NaN}', 'a value is expected here (line 1, column 6)'],
    ['{"a" 1}', 'a colon is expected'],
    ["{'a':1}", 'a key is expected'],
    ['{"a":1,}', 'a key is expected'],
    ['[1,]', 'a value is expected here (line 1, column 4)'],
    ['[1 2]', 'a comma or end is expected'],
    ['[1}', 'a comma or end is expected'],
    ['{]', 'a key is expected'],
    ['}', 'a value is expected'],
    ['[01]', 'a comma or end is expected'],
    ['{\n "a": tru }', '(line 2, column 7)'],
    ['{"a\\x":1}', 'bad escape'],
    ['{"a":"\\x"}', 'bad escape or a control character (line 1, column 8)'],
    ['["a\u0001"]', 'bad escape or a control character (line 1, column 4)'],
    ['\ufeff{}', 'byte order mark'],
    ['\u0000', 'a value is expected'],
  ])('%j', (text, message) => {
    expect(refusal(text)).toMatchObject({ code: 'invalid_json', status: 400, message: expect.stringContaining(message) })
    expect(refusal(Buffer.from(text)).message).toContain(message)
  })

  test.each([[[0x22, 0xff, 0x22]], [[0x22, 0xc0, 0xaf, 0x22]], [[0x22, 0xed, 0xa0, 0x80, 0x22]], [[0x22, 0xe2, 0x82]]])(
    'bytes that are not UTF-8: %j',
    (bytes) => {
      expect(refusal(Uint8Array.from(bytes)).message).toContain('not UTF-8')
    },
  )

  test.each([
    ['arrays', '['.repeat(1e6) + ']'.repeat(1e6)],
    ['objects', '{"a":'.repeat(1e6)],
    ['one level more than allowed', '['.repeat(65) + ']'.repeat(65)],
  ])('depth: %s', (_, text) => {
    expect(refusal(text).message).toContain('nested deeper than 64 levels (line 1')
  })
})

test('whatever it accepts, JSON.parse reads the same; whatever JSON.parse refuses, it refuses', () => {
  const pieces = ['{', '}', '[', ']', ',', ':', '"a"', '"b"', '1', '-', 'null', ' ', '\\', '"', '0', '.5']
  // A small linear generator: the same texts in every run.
  let seed = 42
  const next = (limit: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2_147_483_648
    return Math.floor((seed / 2_147_483_648) * limit)
  }
  let accepted = 0
  for (let round = 0; round < 50_000; round++) {
    const text = Array.from({ length: 1 + next(7) }, () => pieces[next(pieces.length)]).join('')
    const outcome = (parse: (text: string) => unknown) => {
      try {
        return { value: parse(text) }
      } catch (error) {
        return { error }
      }
    }
    const ours = outcome(parseStrictJson)
    const theirs = outcome(JSON.parse)
    if ('value' in ours) accepted++
    if ('value' in ours) expect(theirs, text).toEqual(ours)
    else if ('value' in theirs) expect(String(ours.error), text).toContain('twice')
    else expect(String(ours.error), text).toContain('line 1')
  }
  expect(accepted).toBeGreaterThan(1000)
})

test('as deep as allowed is allowed', () => {
  expect(parseStrictJson('['.repeat(64) + ']'.repeat(64))).toBeInstanceOf(Array)
  expect(parseStrictJson('[[[]]]', { maxDepth: 3 })).toEqual([[[]]])
})

test('a body of 100 MiB with one large text takes about as long as decoding it', () => {
  const body = Buffer.from(`{"code":{"archive":"${'A'.repeat(100 * 1024 * 1024)}"}}`)
  const start = performance.now()
  parseStrictJson(body)
  // A third of a second here; per character it would be several. The rest is room for a loaded machine.
  expect(performance.now() - start).toBeLessThan(1500)
})

test('a text full of escapes or of quotes is not quadratic', () => {
  const start = performance.now()
  expect(parseStrictJson(`"${'\\\\'.repeat(1e6)}"`)).toHaveLength(1e6)
  expect(parseStrictJson(`"${'\\"'.repeat(1e6)}"`)).toHaveLength(1e6)
  expect(() => parseStrictJson(`"${'\\\\\\"'.repeat(1e6)}`)).toThrow(ThawError)
  expect(performance.now() - start).toBeLessThan(1500)
})
