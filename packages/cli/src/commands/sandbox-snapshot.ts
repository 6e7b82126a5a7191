import { snapshotKinds } from '@thaw/sdk'
import { type Command, Option } from 'commander'
import { withServer } from '../context.ts'
import { milliseconds, type Output, size } from '../output.ts'

interface Flags {
  name?: string
  kind?: (typeof snapshotKinds)[number]
  fallback?: boolean
}

export function registerSnapshot(sandbox: Command, output: Output): void {
  sandbox
    .command('snapshot')
    .argument('<sandbox>', 'id or name')
    .description('Keep a sandbox as it is now, with its memory where the driver can; it goes on. Prints the id of the snapshot.')
    .option('--name <name>', 'what it is to be called; the newest of a name is the one that is meant')
    .addOption(new Option('--kind <kind>', 'what is to be kept (default: memory where the driver can, else files)').choices(snapshotKinds))
    .option('--fallback', 'with --kind memory: keep the files alone where memory cannot be kept')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox snapshot lab --name before-upgrade
  thaw sandbox snapshot lab --kind filesystem
  SNAP=$(thaw sandbox snapshot lab)
  thaw sandbox create --from before-upgrade --name again`,
    )
    .action((id: string, { name, kind, fallback }: Flags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const item = await output.progress.during(`keeping ${id}`, async () => {
          const sandbox = await thaw.sandboxes.get(id, { signal })
          return sandbox.snapshot({ name, kind, fallback }, { signal })
        })
        output.result(item, () => item.id)
        const still = item.frozen_ms === null ? '' : `; ${id} stood still for ${milliseconds(item.frozen_ms)}`
        output.note(`${keptText(item.kind)}, ${size(item.size_bytes)}${still}`)
        if (kind === 'memory' && item.kind !== kind) output.note('memory cannot be kept here: see `thaw doctor`')
      }),
    )
}

export function keptText(kind: (typeof snapshotKinds)[number]): string {
  return kind === 'memory' ? 'memory and files' : 'files only'
}
