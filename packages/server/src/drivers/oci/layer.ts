import { chownSync, existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import { type CreateSpec, idShift } from '../driver.ts'
import { snapshotFolders } from './checkpoint.ts'
import type { FileSystem } from './restore.ts'
import { isPristine, layerFolder, type Volume } from './volume.ts'

/**
 * Makes the writable layer of a sandbox, with what one of a snapshot holds: owners, links, attributes and the marks of what was
 * deleted. It is shared with the snapshot where the file system can (XFS, Btrfs), else copied; so neither changes the other.
 *
 * @param dir of the sandbox.
 */
export async function makeLayer(
  volume: Volume,
  dir: string,
  { disk_mib, snapshot }: Pick<CreateSpec, 'disk_mib' | 'snapshot'>,
): Promise<void> {
  const packed = snapshot === undefined ? undefined : join(snapshot.dir, snapshotFolders.disk)
  const whole = packed !== undefined && existsSync(packed)
  const folder = whole ? await volume.takeFrom(dir, packed) : await volume.take(dir, disk_mib)
  for (const path of [join(folder, 'upper'), join(folder, 'work'), join(dir, 'rootfs')]) {
    mkdirSync(path, { mode: 0o755, recursive: true })
    chownSync(path, idShift, idShift)
  }
  const kept = snapshot === undefined ? undefined : join(snapshot.dir, snapshotFolders.upper)
  if (whole || kept === undefined || !existsSync(kept) || isPristine(kept)) return
  try {
    await runCommand('cp', ['-a', '--reflink=auto', '--no-target-directory', kept, join(folder, 'upper')], { timeoutMs: 600_000 })
  } catch (error) {
    if (!/No space left on device/.test(JSON.stringify((error as ThawError).details))) throw error
    throw new ThawError('disk_full', 'The files of the snapshot do not fit on the disk of the sandbox.', {
      fix: 'Raise resources.disk_mib, or sandboxes.disk_mib of the server.',
      cause: error,
    })
  }
}

/** The layer over an image. */
export function overlay(dir: string, image: string): FileSystem {
  const folder = layerFolder(dir)
  const layers = `lowerdir=${image},upperdir=${join(folder, 'upper')},workdir=${join(folder, 'work')}`
  return { source: 'overlay', type: 'overlay', options: `${layers},nodev,nosuid` }
}
