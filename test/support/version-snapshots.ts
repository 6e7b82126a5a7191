import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { VersionItem, VersionSnapshotItem } from '@thaw/protocol'
import { expect } from 'vitest'
import { eventually } from './eventually.ts'

/** What the API says of the snapshot of a function's newest version. */
export async function snapshotOf(url: string, name: string): Promise<VersionSnapshotItem | null> {
  const { items } = (await (await fetch(`${url}/v1/functions/${name}/versions`)).json()) as { items: VersionItem[] }
  return items[0]?.snapshot ?? null
}

/** Resolves when the newest version has a snapshot to start from; fails with what came instead. */
export async function whenKept(url: string, name: string): Promise<VersionSnapshotItem> {
  await eventually(async () => ['ready', 'unhealthy'].includes((await snapshotOf(url, name))?.state ?? ''), 40_000)
  const snapshot = await snapshotOf(url, name)
  expect(snapshot).toMatchObject({ state: 'ready', kind: 'memory', error: null })
  return snapshot as VersionSnapshotItem
}

/** Folders of snapshots below a data directory, those that are being written included. */
export function foldersOfSnapshots(dataDir: string): string[] {
  const root = join(dataDir, 'snapshots')
  return readdirSync(root)
    .filter((name) => name !== '.objects')
    .map((name) => join(root, name))
}

/** Everything that is there of snapshots, by its path; the folder of what they share may be there without them. */
export function tracesOfSnapshots(dataDir: string): string[] {
  return readdirSync(join(dataDir, 'snapshots'), { recursive: true, encoding: 'utf8' }).filter((path) => path !== '.objects')
}
