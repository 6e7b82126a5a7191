import { stripVTControlCharacters, styleText } from 'node:util'
import { ThawError } from '@thaw/protocol'
import { type DestinationStream, destination, type Logger, pino } from 'pino'

export type { Logger } from 'pino'

export interface LoggerOptions {
  level: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent'
  /** Where lines go. Default: stderr. */
  destination?: DestinationStream
  /** Lines for people instead of JSON. Default: when stderr is a terminal. */
  pretty?: boolean
}

/**
 * The log of the server: JSON lines on stderr, or one readable line each on a terminal. What belongs to a request is
 * logged by `log.child({ request_id })`. Errors go under `err`. Names that hold secrets, and credentials in URLs,
 * wherever they stand, do not come out.
 */
export function createLogger(options: LoggerOptions): Logger {
  // Written at once: what a server said before it died is what one wants to read.
  const lines = options.destination ?? destination({ fd: 2, sync: true })
  const pretty = options.pretty ?? (options.destination === undefined && process.stderr.isTTY)
  return pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      serializers: { err: describeError },
      redact: { paths: secretNames.flatMap((name) => [name, `*.${name}`, `*.*.${name}`]), censor: '***' },
      hooks: { streamWrite: (line) => line.replace(urlCredentials, '://***@') },
    },
    pretty ? { write: (line) => lines.write(prettyLine(line)) } : lines,
  )
}

const secretNames = ['authorization', 'cookie', 'env', 'password', 'secret', 'token', 'api_key']

const urlCredentials = /:\/\/[^\s/@"\\]+@/g

function describeError(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  const code = (error as { code?: unknown }).code
  return {
    type: error.name,
    ...(code === undefined ? {} : { code }),
    message: error.message,
    ...(error instanceof ThawError && error.details !== undefined ? { details: error.details } : {}),
    stack: error.stack,
    ...(error.cause === undefined ? {} : { cause: describeError(error.cause) }),
  }
}

const colours = { trace: 'gray', debug: 'gray', info: 'green', warn: 'yellow', error: 'red', fatal: 'red' } as const

/** `12:34:56.789 warn  message key=value`, from a line of JSON. */
export function prettyLine(json: string): string {
  const { time, level, msg, err, ...fields } = JSON.parse(json) as Record<string, unknown>
  const colour = colours[level as keyof typeof colours] ?? 'white'
  const parts = Object.entries(fields).map(([key, value]) => `${key}=${typeof value === 'string' ? quoted(value) : JSON.stringify(value)}`)
  if (err !== undefined) parts.push(errorText(err))
  const clock = styleText('gray', String(time).slice(11, 23))
  return `${clock} ${styleText(colour, String(level).padEnd(5))} ${printable(String(msg ?? ''))} ${printable(parts.join(' '))}`
    .trimEnd()
    .concat('\n')
}

/** The chain of causes; where the code of an error says the same as its message begins with, once is enough. */
function errorText(error: unknown): string {
  const parts: string[] = []
  for (let at = error as { code?: unknown; message?: unknown; cause?: unknown } | undefined; at != null; at = at.cause as typeof at) {
    const code = at.code === undefined ? '' : `${String(at.code)}: `
    parts.push(typeof at === 'object' ? `${code}${String(at.message)}` : String(at))
  }
  return parts.join(' ← ')
}

function quoted(value: string): string {
  return /^[\w./:@-]+$/.test(value) ? value : JSON.stringify(value)
}

/** Some of it was written by code that nobody trusts: it must not drive the terminal. */
function printable(text: string): string {
  return stripVTControlCharacters(text).replace(/\p{Cc}+/gu, ' ')
}
