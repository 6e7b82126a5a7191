import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import type { Output } from '../output.ts'
import { runTerminal } from '../terminal.ts'
import { takesCommandLine } from '../trailing.ts'
import { type CommandFlags, commandOptions, withCommandFlags } from './sandbox-exec.ts'

export function registerShell(sandbox: Command, output: Output): void {
  const shell = sandbox
    .command('shell')
    .argument('<sandbox>', 'id or name')
    .argument('[command...]', 'default: a login shell')
    .description('Open a terminal in a sandbox. Every key goes inside, Ctrl-C too; it ends when the shell does.')
  withCommandFlags(shell)
    .addHelpText(
      'after',
      '\nExamples:\n  thaw sandbox shell lab\n  thaw sandbox shell lab -- vi /work/main.py\n  thaw sandbox shell lab --user nobody',
    )
    .action((id: string, line: string[], flags: CommandFlags, command: Command) =>
      withServer(command, output, async (context) => {
        if (output.json) throw new UsageError('A terminal has no JSON.', 'Leave --json out, or use `thaw sandbox exec`.')
        const found = await output.progress.during(`reading ${id}`, () => context.thaw.sandboxes.get(id, { signal: context.signal }))
        process.exitCode = await runTerminal(context, found, { ...commandOptions(flags), command: line.length === 0 ? undefined : line })
      }),
    )
  takesCommandLine(shell, 1)
}
