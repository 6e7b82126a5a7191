import { randomBytes } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { chmod, lchown, mkdir, open, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type Runtime, ThawError, toThawError } from '@thaw/protocol'
import { pack } from 'tar-stream'
import { idShift } from '../drivers/driver.ts'
import { Blobs } from './blobs.ts'
import { type BundleLimits, invalid, type StagedEntry, Staging, tooLarge } from './staging.ts'
import { readTar, readTarGz } from './tar.ts'
import { readZip } from './zip.ts'

export type { BundleLimits } from './staging.ts'

export interface Bundle {
  /** Of the content: the same files give the same digest, however they were packed. */
  digest: string
  /** On disk. */
  size_bytes: number
  unpacked_bytes: number
  entries: number
}

/** What inline code becomes. */
const inlineFiles: Record<Runtime, { name: string; mode: number }> = {
  python: { name: 'main.py', mode: 0o644 },
  node: { name: 'main.mjs', mode: 0o644 },
  go: { name: 'main.go', mode: 0o644 },
  custom: { name: 'bootstrap', mode: 0o755 },
}

/** Stored content was checked when it came in; entries of copied hard links may be more than were sent. */
const unlimited: BundleLimits = {
  maxPackedBytes: Number.MAX_SAFE_INTEGER,
  maxUnpackedBytes: Number.MAX_SAFE_INTEGER,
  maxEntries: 10_000_000,
}

/**
 * The code of functions, as content-addressed blobs in `<dataDir>/blobs`.
 *
 * What is stored is not the archive that was sent but one tar of our own with its checked content, in a fixed order and
 * without times and owners: equal content is kept once, and what is unpacked for every instance never depends on how
 * some zip tool or attacker wrote it.
 *
 * Errors of what is sent: `archive_invalid`, `archive_unsafe`, `archive_too_large`; nothing is left on disk then.
 */
export class Bundles {
  readonly #blobs: Blobs
  readonly #limits: BundleLimits

  private constructor(blobs: Blobs, limits: BundleLimits) {
    this.#blobs = blobs
    this.#limits = limits
  }

  static async open(options: { dataDir: string; limits: BundleLimits }): Promise<Bundles> {
    return new Bundles(await Blobs.open(join(options.dataDir, 'blobs')), options.limits)
  }

  /** Stores one source file under the name that its runtime expects. */
  async addInline(source: Uint8Array, runtime: Runtime): Promise<Bundle> {
    const { name, mode } = inlineFiles[runtime]
    return this.#add((staging) => staging.addFile(name, mode, Readable.from([source])))
  }

  /** Stores the content of a zip or tar.gz, in memory or in a file; which of the two, its first bytes tell. */
  async addArchive(archive: Buffer | { path: string }): Promise<Bundle> {
    const sizeBytes = Buffer.isBuffer(archive) ? archive.length : (await stat(archive.path)).size
    if (sizeBytes > this.#limits.maxPackedBytes) throw tooLarge(`The code archive is larger than ${this.#limits.maxPackedBytes} bytes`)
    const start = await readStart(archive)
    if (start.subarray(0, 2).equals(Buffer.from([0x1f, 0x8b]))) {
      const stream = () => (Buffer.isBuffer(archive) ? Readable.from(slices(archive)) : createReadStream(archive.path))
      return this.#add((staging) => readTarGz(stream(), staging, this.#limits))
    }
    if (start.toString('latin1', 0, 2) === 'PK') return this.#add((staging) => readZip(archive, staging, this.#limits))
    throw invalid('it is neither a zip nor a tar.gz file')
  }

  /**
   * Unpacks a bundle into a new folder: files 0644 or 0755, folders 0755. It appears whole or not at all. With
   * `shiftIds`, root of a sandbox with a user namespace owns it, otherwise this process does.
   */
  async unpack(digest: string, target: string, options: { shiftIds?: boolean } = {}): Promise<void> {
    const folder = `${target}.${randomBytes(6).toString('hex')}.tmp`
    await mkdir(folder)
    try {
      const staging = new Staging(folder, unlimited)
      await this.#blobs.get(digest, (content) => readTar(content, staging))
      const entries = await staging.finish()
      if (options.shiftIds) for (const { path } of [{ path: '' }, ...entries]) await lchown(join(folder, path), idShift, idShift)
      await rename(folder, target)
    } catch (error) {
      await rm(folder, { recursive: true, force: true })
      throw toThawError(error)
    }
  }

  /**
   * Removes every blob that is not named here. Those younger than `olderThanMs` stay: their deploy may not have been
   * recorded yet.
   */
  async removeBlobsExcept(
    digests: Iterable<string>,
    options: { olderThanMs: number },
  ): Promise<{ removed: string[]; freed_bytes: number }> {
    const { removed, freedBytes } = await this.#blobs.removeExcept(new Set(digests), options.olderThanMs)
    return { removed, freed_bytes: freedBytes }
  }

  async #add(read: (staging: Staging) => Promise<void>): Promise<Bundle> {
    await using temporary = await this.#blobs.makeTemporary()
    try {
      const staging = new Staging(temporary.path, this.#limits)
      // Nobody else looks at what is not checked yet.
      await chmod(temporary.path, 0o700)
      await read(staging)
      const entries = await staging.finish()
      if (entries.length === 0) throw invalid('it holds no files')
      const { digest, sizeBytes } = await this.#blobs.put(packEntries(temporary.path, entries))
      return { digest, size_bytes: sizeBytes, unpacked_bytes: staging.unpackedBytes, entries: entries.length }
    } catch (error) {
      throw explain(error)
    }
  }
}

/** One tar of checked entries. Everything in it follows from the content. */
function packEntries(root: string, entries: readonly StagedEntry[]): Readable {
  const tar = pack()
  const write = async () => {
    for (const { path, kind, executable, sizeBytes, target } of entries) {
      const header = { name: path, uid: 0, gid: 0, mtime: new Date(0) }
      await new Promise<void>((resolve, reject) => {
        const done = (error?: Error | null) => (error ? reject(error) : resolve())
        if (kind === 'directory') tar.entry({ ...header, type: 'directory', mode: 0o755 }, done)
        else if (kind === 'symlink') tar.entry({ ...header, type: 'symlink', mode: 0o777, linkname: target }, done)
        else {
          const sink = tar.entry({ ...header, type: 'file', mode: executable ? 0o755 : 0o644, size: sizeBytes }, done)
          createReadStream(join(root, path))
            .once('error', reject)
            .pipe(sink as unknown as NodeJS.WritableStream)
        }
      })
    }
    tar.finalize()
  }
  write().catch((error: Error) => tar.destroy(error))
  return Readable.from(tar as unknown as AsyncIterable<Buffer>, { objectMode: false })
}

/** What goes wrong while reading an archive is a fault of the archive, unless the disk says otherwise. */
function explain(error: unknown): ThawError {
  if (error instanceof ThawError) return error
  if (typeof (error as { syscall?: unknown } | null)?.syscall === 'string') return toThawError(error)
  const message = error instanceof Error ? error.message : String(error)
  return invalid(message.replace(/\.$/, ''), error)
}

async function readStart(archive: Buffer | { path: string }): Promise<Buffer> {
  if (Buffer.isBuffer(archive)) return archive.subarray(0, 4)
  const file = await open(archive.path, 'r')
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

/** Pieces of a buffer, so that a large one passes through the stream bit by bit. */
function* slices(buffer: Buffer): Generator<Buffer> {
  const size = 64 * 1024
  for (let start = 0; start < buffer.length; start += size) yield buffer.subarray(start, start + size)
}
