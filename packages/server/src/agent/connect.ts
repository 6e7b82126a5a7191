import { type ErrorCode, ThawError } from '@thaw/protocol'

/**
 * The part of the Connect protocol (connectrpc.com, version 1) that agents speak: JSON messages, unary calls as plain
 * POSTs, streams as frames of one flag byte, four bytes of length (big-endian) and the message.
 */
export const streamType = 'application/connect+json'
const endOfStream = 0x02
const headBytes = 5
/** Largest message of a stream that is taken from a sandbox. Agents send at most 64 KiB of output at a time, in base64. */
const maxMessageBytes = 1024 * 1024

export function encodeFrame(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message), 'utf8')
  const frame = Buffer.allocUnsafe(headBytes + body.length)
  frame.writeUInt8(0, 0)
  frame.writeUInt32BE(body.length, 1)
  body.copy(frame, headBytes)
  return frame
}

/** Cuts a stream into its messages. Throws what the last frame says went wrong, and when the stream breaks off before it. */
export async function* decodeStream(stream: AsyncIterable<Buffer>, subject: 'file' | 'process'): AsyncGenerator<object> {
  const gathered = new Gathered()
  for await (const piece of stream) {
    let rest = gathered.add(piece)
    while (rest.length >= headBytes) {
      const length = rest.readUInt32BE(1)
      if (length > maxMessageBytes) throw new NotUnderstood('The agent of the sandbox sent a message that is too large.')
      if (rest.length < headBytes + length) break
      const flags = rest.readUInt8(0)
      const message = parseMessage(rest.subarray(headBytes, headBytes + length))
      rest = rest.subarray(headBytes + length)
      if ((flags & endOfStream) === 0) yield message
      else {
        const { error } = message as { error?: unknown }
        if (error !== undefined) throw fromConnect(error, subject)
        return
      }
    }
    gathered.keep(rest)
  }
  throw broken('The connection to the agent of the sandbox broke off.')
}

/** What is there of a message. However small the pieces are in which it comes, each byte is copied a few times only. */
class Gathered {
  #buffer: Buffer = Buffer.alloc(0)
  #length = 0

  /** All that is there. It is valid until the next call. */
  add(piece: Buffer): Buffer {
    if (this.#length === 0) return piece
    const length = this.#length + piece.length
    if (length > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(length, 2 * this.#buffer.length))
      this.#buffer.copy(larger, 0, 0, this.#length)
      this.#buffer = larger
    }
    piece.copy(this.#buffer, this.#length)
    this.#length = length
    return this.#buffer.subarray(0, length)
  }

  /** `rest`: the end of what `add` returned. */
  keep(rest: Buffer): void {
    if (rest.length > 0 && rest.length === this.#length) return
    this.#buffer = Buffer.from(rest)
    this.#length = rest.length
  }
}

/** What went wrong inside, by the names that Connect gives to errors. `error`: whatever an agent says. `subject`: what the call was about. */
export function fromConnect(error: unknown, subject: 'file' | 'process' = 'process'): ThawError {
  const codes = new Map<unknown, ErrorCode>([
    ['invalid_argument', subject === 'file' ? 'file_invalid' : 'invalid_request'],
    ['failed_precondition', subject === 'file' ? 'file_invalid' : 'invalid_request'],
    ['unauthenticated', 'invalid_request'],
    ['not_found', subject === 'file' ? 'file_not_found' : 'process_not_found'],
    ['permission_denied', 'file_forbidden'],
    ['already_exists', 'file_exists'],
    ['resource_exhausted', 'disk_full'],
    ['deadline_exceeded', 'timed_out'],
    ['unavailable', 'sandbox_unavailable'],
    ['canceled', 'cancelled'],
  ])
  const { code, message, details }: { code?: unknown; message?: unknown; details?: unknown } =
    typeof error === 'object' && error !== null ? error : {}
  const text = typeof message === 'string' && message !== '' ? message.slice(0, 1000) : 'The agent of the sandbox refused the call.'
  const named = typeof code === 'string' ? code.slice(0, 100) : 'unknown'
  const known = isCommandNotFound(details) ? 'command_not_found' : codes.get(code)
  return new ThawError(known ?? 'sandbox_unavailable', sentence(text), { details: { agent_code: named } })
}

/** Connect has one code for all wrong arguments; agents name this one by the type of a detail. */
function isCommandNotFound(details: unknown): boolean {
  return Array.isArray(details) && details.some((detail) => (detail as { type?: unknown } | null)?.type === 'thaw.agent.CommandNotFound')
}

/** An agent said what no agent says; another try will not help. */
export class NotUnderstood extends ThawError {
  constructor(message: string, cause?: unknown) {
    super('sandbox_unavailable', message, { cause, fix: 'Create the sandbox anew: what runs in it took the place of its agent.' })
  }
}

export function broken(message: string, cause?: unknown): ThawError {
  return new ThawError('sandbox_unavailable', message, { cause })
}

/** A JSON object. Throws `sandbox_unavailable` for anything else. */
export function parseMessage(bytes: Buffer): object {
  try {
    const message = JSON.parse(bytes.toString('utf8')) as unknown
    if (typeof message === 'object' && message !== null) return message
  } catch {
    // Falls through: whatever it is, it is not what an agent says.
  }
  throw new NotUnderstood('The agent of the sandbox sent something that is not a message.')
}

function sentence(text: string): string {
  const trimmed = text.trim()
  const start = trimmed.charAt(0).toUpperCase() + trimmed.slice(1)
  return /[.!?]$/.test(start) ? start : `${start}.`
}
