import { type ErrorCode, ThawError } from '@thaw/protocol'

/**
 * The part of the Connect protocol (connectrpc.com, version 1) that agents speak: JSON messages, unary calls as plain
 * POSTs, streams as frames of one flag byte, four bytes of length (big-endian) and the message.
 */
export const streamType = 'application/connect+json'
const endOfStream = 0x02
const headBytes = 5
/** Largest message of a stream that is taken from a sandbox. */
const maxMessageBytes = 16 * 1024 * 1024

export function encodeFrame(message: unknown): Buffer {
  const body = Buffer.from(JSON.stringify(message), 'utf8')
  const frame = Buffer.allocUnsafe(headBytes + body.length)
  frame.writeUInt8(0, 0)
  frame.writeUInt32BE(body.length, 1)
  body.copy(frame, headBytes)
  return frame
}

/** Cuts a stream into its messages. Throws what the last frame says went wrong, and when the stream breaks off before it. */
export async function* decodeStream(stream: AsyncIterable<Buffer>, subject: 'file' | 'process'): AsyncGenerator<unknown> {
  let rest: Buffer = Buffer.alloc(0)
  for await (const piece of stream) {
    rest = rest.length === 0 ? piece : Buffer.concat([rest, piece])
    while (rest.length >= headBytes) {
      const length = rest.readUInt32BE(1)
      if (length > maxMessageBytes) throw broken('The agent of the sandbox sent a message that is too large.')
      if (rest.length < headBytes + length) break
      const flags = rest.readUInt8(0)
      const message = parse(rest.subarray(headBytes, headBytes + length))
      rest = rest.subarray(headBytes + length)
      if ((flags & endOfStream) === 0) yield message
      else {
        const { error } = message as { error?: ConnectError }
        if (error !== undefined) throw fromConnect(error, subject)
        return
      }
    }
  }
  throw broken('The connection to the agent of the sandbox broke off.')
}

export interface ConnectError {
  code?: string
  message?: string
}

/** What went wrong inside, by the names that Connect gives to errors. `subject`: what the call was about. */
export function fromConnect(error: ConnectError, subject: 'file' | 'process' = 'process'): ThawError {
  const codes: Record<string, ErrorCode> = {
    invalid_argument: subject === 'file' ? 'file_invalid' : 'invalid_request',
    failed_precondition: subject === 'file' ? 'file_invalid' : 'invalid_request',
    unauthenticated: 'invalid_request',
    not_found: subject === 'file' ? 'file_not_found' : 'process_not_found',
    permission_denied: 'file_forbidden',
    already_exists: 'file_exists',
    resource_exhausted: 'disk_full',
    deadline_exceeded: 'timed_out',
    unavailable: 'sandbox_unavailable',
    canceled: 'cancelled',
  }
  const code = codes[error.code ?? ''] ?? 'sandbox_unavailable'
  const message = typeof error.message === 'string' ? error.message.slice(0, 1000) : 'The agent of the sandbox refused the call.'
  return new ThawError(code, sentence(message), { details: { agent_code: String(error.code ?? 'unknown') } })
}

export function broken(message: string, cause?: unknown): ThawError {
  return new ThawError('sandbox_unavailable', message, { cause })
}

function parse(bytes: Buffer): unknown {
  try {
    const message = JSON.parse(bytes.toString('utf8')) as unknown
    if (typeof message === 'object' && message !== null) return message
  } catch {
    // Falls through: whatever it is, it is not what an agent says.
  }
  throw broken('The agent of the sandbox sent something that is not a message.')
}

function sentence(text: string): string {
  const trimmed = text.trim()
  const start = trimmed.charAt(0).toUpperCase() + trimmed.slice(1)
  return /[.!?]$/.test(start) ? start : `${start}.`
}
