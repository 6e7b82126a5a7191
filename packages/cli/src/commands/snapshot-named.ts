import { ThawError } from '@thaw/sdk'
import type { Context } from '../context.ts'
import { asTyped } from '../own-name.ts'

const idPattern = /^snap-[0-9a-z]{26}$/

/** The id of a snapshot that is named by it, or by its name: the newest counts. With `unique`, a name that several have is refused. */
export async function snapshotId({ thaw, signal, output }: Context, idOrName: string, unique = false): Promise<string> {
  if (idPattern.test(idOrName)) return idOrName
  const ids: string[] = []
  await output.progress.during(`looking for ${idOrName}`, async () => {
    for await (const { id, name } of thaw.snapshots.list({ limit: 1000, signal })) {
      // As typed, in case that ids once look different.
      if (id === idOrName || name === idOrName) ids.push(id)
      if (ids.length > 0 && !unique) return
    }
  })
  const [newest, ...older] = ids
  if (newest === undefined) throw new ThawError('snapshot_not_found', `There is no snapshot ${JSON.stringify(idOrName)}.`)
  if (older.length === 0) return newest
  throw new ThawError('invalid_request', `${ids.length} snapshots are called ${idOrName}: ${ids.join(', ')}.`, {
    fix: asTyped('Name the one that is meant by its id; `thaw snapshot ls` shows them.'),
  })
}
