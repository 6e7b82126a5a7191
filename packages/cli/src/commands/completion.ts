import { Argument, type Command } from 'commander'
import { completionScript, type Shell, shells } from '../completion.ts'
import type { Output } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('completion')
    .addArgument(new Argument('<shell>', 'shell').choices(shells))
    .description('Print a script that completes commands, options and function names.')
    .addHelpText(
      'after',
      `
Examples:
  source <(thaw completion bash)                                  # in ~/.bashrc
  thaw completion zsh > ~/.zfunc/_thaw                            # a folder of your fpath
  thaw completion fish > ~/.config/fish/completions/thaw.fish`,
    )
    .action((shell: Shell) => {
      const script = completionScript(program, shell)
      output.result({ shell, script }, () => script)
    })
}
