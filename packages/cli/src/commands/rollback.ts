import type { Command } from 'commander'
import { functionName, wholeNumber, withServer } from '../context.ts'
import type { Output } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('rollback')
    .argument('<name>', 'function', functionName)
    .argument('[version]', 'default: the ready version before the active one', wholeNumber(1))
    .description('Make an earlier version the active one.')
    .addHelpText('after', '\nExamples:\n  thaw rollback hello\n  thaw rollback hello 3')
    .action((name: string, version: number | undefined, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const item = await output.progress.during(`rolling ${name} back`, () => thaw.functions.rollback(name, version, { signal }))
        output.result(item, () => `${item.name} now serves version ${item.version}`)
      }),
    )
}
