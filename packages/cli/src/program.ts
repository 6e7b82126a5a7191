import { Command, Option } from 'commander'
import * as completion from './commands/completion.ts'
import * as config from './commands/config.ts'
import * as deploy from './commands/deploy.ts'
import * as doctor from './commands/doctor.ts'
import * as image from './commands/image.ts'
import * as inspect from './commands/inspect.ts'
import * as invoke from './commands/invoke.ts'
import * as logs from './commands/logs.ts'
import * as ls from './commands/ls.ts'
import * as pool from './commands/pool.ts'
import * as rm from './commands/rm.ts'
import * as rollback from './commands/rollback.ts'
import * as secret from './commands/secret.ts'
import * as up from './commands/up.ts'
import * as version from './commands/version.ts'
import * as versions from './commands/versions.ts'
import type { Output } from './output.ts'
import { ownVersion } from './own-version.ts'

const commands = [up, deploy, invoke, logs, ls, inspect, rm, versions, rollback, doctor, config, image, pool, secret, completion, version]

const exitCodesHelp = `
Exit codes:
  0  done
  1  what was asked for failed
  2  the command was not understood
  3  no server answers at the address
  4  the function (user code) failed`

export function createProgram(output: Output): Command {
  const program = new Command('thaw')
    .description('Functions that start in milliseconds, on your own machines.')
    .addOption(new Option('--json', 'print JSON on standard output, and errors as JSON on standard error'))
    .addOption(new Option('--url <url>', 'address of the server; default: http://127.0.0.1:8080').env('THAW_URL'))
    .version(ownVersion(), '-v, --version', 'print the version of this command')
    .exitOverride()
    .showSuggestionAfterError()
    .configureHelp({ showGlobalOptions: true })
    .configureOutput({ outputError: (text, write) => write(output.json ? '' : usageText(text)) })
    .addHelpText('after', exitCodesHelp)
  for (const command of commands) command.register(program, output)
  return program
}

/** commander's own errors, in the form of ours. */
function usageText(text: string): string {
  return `${text.trimEnd()}\nfix: See \`thaw help\`, or \`thaw COMMAND --help\`.\n`
}
