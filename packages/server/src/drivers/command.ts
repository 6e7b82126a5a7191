import { spawn } from 'node:child_process'
import { ThawError } from '@thaw/protocol'

export interface CommandResult {
  stdout: string
  stderr: string
}

const maxOutputBytes = 64 * 1024

/**
 * Runs a program of the host to its end. Rejects with `driver_failed` (what it printed last in details) when it
 * cannot start, fails, or takes longer than `timeoutMs`; it is killed then.
 */
export function runCommand(
  program: string,
  args: string[],
  options: { timeoutMs?: number; input?: string; signal?: AbortSignal | undefined } = {},
): Promise<CommandResult> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      timeout: options.timeoutMs ?? 20_000,
      killSignal: 'SIGKILL',
      ...(options.signal ? { signal: options.signal } : {}),
    })
    const output = { stdout: '', stderr: '' }
    for (const name of ['stdout', 'stderr'] as const) {
      child[name]?.setEncoding('utf8').on('data', (text: string) => {
        output[name] = (output[name] + text).slice(-maxOutputBytes)
      })
    }
    const fail = (what: string, cause?: unknown) =>
      reject(
        new ThawError('driver_failed', `${program} ${args[0] ?? ''}: ${what}`, {
          details: { command: [program, ...args].join(' ').slice(0, 2000), stderr: output.stderr.trim().slice(-2000) },
          cause,
        }),
      )
    child.once('error', (error) => fail(error.message, error))
    child.once('close', (code, signal) => {
      if (code === 0) resolve(output)
      else fail(signal === null ? `exit code ${code}. ${output.stderr.trim().slice(-500)}` : `ended by ${signal}`)
    })
    if (options.input !== undefined) child.stdin?.on('error', () => {}).end(options.input)
  })
}
