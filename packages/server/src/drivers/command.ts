import { ThawError } from '@thaw/protocol'
import { launch } from './launcher/launcher.ts'

export interface CommandResult {
  stdout: string
  stderr: string
}

/**
 * Runs a program of the host to its end. Rejects with `driver_failed` (what it printed last in details) when it
 * cannot start, fails, or takes longer than `timeoutMs`; it is killed then. What it prints is kept up to 64 KiB, the end of it.
 */
export async function runCommand(
  program: string,
  args: string[],
  options: { timeoutMs?: number; input?: string; signal?: AbortSignal | undefined } = {},
): Promise<CommandResult> {
  const { timeoutMs = 20_000, input, signal } = options
  const {
    code,
    signal: killedBy,
    stdout,
    stderr,
    error,
  } = await launch({ program, args, input, streams: ['keep', 'keep'], timeoutMs, signal })
  if (code === 0) return { stdout, stderr }
  const what =
    error !== null ? error.message : killedBy === null ? `exit code ${code}. ${stderr.trim().slice(-500)}` : `ended by ${killedBy}`
  throw new ThawError('driver_failed', `${program} ${args[0] ?? ''}: ${what}`, {
    details: { command: [program, ...args].join(' ').slice(0, 2000), stderr: stderr.trim().slice(-2000) },
    cause: signal?.aborted === true ? signal.reason : error,
  })
}
