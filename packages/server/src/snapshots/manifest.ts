import { createHash } from 'node:crypto'
import { createReadStream, type Stats } from 'node:fs'
import { lstat, readdir, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'

/** What one entry of a snapshot is, by its path below the data folder. */
export type ManifestEntry =
  | { type: 'file'; size: number; sha256: string; owner: string }
  | { type: 'link'; target: string }
  | { type: 'folder'; owner: string }
  /** Devices (an overlay marks what was deleted by one), sockets, named pipes. */
  | { type: 'other'; mode: number; device: number }

export interface Manifest {
  format: 1
  id: string
  kind: 'filesystem' | 'memory'
  driver: string
  image_digest: string
  /** What has to be the same where it is restored. */
  fingerprint: Record<string, string>
  /** What the driver wants to see again. */
  driver_state: Record<string, unknown>
  /** The sandbox as it was asked for; without its secrets. */
  spec: unknown
  created_at: string
  entries: Record<string, ManifestEntry>
}

const readBytes = 1024 * 1024
const parallelFiles = 4

/** Describes everything below a folder. Names that are not UTF-8 are refused: JSON could not hold them. */
export async function describeFolder(dir: string, signal?: AbortSignal): Promise<Record<string, ManifestEntry>> {
  const entries: [string, ManifestEntry][] = []
  const files: { path: string; stats: Stats }[] = []
  for await (const { path, stats } of walk(dir)) {
    signal?.throwIfAborted()
    if (stats.isFile()) files.push({ path, stats })
    else entries.push([path, await describeOther(join(dir, path), stats)])
  }
  let next = 0
  const worker = async () => {
    for (let file = files[next++]; file !== undefined; file = files[next++]) {
      const { path, stats } = file
      entries.push([path, { type: 'file', size: stats.size, sha256: await hashFile(join(dir, path), signal), owner: ownerOf(stats) }])
    }
  }
  await Promise.all(Array.from({ length: parallelFiles }, worker))
  return Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)))
}

/** Throws `snapshot_corrupt`, naming the first entry that is not as the manifest says. */
export function compare(expected: Manifest['entries'], found: Manifest['entries']): void {
  for (const [path, entry] of Object.entries(expected)) {
    const other = found[path]
    if (other === undefined) throw corrupt(`${path} is missing`)
    if (JSON.stringify(other) !== JSON.stringify(entry)) throw corrupt(`${path} has changed`)
  }
  const extra = Object.keys(found).find((path) => !Object.hasOwn(expected, path))
  if (extra !== undefined) throw corrupt(`${extra} is not part of it`)
}

export function corrupt(why: string): ThawError {
  return new ThawError('snapshot_corrupt', `The snapshot is damaged: ${why}.`)
}

/** Changes whenever something below the folder does: names, sizes and times of change, which only the kernel sets. */
export async function folderStamp(dir: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const { path, stats } of walk(dir)) hash.update(`${path}\0${stats.ino} ${stats.size} ${stats.mtimeMs} ${stats.ctimeMs}\n`)
  return hash.digest('hex')
}

export async function sizeOf(dir: string): Promise<number> {
  let bytes = 0
  for await (const { stats } of walk(dir)) bytes += stats.blocks * 512
  return bytes
}

async function* walk(root: string, below = ''): AsyncGenerator<{ path: string; stats: Stats }> {
  const names = (await readdir(join(root, below))).sort()
  for (const name of names) {
    const path = below === '' ? name : `${below}/${name}`
    const stats = await lstat(join(root, path))
    yield { path, stats }
    if (stats.isDirectory()) yield* walk(root, path)
  }
}

async function describeOther(path: string, stats: Stats): Promise<ManifestEntry> {
  if (stats.isSymbolicLink()) return { type: 'link', target: await readlink(path) }
  if (stats.isDirectory()) return { type: 'folder', owner: ownerOf(stats) }
  return { type: 'other', mode: stats.mode, device: stats.rdev }
}

function ownerOf({ uid, gid, mode }: Stats): string {
  return `${uid}:${gid} ${(mode & 0o7777).toString(8)}`
}

async function hashFile(path: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(path, { highWaterMark: readBytes, ...(signal === undefined ? {} : { signal }) })) {
    hash.update(piece as Buffer)
  }
  return hash.digest('hex')
}
