import { buffer } from 'node:stream/consumers'
import type { Sandbox } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import type { Output } from '../output.ts'
import { runTerminal } from '../terminal.ts'
import { takesCommandLine } from '../trailing.ts'
import { runCached } from './run-cached.ts'
import { createSandbox } from './sandbox-create.ts'
import { runIn } from './sandbox-exec.ts'
import { longDurationMs, type SandboxFlags, sandboxCreate, withSandboxFlags } from './sandbox-input.ts'
import { liveStates } from './sandbox-list.ts'

interface Flags extends SandboxFlags {
  interactive?: boolean
  tty?: boolean
  keep?: boolean
  cached?: boolean
  cacheTtl?: number
  cwd?: string
  user?: string
}

export function register(program: Command, output: Output): void {
  const run = program
    .command('run')
    .argument('<image>', 'host, python, node, go, or an OCI reference')
    .argument('[command...]', 'program and arguments; default on a terminal: a shell')
    .description('Run a command in a new sandbox, which is removed afterwards. Its exit code becomes ours.')
    .option('-i, --interactive', 'pass standard input on, which is done anyway where it is no terminal')
    .option('-t, --tty', 'open a terminal')
    .option('--keep', 'do not remove the sandbox')
    .option('--cached', 'give the result of an earlier run of the very same, if there is one; see below')
    .option('--cache-ttl <duration>', 'with --cached: how long the result is kept (default: 1h)', longDurationMs)
    .option('-w, --cwd <dir>', 'folder to run in')
    .option('-u, --user <user>', 'default: root of the sandbox')
  withSandboxFlags(run)
    .addHelpText(
      'after',
      `
Examples:
  thaw run python python3 -c 'print(6 * 7)'
  thaw run -it node
  cat main.py | thaw run --network none python python3 -
  thaw run --keep --name lab python -- pip install requests
  thaw run --cached --cache-ttl 1d python python3 -c 'print(sum(range(10**8)))'

--cached runs the command once for each image, command line, environment, input and limits, and keeps the result where it
succeeded. Its network is none unless --network says more, --timeout is that of the command (60s), input is passed on with -i
only, and the output comes at the end.`,
    )
    .action((image: string, line: string[], flags: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const terminal = flags.tty === true || (line.length === 0 && process.stdin.isTTY && process.stdout.isTTY)
        if (line.length === 0 && !terminal) throw new UsageError('Say which command is to be run.')
        if (flags.cacheTtl !== undefined && flags.cached !== true) throw new UsageError('--cache-ttl belongs to --cached.')
        if (flags.cached === true) {
          if (line.length === 0) throw new UsageError('Say which command is to be run.')
          process.exitCode = await runCached(
            context,
            image,
            line,
            flags,
            flags.interactive === true ? await buffer(process.stdin) : undefined,
          )
          return
        }
        if (terminal && output.json) throw new UsageError('A terminal has no JSON.', 'Leave --json or --tty out.')
        process.exitCode = await inNewSandbox(context, image, flags, (sandbox) =>
          terminal
            ? runTerminal(context, sandbox, { cwd: flags.cwd, user: flags.user, command: line.length === 0 ? undefined : line })
            : runIn(context, sandbox, line, { cwd: flags.cwd, user: flags.user, stdin: flags.interactive === true }),
        )
      }),
    )
  takesCommandLine(run, 1)
}

/** What was there before must not be removed afterwards. */
async function refuseTaken({ thaw, signal }: Context, name: string | undefined): Promise<void> {
  if (name === undefined || (await thaw.sandboxes.list({ name, state: liveStates, signal }).all()).length === 0) return
  throw new UsageError(
    `There is a sandbox ${name} already.`,
    `Use it with \`thaw sandbox exec ${name} -- COMMAND\`, or choose another name.`,
  )
}

async function inNewSandbox(context: Context, image: string, flags: Flags, use: (sandbox: Sandbox) => Promise<number>): Promise<number> {
  const { output } = context
  await refuseTaken(context, flags.name)
  const leave = () => output.note('waiting for the sandbox, to remove it; Ctrl-C again gives up, and leaves it to you')
  context.signal.addEventListener('abort', leave)
  // Without the signal: a sandbox that nobody waits for would be left over.
  const sandbox = await createSandbox({ ...context, signal: new AbortController().signal }, sandboxCreate(image, flags, []))
  context.signal.removeEventListener('abort', leave)
  try {
    context.signal.throwIfAborted()
    return await use(sandbox)
  } finally {
    // Also after Ctrl-C, whose signal would abort the call.
    if (flags.keep === true) output.note(`kept ${sandbox.id}`)
    else await output.progress.during(`removing ${sandbox.id}`, () => sandbox[Symbol.asyncDispose]())
  }
}
