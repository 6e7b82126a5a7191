import { chownSync, existsSync, mkdirSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { runCommand } from '../command.ts'
import { idShift } from '../driver.ts'
import { snapshotFolders } from './checkpoint.ts'
import type { FileSystem } from './restore.ts'

/**
 * Makes the writable layer of a sandbox, with what one of a snapshot holds: owners, links, attributes and the marks of what was
 * deleted. It is shared with the snapshot where the file system can (XFS, Btrfs), else copied; so neither changes the other.
 */
export async function makeLayer(dir: string, snapshotDir: string | undefined): Promise<void> {
  for (const name of ['upper', 'work', 'rootfs']) {
    mkdirSync(join(dir, name), { mode: 0o755 })
    chownSync(join(dir, name), idShift, idShift)
  }
  const kept = snapshotDir === undefined ? undefined : join(snapshotDir, snapshotFolders.upper)
  if (kept === undefined || !existsSync(kept) || isPristine(kept)) return
  await runCommand('cp', ['-a', '--reflink=auto', '--no-target-directory', kept, join(dir, 'upper')], { timeoutMs: 600_000 })
}

/** Empty, and the root folder itself was not changed either. */
function isPristine(folder: string): boolean {
  const { uid, gid, mode } = statSync(folder)
  return uid === idShift && gid === idShift && (mode & 0o7777) === 0o755 && readdirSync(folder).length === 0
}

/** The layer over an image. */
export function overlay(dir: string, image: string): FileSystem {
  const layers = `lowerdir=${image},upperdir=${join(dir, 'upper')},workdir=${join(dir, 'work')}`
  return { source: 'overlay', type: 'overlay', options: `${layers},nodev,nosuid` }
}
