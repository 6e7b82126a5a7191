import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync } from 'node:fs'
import { mkdir, open, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { ThawError } from '@thaw/protocol'
import { packFolder, unpackInto } from './archive.ts'
import { compare, corrupt, describeFolder, folderStamp, type Manifest, sizeOf } from './manifest.ts'
import { collectObjects, shareObjects } from './objects.ts'

const draftPrefix = '.draft-'
const manifestName = 'manifest.json'
const noteName = 'note.json'
const archiveName = 'data.tar.zst'
const objectsName = '.objects'
/** A snapshot that cannot be read within this time counts as damaged. */
const checkMs = 60_000

export type ManifestHead = Omit<Manifest, 'format' | 'entries' | 'created_at'>

/** What was written for good. */
export interface Committed {
  manifest_digest: string
  size_bytes: number
}

/**
 * The files of snapshots: `<dataDir>/snapshots/<id>/` holds manifest.json and data/, what the driver wrote. A snapshot is
 * written as a draft, synced, and renamed: it is there whole or not at all. Nobody but the server's user can read them.
 */
export class SnapshotFiles {
  readonly #dir: string
  /** Stamps of folders that were compared with their manifest since they last changed. */
  readonly #checked = new Map<string, string>()

  private constructor(dir: string) {
    this.#dir = dir
  }

  /** Removes what an earlier server left half done, and every snapshot that is not `known`. */
  static async open(dataDir: string, known: ReadonlySet<string>): Promise<SnapshotFiles> {
    const dir = join(dataDir, 'snapshots')
    await mkdir(dir, { recursive: true, mode: 0o700 })
    for (const name of await readdir(dir)) {
      if (!known.has(name) && name !== objectsName) await rm(join(dir, name), { recursive: true, force: true })
    }
    await collectObjects(join(dir, objectsName))
    return new SnapshotFiles(dir)
  }

  /** An empty folder for a driver to write into. */
  async draft(): Promise<Draft> {
    const dir = join(this.#dir, `${draftPrefix}${randomBytes(8).toString('hex')}`)
    await mkdir(join(dir, 'data'), { recursive: true, mode: 0o700 })
    return new Draft(dir, this.#dir)
  }

  has(id: string): boolean {
    return existsSync(join(this.#dir, id, manifestName))
  }

  dataDir(id: string): string {
    return join(this.#dir, id, 'data')
  }

  /**
   * The manifest, once everything is as it says. `digest` is what the store knows of it. Throws `snapshot_corrupt`. What was
   * found whole is not read again until it changes.
   */
  async check(id: string, digest: string): Promise<Manifest> {
    const signal = AbortSignal.timeout(checkMs)
    try {
      await this.#unarchive(id)
      const text = await readFile(join(this.#dir, id, manifestName))
      if (sha256(text) !== digest) throw corrupt('its manifest has changed')
      const manifest = JSON.parse(text.toString('utf8')) as Manifest
      const stamp = await folderStamp(this.dataDir(id))
      if (this.#checked.get(id) !== stamp) {
        compare(manifest.entries, await describeFolder(this.dataDir(id), signal))
        this.#checked.set(id, stamp)
      }
      return manifest
    } catch (error) {
      if (error instanceof ThawError) throw error
      throw new ThawError('snapshot_corrupt', 'The snapshot cannot be read.', { cause: error })
    }
  }

  /** Keeps the snapshot compressed from now on: it takes less room, and longer to wake. Idempotent. Returns its size. */
  async archive(id: string): Promise<number> {
    const dir = join(this.#dir, id)
    const path = join(dir, archiveName)
    if (!existsSync(path)) {
      const draft = `${path}.new`
      await pipeline(packFolder(this.dataDir(id)), createWriteStream(draft, { mode: 0o600 }))
      await syncPath(draft)
      await rename(draft, path)
    }
    this.#checked.delete(id)
    await rm(this.dataDir(id), { recursive: true, force: true })
    await collectObjects(join(this.#dir, objectsName))
    return sizeOf(dir)
  }

  /** Brings the files of an archived one back. What it says of them is compared with the manifest as ever. */
  async #unarchive(id: string): Promise<void> {
    const path = join(this.#dir, id, archiveName)
    if (!existsSync(path)) return
    const draft = `${this.dataDir(id)}.new`
    await rm(draft, { recursive: true, force: true })
    await mkdir(draft, { mode: 0o700 })
    await unpackInto(draft, createReadStream(path))
    // Left half removed by a server that ended while it archived.
    await rm(this.dataDir(id), { recursive: true, force: true })
    await rename(draft, this.dataDir(id))
    await rm(path)
  }

  async remove(id: string): Promise<void> {
    this.#checked.delete(id)
    const dir = join(this.#dir, id)
    if (!existsSync(dir)) return
    // Renamed first: a snapshot that is half removed is no snapshot.
    const doomed = join(this.#dir, `${draftPrefix}${randomBytes(8).toString('hex')}`)
    await rename(dir, doomed)
    await rm(doomed, { recursive: true, force: true })
    await collectObjects(join(this.#dir, objectsName))
  }

  /** The snapshot as one file, with `note`: what else an importer wants to know. */
  async export(id: string, note: unknown): Promise<Readable> {
    const dir = join(this.#dir, id)
    // Written anew each time: what was exported before may be read at this moment, and sees the old one to its end.
    const path = join(dir, noteName)
    await writeFile(`${path}.new`, JSON.stringify(note), { mode: 0o600 })
    await rename(`${path}.new`, path)
    return packFolder(dir)
  }

  /** Unpacks what was exported into a draft, and tells what its manifest and its note say. */
  async import(archive: Readable): Promise<{ draft: Draft; manifest: Manifest; note: unknown }> {
    const draft = await this.draft()
    try {
      await rm(draft.data, { recursive: true })
      await unpackInto(dirname(draft.data), archive)
      const read = async (name: string) => JSON.parse(await readFile(join(dirname(draft.data), name), 'utf8')) as unknown
      const manifest = (await read(manifestName)) as Manifest
      if (manifest.format !== 1) throw new ThawError('archive_invalid', 'The snapshot was exported by another version of thaw.')
      compare(manifest.entries, await describeFolder(draft.data))
      return { draft, manifest, note: await read(noteName) }
    } catch (error) {
      await draft[Symbol.asyncDispose]()
      if (error instanceof ThawError) throw error
      throw new ThawError('archive_invalid', 'This is no snapshot that was exported.', { cause: error })
    }
  }
}

/** A snapshot that is being written. It is committed once, or removed. */
export class Draft implements AsyncDisposable {
  /** Where the driver writes. */
  readonly data: string
  readonly #dir: string
  readonly #root: string
  #committed = false

  constructor(dir: string, root: string) {
    this.#dir = dir
    this.#root = root
    this.data = join(dir, 'data')
  }

  /** Makes it a snapshot: describes it, syncs it, gives it its name. */
  async commit(head: ManifestHead, now: number): Promise<Committed> {
    const manifest: Manifest = {
      format: 1,
      ...head,
      created_at: new Date(now).toISOString(),
      entries: await describeFolder(this.data),
    }
    const text = Buffer.from(JSON.stringify(manifest), 'utf8')
    await writeFile(join(this.#dir, manifestName), text, { mode: 0o600 })
    await syncFiles(this.data, Object.entries(manifest.entries))
    await syncPath(join(this.#dir, manifestName))
    await syncPath(this.#dir)
    await shareObjects(join(this.#root, objectsName), this.data, Object.entries(manifest.entries))
    await rename(this.#dir, join(this.#root, head.id))
    this.#committed = true
    await syncPath(this.#root)
    return { manifest_digest: sha256(text), size_bytes: await sizeOf(join(this.#root, head.id)) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#committed) await rm(this.#dir, { recursive: true, force: true })
  }
}

async function syncFiles(dir: string, entries: [string, Manifest['entries'][string]][]): Promise<void> {
  for (const [path, entry] of entries) if (entry.type === 'file' || entry.type === 'folder') await syncPath(join(dir, path))
}

async function syncPath(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}
