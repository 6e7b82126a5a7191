import type { Command } from 'commander'
import type { Output } from '../output.ts'
import { ownVersion } from '../own-version.ts'

export function register(program: Command, output: Output): void {
  program
    .command('version')
    .description('Print the version of this command.')
    .addHelpText('after', '\nExamples:\n  thaw version --json')
    .action(() => {
      const value = { version: ownVersion(), node_version: process.versions.node }
      output.result(value, () => `thaw ${value.version} (Node.js ${value.node_version})`)
    })
}
