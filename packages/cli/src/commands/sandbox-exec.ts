import type { Sandbox } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { environment } from '../deploy-input.ts'
import type { Output } from '../output.ts'
import { runStreamed } from '../streamed.ts'
import { takesCommandLine } from '../trailing.ts'
import { collect, longDurationMs } from './sandbox-input.ts'

export interface CommandFlags {
  env?: string[] | undefined
  cwd?: string | undefined
  user?: string | undefined
}

interface Flags extends CommandFlags {
  timeout?: number
  stdin?: boolean
}

export function withCommandFlags(command: Command): Command {
  return command
    .option('-e, --env <name=value>', 'environment variable; can be repeated; without =value: the value here', collect)
    .option('-w, --cwd <dir>', 'folder to run in')
    .option('-u, --user <user>', 'default: root of the sandbox')
}

/** Flags as the SDK takes them. */
export function commandOptions({ env, cwd, user }: CommandFlags) {
  return { env: env === undefined ? undefined : environment(env), cwd, user }
}

export function registerExec(sandbox: Command, output: Output): void {
  const exec = sandbox
    .command('exec')
    .argument('<sandbox>', 'id or name')
    .argument('<command...>', 'program and arguments')
    .description('Run a command in a sandbox. Its output streams here, and its exit code becomes ours.')
    .option('-i, --stdin', 'pass standard input on, which is done anyway where it is no terminal')
    .option('--timeout <duration>', 'kill it after so long: 30s, 10m; the exit code is 124 then', longDurationMs)
  withCommandFlags(exec)
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox exec lab ls -la /work
  thaw sandbox exec lab --env LEVEL=debug --cwd /work -- python3 main.py
  cat data.csv | thaw sandbox exec lab -- sort -n > sorted.csv
  thaw sandbox exec lab --json -- uname -a

With --json the output comes at the end, as {"stdout", "stderr", "exit_code", …}.`,
    )
    .action((id: string, line: string[], flags: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const found = await output.progress.during(`reading ${id}`, () => context.thaw.sandboxes.get(id, { signal: context.signal }))
        process.exitCode = await runIn(context, found, line, flags)
      }),
    )
  takesCommandLine(exec, 1)
}

/** Runs a command as `exec` does; with --json its result is printed as a whole. Resolves with the exit code. */
export async function runIn(context: Context, sandbox: Sandbox, line: string[], flags: Flags): Promise<number> {
  const { output } = context
  const stdin = flags.stdin === true || !process.stdin.isTTY
  const streamed = { ...commandOptions(flags), stdin, timeoutMs: flags.timeout }
  if (!output.json) {
    const sinks = { onStdout: (bytes: Uint8Array) => output.bytes(bytes), onStderr: (bytes: Uint8Array) => output.errorBytes(bytes) }
    return (await runStreamed(context, sandbox, line, streamed, sinks)).exit_code
  }
  const startedMs = performance.now()
  const stdout: Uint8Array[] = []
  const stderr: Uint8Array[] = []
  const sinks = { onStdout: (bytes: Uint8Array) => void stdout.push(bytes), onStderr: (bytes: Uint8Array) => void stderr.push(bytes) }
  const result = await runStreamed(context, sandbox, line, streamed, sinks)
  const text = (pieces: Uint8Array[]) => Buffer.concat(pieces).toString('utf8')
  const duration_ms = Math.round(performance.now() - startedMs)
  output.line(JSON.stringify({ sandbox_id: sandbox.id, stdout: text(stdout), stderr: text(stderr), ...result, duration_ms }))
  return result.exit_code
}
