import { ThawError } from '@thaw/protocol'

/**
 * The pieces of a body as they arrive. Leaving the loop early cancels the request, which is how the server learns that
 * nobody reads any more. `onBreak` turns a broken connection into the error to throw.
 */
export async function* piecesOf(body: ReadableStream<Uint8Array> | null, onBreak: (error: unknown) => unknown): AsyncGenerator<Uint8Array> {
  if (body === null) return
  const reader = body.getReader()
  let ended = false
  try {
    for (;;) {
      const piece = await reader.read().catch(async (error: unknown) => {
        ended = true
        throw await onBreak(error)
      })
      if (piece.done) {
        ended = true
        return
      }
      yield piece.value
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => undefined)
  }
}

/** Text of UTF-8 pieces; characters that are cut between pieces come whole. */
export async function* textOf(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  for await (const piece of pieces) {
    const text = decoder.decode(piece, { stream: true })
    if (text !== '') yield text
  }
  const rest = decoder.decode()
  if (rest !== '') yield rest
}

/** Lines without their ends; the last one also when it is not ended. */
export async function* linesOf(texts: AsyncIterable<string>): AsyncGenerator<string> {
  let held = ''
  for await (const text of texts) {
    const lines = (held + text).split('\n')
    held = lines.pop() ?? ''
    for (const line of lines) yield line.endsWith('\r') ? line.slice(0, -1) : line
  }
  if (held !== '') yield held
}

/** One value per line that is not empty (application/x-ndjson). */
export async function* jsonLinesOf<Value>(lines: AsyncIterable<string>): AsyncGenerator<Value> {
  for await (const line of lines) if (line.trim() !== '') yield parseLine<Value>(line)
}

export interface ServerEvent {
  event: string
  data: string
}

/** Server-sent events: what lies between empty lines; comments (keep-alives) give nothing. */
export async function* eventsOf(lines: AsyncIterable<string>): AsyncGenerator<ServerEvent> {
  let event = 'message'
  let data: string[] = []
  for await (const line of lines) {
    if (line === '') {
      if (data.length > 0) yield { event, data: data.join('\n') }
      event = 'message'
      data = []
      continue
    }
    const colon = line.indexOf(':')
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (field === 'data') data.push(value)
    else if (field === 'event') event = value
  }
}

export function parseLine<Value>(line: string): Value {
  try {
    return JSON.parse(line) as Value
  } catch (cause) {
    throw new ThawError('unreachable', `A line of the answer is not JSON: ${line.slice(0, 200)}`, {
      fix: 'Check that this address is a thaw server, and that the function answers with JSON lines.',
      cause,
    })
  }
}
