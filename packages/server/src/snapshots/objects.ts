import { existsSync } from 'node:fs'
import { link, lstat, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { ManifestEntry } from './manifest.ts'

/** Smaller files are not worth a name of their own. */
const leastBytes = 16 * 1024
/** Images of memory are written once; a writable layer has owners, modes and times that belong to each of its files. */
const sharedFolder = 'memory/'

/** The same bytes are kept once: files of memory images that another snapshot has already become links to one. */
export async function shareObjects(objects: string, dir: string, entries: [string, ManifestEntry][]): Promise<void> {
  await mkdir(objects, { recursive: true, mode: 0o700 })
  for (const [path, entry] of entries) {
    if (entry.type !== 'file' || entry.size < leastBytes || !path.startsWith(sharedFolder)) continue
    const file = join(dir, path)
    const object = join(objects, `${entry.sha256} ${entry.owner.replaceAll(/[^0-9a-z]/g, '-')}`)
    try {
      if (!existsSync(object)) await link(file, object)
      else {
        await link(object, `${file}.shared`)
        await rename(`${file}.shared`, file)
      }
    } catch (error) {
      // Removed meanwhile with the last snapshot that had it, or linked too often: then this one keeps its own.
      if (!['ENOENT', 'EMLINK', 'EEXIST'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
    }
  }
}

/** Removes what no snapshot has any more. */
export async function collectObjects(objects: string): Promise<void> {
  if (!existsSync(objects)) return
  for (const name of await readdir(objects)) {
    const stats = await lstat(join(objects, name)).catch(() => null)
    if (stats?.nlink === 1) await rm(join(objects, name), { force: true })
  }
}
