import type { Command } from 'commander'
import { type Output, table } from '../output.ts'
import { addServerOptions, type ServerFlags, serverFlags } from '../server-options.ts'

export function register(program: Command, output: Output): void {
  const config = program.command('config').description('Look at the configuration of the server.')
  addServerOptions(config.command('show'))
    .description(
      'Print every value that a server started here, with these flags, would use, and where it comes from; secrets are left out.',
    )
    .addHelpText(
      'after',
      '\nExamples:\n  thaw config show\n  THAW_PORT=9000 thaw config show --json\n\nA server that runs already may have been started with other flags, or elsewhere.',
    )
    .action(async (flags: ServerFlags) => {
      const { loadConfig } = await import('@thaw/server')
      const { entries } = loadConfig({ flags: serverFlags(flags) })
      output.result(entries, () =>
        table(
          ['KEY', 'VALUE', 'ORIGIN'],
          entries.map(({ key, value, origin }) => [key, typeof value === 'string' ? value : JSON.stringify(value), origin]),
        ),
      )
    })
}
