import { Command, Option } from 'commander'
import * as completion from './commands/completion.ts'
import * as config from './commands/config.ts'
import * as deploy from './commands/deploy.ts'
import * as doctor from './commands/doctor.ts'
import * as image from './commands/image.ts'
import * as inspect from './commands/inspect.ts'
import * as invoke from './commands/invoke.ts'
import * as key from './commands/key.ts'
import * as logs from './commands/logs.ts'
import * as ls from './commands/ls.ts'
import * as pool from './commands/pool.ts'
import * as rm from './commands/rm.ts'
import * as rollback from './commands/rollback.ts'
import * as run from './commands/run.ts'
import * as sandbox from './commands/sandbox.ts'
import * as secret from './commands/secret.ts'
import * as snapshot from './commands/snapshot.ts'
import * as ssh from './commands/ssh.ts'
import * as sshKey from './commands/ssh-key.ts'
import * as up from './commands/up.ts'
import * as version from './commands/version.ts'
import * as versions from './commands/versions.ts'
import { namedFix, UsageError } from './errors.ts'
import { isNear } from './nearest.ts'
import type { Output } from './output.ts'
import { asTyped, ownName } from './own-name.ts'
import { ownVersion } from './own-version.ts'

const commands = [
  up,
  deploy,
  invoke,
  logs,
  ls,
  inspect,
  rm,
  versions,
  rollback,
  sandbox,
  snapshot,
  run,
  ssh,
  doctor,
  config,
  image,
  pool,
  secret,
  key,
  sshKey,
  completion,
  version,
]

const exitCodesHelp = `
Exit codes:
  0  done
  1  what was asked for failed
  2  the command was not understood
  3  no server answers at the address
  4  the function (user code) failed
  …  "run", "ssh", "sandbox exec" and "sandbox shell" end with the exit code of what they ran
  127  there is no such program in the sandbox
  130  interrupted by Ctrl-C; what goes on until Ctrl-C, such as "up" and "logs -f", ends with 0`

/** All commands. `args` are those of the command line: errors of usage name the command that they belong to. */
export function createProgram(output: Output, args: readonly string[]): Command {
  const program = new Command(ownName)
    .description('Functions that start in milliseconds and sandboxes that live as long as you want, on your own machines.')
    .addOption(new Option('--json', 'print JSON on standard output, and errors as JSON on standard error'))
    .addOption(new Option('--url <url>', 'address of the server; default: http://127.0.0.1:8080').env('THAW_URL'))
    .version(ownVersion(), '-v, --version', 'print the version of this command')
    .exitOverride()
    .showSuggestionAfterError()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({
      writeOut: (text) => process.stdout.write(asTyped(text)),
      outputError: (text, write) => write(output.json ? '' : usageText(text, output)),
    })
    .hook('preAction', (_program, command) => {
      const [first] = command.registeredArguments
      if (first?.name() === 'name') output.about.function = String(command.processedArgs[0])
    })
    .addHelpText('after', exitCodesHelp)
  for (const command of commands) command.register(program, output)
  output.about.command = commandPath(program, args)
  return program
}

function commandPath(program: Command, args: readonly string[]): string {
  const path: string[] = []
  let at: Command = program
  for (const word of args.filter((arg) => !arg.startsWith('-'))) {
    const next = at.commands.find((candidate) => candidate.name() === word || candidate.aliases().includes(word))
    if (next !== undefined) {
      path.push(next.name())
      at = next
    } else if (path.length > 0) {
      break
    }
  }
  return path.join(' ')
}

/** commander's own errors, in the form of ours. */
function usageText(text: string, output: Output): string {
  return `${withoutWildGuess(text.trimEnd())}\nfix: ${namedFix(new UsageError('').fix, output)}\n`
}

/** commander suggests what shares two letters of four; that confuses more than it helps. */
function withoutWildGuess(text: string): string {
  const match = /^error: unknown (?:option|command) '-*([^'=]*)[^']*'\n\(Did you mean -*([^?,]+)\?\)$/.exec(text)
  const [, word, meant] = match ?? []
  return word === undefined || meant === undefined || isNear(word, meant) ? text : (text.split('\n', 1)[0] ?? text)
}
