import type { Forked, Sandbox } from '@thaw/sdk'
import type { Command } from 'commander'
import { wholeNumber, withServer } from '../context.ts'
import { milliseconds, type Output } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { collect, longDurationMs, pairs } from './sandbox-input.ts'

interface Flags {
  count: number
  filesOnly?: boolean
  timeout?: number
  metadata?: string[]
}

export function registerFork(sandbox: Command, output: Output): void {
  sandbox
    .command('fork')
    .argument('<sandbox>', 'id or name')
    .description('Make sandboxes that go on from where this one is, with its memory and files; it goes on as well. Prints their ids.')
    .option('-n, --count <n>', 'how many; all of them come, or none', wholeNumber(1, 100), 1)
    .option('--files-only', 'copy the files alone; processes stay with the parent')
    .option('--timeout <duration>', 'end them after so long: 10m, 2h; default: as the parent', longDurationMs)
    .option('--metadata <key=value>', 'what to find them by, instead of that of the parent; can be repeated', collect)
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox fork lab
  thaw sandbox fork lab --count 3 --metadata attempt=2
  thaw sandbox fork lab -n 3 --json | jq -r '.items[].id'
  thaw sandbox tree lab`,
    )
    .action((id: string, flags: Flags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const startedMs = performance.now()
        const how = {
          kind: flags.filesOnly === true ? ('filesystem' as const) : undefined,
          timeout_ms: flags.timeout,
          metadata: flags.metadata === undefined ? undefined : pairs(flags.metadata, '--metadata'),
        }
        const forked = await output.progress.during(`forking ${id}`, async () =>
          (await thaw.sandboxes.get(id, { signal })).fork(flags.count, how, { signal }),
        )
        const { children, frozen_ms } = forked
        output.result({ items: children, frozen_ms }, () => children.map((child: Sandbox) => child.id).join('\n'))
        output.note(remark(id, forked, performance.now() - startedMs))
      }),
    )
}

/** What a fork took with it. A child that was started from files alone has not the processes of its parent. */
function remark(id: string, { children, frozen_ms }: Forked, tookMs: number): string {
  const memory = children.every(({ item }) => item.boot_method === 'warm')
  const what = memory ? 'memory and files' : 'files only, no processes'
  const many = children.length === 1 ? 'one fork' : `${children.length} forks`
  const still = `${id} stood still for ${milliseconds(frozen_ms)}`
  return asTyped(`${many} of ${id} in ${milliseconds(tookMs)}, ${what}; ${still} (thaw sandbox tree ${id} shows them)`)
}
