import type { ExecResult } from '@thaw/protocol'
import type { Http } from '../http.ts'
import { type Command, fromBase64, type StartOptions, startProcess, toBase64 } from './process.ts'

export interface ExecOptions extends Pick<StartOptions, 'env' | 'cwd' | 'user' | 'signal'> {
  /** What the command reads from its standard input. Default: nothing. */
  stdin?: string | Uint8Array | undefined
  /** The command is killed after so long. Default 60,000. */
  timeoutMs?: number | undefined
  /** How stdout and stderr of the result are written; base64 keeps every byte. Default utf8. */
  encoding?: 'utf8' | 'base64' | undefined
  /** Hears the output while the command runs, as text; while its promise is pending, the command waits. */
  onStdout?: ((text: string) => void | Promise<void>) | undefined
  onStderr?: ((text: string) => void | Promise<void>) | undefined
}

const defaultTimeoutMs = 60_000

/** Runs a command to its end. That it fails, or is killed because its time is over, is a result. */
export async function runCommand(http: Http, sandboxId: string, command: Command, options: ExecOptions): Promise<ExecResult> {
  return options.onStdout === undefined && options.onStderr === undefined
    ? runUnseen(http, sandboxId, command, options)
    : runFollowed(http, sandboxId, command, options)
}

async function runUnseen(http: Http, sandboxId: string, command: Command, options: ExecOptions): Promise<ExecResult> {
  const { stdin, encoding = 'utf8', timeoutMs, env, cwd, user, signal } = options
  // One encoding holds for both ways.
  const wire = stdin instanceof Uint8Array ? 'base64' : encoding
  const input = stdin instanceof Uint8Array ? toBase64(stdin) : wire === 'base64' ? toBase64(utf8(stdin ?? '')) : stdin
  const json = { command, env, cwd, user, stdin: stdin === undefined ? undefined : input, timeout_ms: timeoutMs, encoding: wire }
  const path = `/v1/sandboxes/${encodeURIComponent(sandboxId)}/exec`
  const result = (await http.json({ method: 'POST', path, json, signal, patient: true })) as ExecResult
  if (wire === encoding) return result
  return { ...result, stdout: text(fromBase64(result.stdout)), stderr: text(fromBase64(result.stderr)), encoding }
}

async function runFollowed(http: Http, sandboxId: string, command: Command, options: ExecOptions): Promise<ExecResult> {
  const { stdin, encoding = 'utf8', timeoutMs = defaultTimeoutMs, onStdout, onStderr, ...rest } = options
  const startedMs = performance.now()
  const stdout = new Followed(onStdout)
  const stderr = new Followed(onStderr)
  await using child = await startProcess(http, sandboxId, command, {
    ...rest,
    stdin: stdin !== undefined,
    killOnClose: true,
    onStdout: (bytes) => stdout.add(bytes),
    onStderr: (bytes) => stderr.add(bytes),
  })
  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    void child.kill()
  }, timeoutMs)
  try {
    if (stdin !== undefined) void child.stdin.write(stdin).then(() => child.stdin.end())
    const { exit_code, signal } = await child.wait()
    await stdout.end()
    await stderr.end()
    return {
      stdout: stdout.result(encoding),
      stderr: stderr.result(encoding),
      exit_code: timedOut ? null : exit_code,
      signal,
      timed_out: timedOut,
      duration_ms: Math.round((performance.now() - startedMs) * 1000) / 1000,
      truncated: stdout.truncated || stderr.truncated,
      encoding,
    }
  } finally {
    clearTimeout(timer)
  }
}

/** Kept of each stream; all of it has been heard. */
const maxKeptBytes = 32 * 1024 * 1024

/** One stream of a command: passed on as text, and kept. */
class Followed {
  truncated = false
  readonly #listener: ((text: string) => void | Promise<void>) | undefined
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  readonly #pieces: Uint8Array[] = []
  #bytes = 0

  constructor(listener: ((text: string) => void | Promise<void>) | undefined) {
    this.#listener = listener
  }

  add(bytes: Uint8Array): void | Promise<void> {
    const kept = bytes.subarray(0, maxKeptBytes - this.#bytes)
    if (kept.length < bytes.length) this.truncated = true
    if (kept.length > 0) this.#pieces.push(kept)
    this.#bytes += kept.length
    const part = this.#decoder.decode(bytes, { stream: true })
    if (part !== '') return this.#listener?.(part)
  }

  /** A character that was cut off at the end. */
  async end(): Promise<void> {
    const rest = this.#decoder.decode()
    if (rest !== '') await this.#listener?.(rest)
  }

  result(encoding: 'utf8' | 'base64'): string {
    const all = new Uint8Array(this.#bytes)
    let at = 0
    for (const piece of this.#pieces) {
      all.set(piece, at)
      at += piece.length
    }
    return encoding === 'base64' ? toBase64(all) : text(all)
  }
}

function utf8(value: string): Uint8Array {
  return new TextEncoder().encode(value)
}

/** As the server decodes: what is no UTF-8 becomes U+FFFD, and a byte order mark stays. */
function text(bytes: Uint8Array): string {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
}
