import type { Command } from 'commander'
import { functionName, withServer } from '../context.ts'
import type { Output } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('rm')
    .argument('<names...>', 'functions', (name: string, before: string[] | undefined) => [...(before ?? []), functionName(name)])
    .description('Remove functions, with all their versions and logs.')
    .addHelpText('after', '\nExamples:\n  thaw rm hello\n  thaw rm hello-1 hello-2')
    .action((names: string[], _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const removed: string[] = []
        let failure: unknown
        for (const name of names) {
          try {
            await output.progress.during(`removing ${name}`, () => thaw.functions.delete(name, { signal }))
            removed.push(name)
          } catch (error) {
            signal.throwIfAborted()
            // The others are removed all the same; the first failure decides the exit code.
            failure ??= error
          }
        }
        output.result({ removed }, () => removed.map((name) => `removed ${name}`).join('\n'))
        if (failure !== undefined) throw failure
      }),
    )
}
