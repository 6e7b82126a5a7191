import { styleText } from 'node:util'
import type { LogEntry } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, functionName, wholeNumber, withServer } from '../context.ts'
import { Interrupted, UsageError } from '../errors.ts'
import { type Output, printable } from '../output.ts'

interface Options {
  follow?: boolean
  limit?: number
  build?: number | true
}

const defaultLimit = 1000

export function register(program: Command, output: Output): void {
  program
    .command('logs')
    .argument('<name>', 'function', functionName)
    .description('Print what a function wrote, and what the platform says about it; or what the build of a version wrote.')
    .option('-f, --follow', 'go on until Ctrl-C, or until the build ends')
    .option('-n, --limit <n>', `newest entries to begin with (default: ${defaultLimit})`, wholeNumber(1, 10_000))
    .option('-b, --build [version]', 'the log of a build; default: of the newest version', wholeNumber(1))
    .addHelpText(
      'after',
      '\nExamples:\n  thaw logs hello\n  thaw logs hello -f\n  thaw logs hello --build 3\n  thaw logs hello --json | jq -r .message',
    )
    .action((name: string, options: Options, command: Command) =>
      withServer(command, output, async (context) => {
        try {
          await (options.build === undefined ? printLogs(context, name, options) : printBuild(context, name, options))
        } catch (error) {
          // Ctrl-C is how following ends, so it is no failure.
          if (!(options.follow === true && error instanceof Interrupted)) throw error
        }
      }),
    )
}

async function printLogs({ output, thaw, signal }: Context, name: string, options: Options): Promise<void> {
  const { follow, limit = defaultLimit } = options
  for await (const entry of thaw.functions.logs(name, { follow, limit, signal })) {
    output.line(output.json ? JSON.stringify(entry) : entryLine(entry))
  }
}

async function printBuild({ output, thaw, signal }: Context, name: string, options: Options): Promise<void> {
  if (options.limit !== undefined) throw new UsageError('--limit does not go with --build: the whole log is printed.')
  const newest = async () => (await thaw.functions.versions(name, { limit: 1, signal }).page()).items[0]?.version ?? 1
  const version = typeof options.build === 'number' ? options.build : await newest()
  const print = (line: string) => output.line(output.json ? JSON.stringify({ version, message: line }) : `${printable(line)}\n`)
  let held = ''
  for await (const text of thaw.functions.buildLog(name, version, { follow: options.follow, signal })) {
    const lines = (held + text).split('\n')
    held = lines.pop() ?? ''
    for (const line of lines) print(line)
  }
  if (held !== '') print(held)
}

function entryLine(entry: LogEntry): string {
  const head = `${entry.time} ${entry.invocation_id ?? entry.sandbox_id ?? '-'} ${entry.source}`
  return `${styleText('dim', head, { stream: process.stdout })} ${printable(entry.message)}`
}
