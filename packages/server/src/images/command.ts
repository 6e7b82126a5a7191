import { spawn } from 'node:child_process'
import type { Readable } from 'node:stream'

export interface CommandOptions {
  timeoutMs: number
  signal?: AbortSignal | undefined
  cwd?: string
  /** Called with each whole line of stderr. */
  onLine?: (line: string) => void
  /** Takes stdout instead of collecting it; the command fails when the promise rejects. */
  consume?: (stdout: Readable) => Promise<void>
}

/** A program of the host that could not be started, failed, or took too long. */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  /** The end of what it printed to stderr. */
  readonly stderr: string
  /** The program is not installed. */
  readonly notFound: boolean

  constructor(program: string, what: string, stderr: string, notFound: boolean, cause?: unknown) {
    super(`${program}: ${what}`, { cause })
    this.stderr = stderr
    this.notFound = notFound
  }
}

const maxStdoutBytes = 16 * 1024 * 1024
const maxStderrBytes = 16 * 1024
const killAfterMs = 5_000

/**
 * Runs a program of the host to its end and gives its stdout. It runs in a process group of its own, which is ended as
 * a whole (SIGTERM, then SIGKILL) when the time is over or `signal` aborts, and dies with this process
 * (prctl PR_SET_PDEATHSIG). Rejects with CommandError, or with the reason of the signal.
 */
export async function runCommand(program: string, args: readonly string[], options: CommandOptions): Promise<string> {
  options.signal?.throwIfAborted()
  const child = spawn('setpriv', ['--pdeathsig', 'TERM', '--', program, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
  })
  const timeout = AbortSignal.timeout(options.timeoutMs)
  const stop = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout])
  let killer: NodeJS.Timeout | undefined
  const kill = () => {
    signalGroup(child.pid, 'SIGTERM')
    killer ??= setTimeout(() => signalGroup(child.pid, 'SIGKILL'), killAfterMs)
  }
  stop.addEventListener('abort', kill, { once: true })

  const stderr = collectLines(child.stderr, options.onLine)
  let stdout = ''
  let failure: unknown
  const consumed = options.consume
    ? options.consume(child.stdout)
    : collect(child.stdout, (text) => {
        stdout += text
        if (stdout.length > maxStdoutBytes) throw new Error('printed more than expected')
      })
  const consumption = consumed.catch((error: unknown) => {
    failure = error
    kill()
  })

  try {
    const ended = await new Promise<{ code: number | null; signal: string | null } | Error>((resolve) => {
      child.once('error', resolve)
      child.once('close', (code, signal) => resolve({ code, signal }))
    })
    await consumption
    options.signal?.throwIfAborted()
    const tail = stderr()
    if (timeout.aborted) throw new CommandError(program, `not done after ${options.timeoutMs / 1000} s`, tail, false)
    // A consumer that fails closes the pipe, which makes the program fail too: the consumer knows why.
    if (failure !== undefined && !isPrematureEnd(failure)) throw failure
    if (ended instanceof Error) throw new CommandError(program, ended.message, tail, false, ended)
    if (ended.code !== 0) {
      const how = ended.signal === null ? `exit code ${ended.code}` : `ended by ${ended.signal}`
      // setpriv reports a program that is not there with 127, as shells do.
      throw new CommandError(program, ended.code === 127 ? 'is not installed' : `${how}. ${lastLine(tail)}`, tail, ended.code === 127)
    }
    if (failure !== undefined) throw failure
    return stdout
  } finally {
    stop.removeEventListener('abort', kill)
    clearTimeout(killer)
  }
}

function isPrematureEnd(error: unknown): boolean {
  return error instanceof Error && /premature close|unexpected end/i.test(error.message)
}

function signalGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return
  try {
    process.kill(-pid, signal)
  } catch {
    // The group has ended already.
  }
}

async function collect(stream: Readable, take: (text: string) => void): Promise<void> {
  stream.setEncoding('utf8')
  for await (const text of stream) take(text as string)
}

/** Collects the end of a stream of text, line by line. Progress bars rewrite a line with a carriage return. */
function collectLines(stream: Readable, onLine: ((line: string) => void) | undefined): () => string {
  let tail = ''
  let open = ''
  stream.setEncoding('utf8')
  stream.on('data', (text: string) => {
    tail = (tail + text).slice(-maxStderrBytes)
    if (!onLine) return
    const lines = (open + text).split(/[\r\n]+/)
    open = (lines.pop() ?? '').slice(-maxStderrBytes)
    for (const line of lines) if (line !== '') onLine(line)
  })
  return () => tail.trim()
}

function lastLine(text: string): string {
  return text.slice(text.lastIndexOf('\n') + 1)
}
