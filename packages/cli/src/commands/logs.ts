import { styleText } from 'node:util'
import type { LogEntry } from '@thaw/sdk'
import type { Command } from 'commander'
import { wholeNumber, withServer } from '../context.ts'
import { Interrupted } from '../errors.ts'
import type { Output } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('logs')
    .argument('<name>', 'function')
    .description('Print what a function wrote, and what the platform says about it.')
    .option('-f, --follow', 'go on until Ctrl-C')
    .option('-n, --limit <n>', 'newest entries to begin with', wholeNumber(1, 10_000), 1000)
    .addHelpText('after', '\nExamples:\n  thaw logs hello\n  thaw logs hello -f\n  thaw logs hello --json | jq -r .message')
    .action((name: string, options: { follow?: boolean; limit: number }, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        try {
          for await (const entry of thaw.functions.logs(name, { follow: options.follow, limit: options.limit, signal })) {
            output.line(output.json ? JSON.stringify(entry) : entryLine(entry))
          }
        } catch (error) {
          // Ctrl-C is how following ends, so it is no failure.
          if (!(options.follow === true && error instanceof Interrupted)) throw error
        }
      }),
    )
}

function entryLine(entry: LogEntry): string {
  const head = `${entry.time} ${entry.invocation_id ?? entry.sandbox_id ?? '-'} ${entry.source}`
  return `${styleText('dim', head, { stream: process.stdout })} ${printable(entry.message)}`
}

/** Code that nobody trusts must not move the cursor or change the title of the terminal that reads its log. */
function printable(message: string): string {
  return Array.from(message.replace(/\r?\n$/, ''), (character) => (isControl(character) ? escaped(character) : character)).join('')
}

function isControl(character: string): boolean {
  const code = character.codePointAt(0) ?? 0
  return (code < 0x20 && character !== '\t' && character !== '\n') || (code >= 0x7f && code < 0xa0)
}

function escaped(character: string): string {
  return `\\x${(character.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}`
}
