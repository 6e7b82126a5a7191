import type { Command } from 'commander'
import type { Output } from '../output.ts'
import { registerCopy } from './cp.ts'
import { registerCreate } from './sandbox-create.ts'
import { registerExec } from './sandbox-exec.ts'
import { registerFork } from './sandbox-fork.ts'
import { registerForward } from './sandbox-forward.ts'
import { registerLife } from './sandbox-life.ts'
import { registerList } from './sandbox-list.ts'
import { registerLogs } from './sandbox-logs.ts'
import { registerPort } from './sandbox-port.ts'
import { registerSnapshot } from './sandbox-snapshot.ts'
import { registerTree } from './sandbox-tree.ts'
import { registerShell } from './shell.ts'

export function register(program: Command, output: Output): void {
  const sandbox = program
    .command('sandbox')
    .alias('sbx')
    .description('Make and use sandboxes: whole little computers. SANDBOX is an id or a name.')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox create --image python --name lab
  thaw sandbox exec lab -- python3 -c 'print(6 * 7)'
  thaw sandbox shell lab
  thaw sandbox cp ./project lab:/work
  thaw sandbox fork lab --count 3
  thaw sandbox rm lab`,
    )
  for (const add of [
    registerCreate,
    registerList,
    registerExec,
    registerShell,
    registerCopy,
    registerLogs,
    registerPort,
    registerForward,
    registerLife,
    registerSnapshot,
    registerFork,
    registerTree,
  ])
    add(sandbox, output)
}
