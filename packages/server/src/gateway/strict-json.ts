import { ThawError } from '@thaw/protocol'

export interface StrictJsonOptions {
  /** How many arrays and objects may lie inside each other. */
  maxDepth?: number
}

/**
 * Parses the body of a control request. `JSON.parse` alone accepts what no honest client sends: duplicate keys, of
 * which two readers may see different ones, `__proto__` and `constructor.prototype`, which turn careless merging into
 * prototype pollution, and nesting without end. Throws `invalid_json`, with line and column of what is wrong.
 *
 * A scan without recursion goes first: it refuses these, and breaks of the grammar between texts, for which
 * `JSON.parse` names no position. Texts are jumped over with `indexOf`, so that an archive of 100 MiB in base64 costs
 * little more than decoding it; what is inside of them is left to `JSON.parse`.
 */
export function parseStrictJson(body: string | Uint8Array, options: StrictJsonOptions = {}): unknown {
  const text = typeof body === 'string' ? body : decode(body)
  if (text.startsWith('\ufeff')) throw invalid(text, 0, 'there is a byte order mark in front of the value')
  scan(text, options.maxDepth ?? 64)
  try {
    return JSON.parse(text)
  } catch (cause) {
    // Bad escapes and control characters, for which the engine names the position.
    const position = cause instanceof Error ? /at position (\d+)/.exec(cause.message)?.[1] : undefined
    throw invalid(text, Number(position ?? 0), 'a text holds a bad escape or a control character', cause)
  }
}

// ignoreBOM keeps the mark in the text, where it is then refused.
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

function decode(body: Uint8Array): string {
  try {
    return decoder.decode(body)
  } catch (cause) {
    throw new ThawError('invalid_json', 'The body is not valid JSON: it is not UTF-8.', { cause })
  }
}

/** An open object or array. `keys` is null for arrays. `key` is the one that the next value belongs to. */
interface Level {
  keys: Set<string> | null
  key: string | null
}

/** What may come next. `first…`: or the end of the array or object that was just opened. */
type Expected = 'value' | 'first value' | 'key' | 'first key' | 'colon' | 'comma or end'

const literal = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null/y

function scan(text: string, maxDepth: number): void {
  const levels: Level[] = []
  let expected: Expected = 'value'
  const unexpected = (at: number) => {
    const wanted = expected === 'comma or end' && levels.length === 0 ? 'nothing more' : `a ${expected.replace('first ', '')}`
    return invalid(text, at, `${wanted} is expected here`)
  }
  for (let at = 0; at < text.length; at++) {
    const character = text[at]
    switch (character) {
      case ' ':
      case '\n':
      case '\r':
      case '\t':
        break
      case '"': {
        const isKey: boolean = expected === 'key' || expected === 'first key'
        if (!isKey && expected !== 'value' && expected !== 'first value') throw unexpected(at)
        const end = endOfString(text, at)
        if (end < 0) throw invalid(text, at, 'a text has no end')
        if (isKey) takeKey(text, at, end, levels)
        expected = isKey ? 'colon' : 'comma or end'
        at = end
        break
      }
      case '{':
      case '[':
        if (expected !== 'value' && expected !== 'first value') throw unexpected(at)
        if (levels.length >= maxDepth) throw invalid(text, at, `it is nested deeper than ${maxDepth} levels`)
        levels.push({ keys: character === '{' ? new Set() : null, key: null })
        expected = character === '{' ? 'first key' : 'first value'
        break
      case '}':
      case ']': {
        const isObject = levels.at(-1)?.keys != null
        const first = isObject ? 'first key' : 'first value'
        if (levels.length === 0 || isObject !== (character === '}') || (expected !== first && expected !== 'comma or end'))
          throw unexpected(at)
        levels.pop()
        expected = 'comma or end'
        break
      }
      case ':':
        if (expected !== 'colon') throw unexpected(at)
        expected = 'value'
        break
      case ',':
        if (expected !== 'comma or end' || levels.length === 0) throw unexpected(at)
        expected = levels.at(-1)?.keys == null ? 'value' : 'key'
        break
      default:
        literal.lastIndex = at
        if ((expected !== 'value' && expected !== 'first value') || !literal.test(text)) throw unexpected(at)
        at = literal.lastIndex - 1
        expected = 'comma or end'
    }
  }
  if (expected !== 'comma or end' || levels.length > 0) throw invalid(text, text.length, 'it ends too early')
}

/** Index of the closing quote of the text that opens at `open`, or -1. */
function endOfString(text: string, open: number): number {
  let end = open
  do {
    end = text.indexOf('"', end + 1)
    if (end < 0) return -1
  } while (isEscaped(text, end))
  return end
}

/** A quote is escaped by an odd number of backslashes before it. */
function isEscaped(text: string, quote: number): boolean {
  let backslashes = 0
  while (text[quote - 1 - backslashes] === '\\') backslashes++
  return backslashes % 2 === 1
}

function takeKey(text: string, open: number, end: number, levels: Level[]): void {
  const level = levels.at(-1)
  if (level === undefined) return
  const raw = text.slice(open + 1, end)
  const key = raw.includes('\\') ? unescapeKey(text, open, end) : raw
  if (key === '__proto__') throw invalid(text, open, 'the key __proto__ is not allowed')
  if (key === 'prototype' && levels.at(-2)?.key === 'constructor') {
    throw invalid(text, open, 'the key constructor.prototype is not allowed')
  }
  if (level.keys?.has(key)) throw invalid(text, open, `the key ${JSON.stringify(key.slice(0, 100))} is there twice`)
  level.keys?.add(key)
  level.key = key
}

/** `"\u0061"` and `"a"` are the same key. */
function unescapeKey(text: string, open: number, end: number): string {
  try {
    return String(JSON.parse(text.slice(open, end + 1)))
  } catch (cause) {
    throw invalid(text, open, 'a key holds a bad escape', cause)
  }
}

/** Line and column count from 1; a column is one UTF-16 unit, as in editors. */
function invalid(text: string, at: number, what: string, cause?: unknown): ThawError {
  let line = 1
  let start = 0
  for (let next = text.indexOf('\n'); next >= 0 && next < at; next = text.indexOf('\n', start)) {
    line++
    start = next + 1
  }
  const column = at - start + 1
  return new ThawError('invalid_json', `The body is not valid JSON: ${what} (line ${line}, column ${column}).`, {
    details: { line, column },
    cause,
  })
}
