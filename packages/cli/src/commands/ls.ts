import type { FunctionItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { type Output, table } from '../output.ts'
import { asTyped } from '../own-name.ts'

export function register(program: Command, output: Output): void {
  program
    .command('ls')
    .description('List functions.')
    .option('-q, --quiet', 'names only')
    .addHelpText('after', '\nExamples:\n  thaw ls\n  thaw ls --json | jq -r ".[].name"')
    .action((options: { quiet?: boolean }, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing functions', () => thaw.functions.list({ signal }).all())
        output.result(items, () => (options.quiet === true ? items.map((item) => item.name).join('\n') : functionTable(items)))
        if (items.length === 0 && options.quiet !== true) output.note(asTyped('no functions yet; deploy one with `thaw deploy DIR`'))
      }),
    )
}

function functionTable(items: FunctionItem[]): string {
  if (items.length === 0) return ''
  return table(
    ['NAME', 'VERSION', 'STATE', 'RUNTIME', 'CONTRACT', 'DRIVER', 'INSTANCES', 'UPDATED'],
    items.map((item) => [
      item.name,
      String(item.version),
      item.state,
      item.runtime,
      item.contract,
      item.driver,
      instances(item),
      item.updated_at.slice(0, 19).replace('T', ' '),
    ]),
  )
}

function instances(item: FunctionItem): string {
  const { starting, idle, busy } = item.instances
  const parts = [busy > 0 && `${busy} busy`, idle > 0 && `${idle} idle`, starting > 0 && `${starting} starting`]
  return parts.filter((part) => part !== false).join(', ') || '0'
}
