import type { SnapshotItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { fields, milliseconds, type Output, size, table } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { printMade } from './sandbox-create.ts'
import { type OwnFlags, ownOf, withOwnFlags } from './sandbox-input.ts'
import { keptText } from './sandbox-snapshot.ts'
import { snapshotId } from './snapshot-named.ts'
import { registerTransfer } from './snapshot-transfer.ts'

interface ListFlags {
  sandbox?: string
  quiet?: boolean
}

export function register(program: Command, output: Output): void {
  const snapshot = program
    .command('snapshot')
    .description('List, restore, move and remove snapshots of sandboxes. SNAPSHOT is an id, or a name: the newest of it.')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox snapshot lab --name before-upgrade
  thaw snapshot ls
  thaw snapshot restore before-upgrade --name again
  thaw snapshot export before-upgrade -o before-upgrade.tar.zst`,
    )
  registerList(snapshot, output)
  registerInspect(snapshot, output)
  registerRestore(snapshot, output)
  registerTransfer(snapshot, output)
  registerRemove(snapshot, output)
}

function registerList(snapshot: Command, output: Output): void {
  snapshot
    .command('ls')
    .description('List snapshots, newest first.')
    .option('--sandbox <sandbox>', 'those that were taken of this sandbox; once that is removed, by its id')
    .option('-q, --quiet', 'ids only')
    .addHelpText('after', '\nExamples:\n  thaw snapshot ls\n  thaw snapshot ls --sandbox lab\n  thaw snapshot rm $(thaw snapshot ls -q)')
    .action((flags: ListFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing snapshots', async () => {
          const sandbox = flags.sandbox === undefined ? undefined : await sandboxId(thaw, flags.sandbox, signal)
          return thaw.snapshots.list({ sandbox, signal }).all()
        })
        output.result(items, () => (flags.quiet === true ? items.map(({ id }) => id).join('\n') : snapshotTable(items)))
        if (items.length === 0 && flags.quiet !== true) output.note(asTyped('no snapshots; take one with `thaw sandbox snapshot SANDBOX`'))
      }),
    )
}

/** Snapshots outlive their sandbox, so what looks like an id is not asked for. */
async function sandboxId(thaw: Context['thaw'], idOrName: string, signal: AbortSignal): Promise<string> {
  return /^sbx-[0-9a-z]{26}$/.test(idOrName) ? idOrName : (await thaw.sandboxes.get(idOrName, { signal })).id
}

function registerInspect(snapshot: Command, output: Output): void {
  snapshot
    .command('inspect')
    .argument('<snapshot>', 'id or name')
    .description('Show everything about a snapshot.')
    .addHelpText(
      'after',
      '\nExamples:\n  thaw snapshot inspect before-upgrade\n  thaw snapshot inspect before-upgrade --json | jq .size_bytes',
    )
    .action((name: string, _options: object, command: Command) =>
      withServer(command, output, async (context) => {
        const { thaw, signal } = context
        const id = await snapshotId(context, name)
        const item = await output.progress.during(`reading ${name}`, () => thaw.snapshots.get(id, { signal }))
        output.result(item, () => describe(item))
      }),
    )
}

interface RestoreFlags extends OwnFlags {
  quiet?: boolean
}

function registerRestore(snapshot: Command, output: Output): void {
  withOwnFlags(
    snapshot
      .command('restore')
      .argument('<snapshot>', 'id or name')
      .description('Make a sandbox that goes on where a snapshot was taken. Image, limits and network are those of the snapshot.')
      .option('-q, --quiet', 'print the id only'),
  )
    .addHelpText(
      'after',
      `
Examples:
  thaw snapshot restore before-upgrade
  thaw snapshot restore before-upgrade --name again --timeout 2h --port 8000

"thaw sandbox create --from SNAPSHOT" does the same.`,
    )
    .action((name: string, flags: RestoreFlags, command: Command) =>
      withServer(command, output, async (context) => {
        const { thaw, signal } = context
        const startedMs = performance.now()
        const id = await snapshotId(context, name)
        const made = await output.progress.during(`restoring ${name}`, () => thaw.snapshots.restore(id, ownOf(flags), { signal }))
        printMade(output, made, { command, quiet: flags.quiet, tookMs: performance.now() - startedMs })
      }),
    )
}

function registerRemove(snapshot: Command, output: Output): void {
  snapshot
    .command('rm')
    .argument('<snapshots...>', 'ids, or names that only one has')
    .description('Remove snapshots. Sandboxes that came from them go on.')
    .addHelpText('after', '\nExamples:\n  thaw snapshot rm before-upgrade')
    .action((names: string[], _options: object, command: Command) =>
      withServer(command, output, async (context) => {
        const { thaw, signal } = context
        const removed: string[] = []
        let failure: unknown
        for (const name of names) {
          try {
            const id = await snapshotId(context, name, true)
            await output.progress.during(`removing ${name}`, () => thaw.snapshots.delete(id, { signal }))
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

function snapshotTable(items: SnapshotItem[]): string {
  if (items.length === 0) return ''
  return table(
    ['ID', 'NAME', 'KIND', 'STATE', 'SIZE', 'FROZEN', 'SANDBOX', 'IMAGE', 'DRIVER', 'USED', 'CREATED'],
    items.map((item) => [
      item.id,
      item.name ?? '-',
      item.kind,
      item.state,
      size(item.size_bytes),
      item.frozen_ms === null ? '-' : milliseconds(item.frozen_ms),
      item.sandbox_id ?? '-',
      item.image,
      item.driver,
      String(item.success_count),
      item.created_at.slice(0, 19).replace('T', ' '),
    ]),
  )
}

function describe(item: SnapshotItem): string {
  const { error } = item
  return fields([
    ['id', item.id],
    ['name', item.name],
    ['state', item.state],
    ['error', error === null ? null : `${error.code}: ${error.message}`],
    ['kind', `${item.kind} (${keptText(item.kind)})`],
    ['size', size(item.size_bytes)],
    ['frozen', item.frozen_ms === null ? null : `${milliseconds(item.frozen_ms)}, while it was taken`],
    ['sandbox', item.sandbox_id],
    ['image', `${item.image} (${item.image_digest})`],
    ['driver', item.driver],
    ['used', `${item.success_count} times${item.failure_count === 0 ? '' : `, and ${item.failure_count} times in vain`}`],
    ['created', item.created_at],
    ['last used', item.last_used_at],
  ])
}
