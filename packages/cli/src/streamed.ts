import type { Command as CommandLine, Sandbox, SandboxProcess } from '@thaw/sdk'
import type { Context } from './context.ts'
import { Interrupted } from './errors.ts'

/** Where the output of the command goes. */
export interface Sinks {
  onStdout(bytes: Uint8Array): void | Promise<void>
  onStderr(bytes: Uint8Array): void | Promise<void>
}

export interface StreamedResult {
  exit_code: number
  signal: string | null
  timed_out: boolean
}

export interface StreamedOptions {
  env?: Record<string, string> | undefined
  cwd?: string | undefined
  user?: string | undefined
  /** What this process reads from standard input is passed on. */
  stdin: boolean
  timeoutMs?: number | undefined
}

/** As of `timeout` (coreutils). */
const timedOutCode = 124

/**
 * Runs a command in a sandbox, fed with the standard input of this process. The first Ctrl-C goes to the command, which decides
 * what it means; the second ends it. It ends with this process at the latest.
 */
export async function runStreamed(
  { output, signal }: Context,
  sandbox: Sandbox,
  line: CommandLine,
  options: StreamedOptions,
  sinks: Sinks,
): Promise<StreamedResult> {
  const { env, cwd, user, stdin, timeoutMs } = options
  signal.throwIfAborted()
  const child = await output.progress.during(`starting the command in ${sandbox.id}`, () =>
    sandbox.start(line, {
      env,
      cwd,
      user,
      stdin,
      killOnClose: true,
      ...sinks,
    }),
  )
  let signals = 0
  const onSignal = (name: NodeJS.Signals) => {
    if (++signals === 1) void child.kill(name)
    else void child.kill().then(() => child.detach())
  }
  for (const name of forwarded) process.on(name, onSignal)
  let timedOut = false
  const timer = timeoutMs === undefined ? undefined : setTimeout(() => expire(), timeoutMs)
  const expire = () => {
    timedOut = true
    void child.kill()
  }
  const feeding = stdin ? feed(child) : undefined
  try {
    const { exit_code, signal } = await child.wait()
    if (timedOut) output.note(`the command was killed: its ${timeoutMs} ms were over`)
    return { exit_code: timedOut ? timedOutCode : exit_code, signal, timed_out: timedOut }
  } catch (error) {
    throw signals > 1 ? new Interrupted() : error
  } finally {
    clearTimeout(timer)
    for (const name of forwarded) process.off(name, onSignal)
    feeding?.stop()
    child.detach()
  }
}

const forwarded = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Passes standard input on until it ends, or until nobody wants it any more. */
function feed(child: SandboxProcess): { stop(): void } {
  const { stdin } = process
  const take = (bytes: Buffer) => {
    stdin.pause()
    void child.stdin.write(bytes).then(() => stdin.resume())
  }
  const end = () => void child.stdin.end()
  stdin.on('data', take)
  stdin.once('end', end)
  stdin.once('error', end)
  stdin.resume()
  return {
    stop: () => {
      stdin.off('data', take)
      stdin.off('end', end)
      stdin.pause()
      // An input that stays open must not keep this process.
      stdin.unref?.()
    },
  }
}
