import { createHash, randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { mkdir, open, readdir, rename, rm, rmdir, stat, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createZstdCompress, createZstdDecompress } from 'node:zlib'
import { ThawError } from '@thaw/protocol'

/**
 * The folder of content-addressed blobs: `sha256/<first two digits>/<hex>`, 0600, zstd. The digest is that of the
 * content before compression, so that it does not depend on the version of the compressor. `tmp/` holds what is being
 * made; a data directory has one server, so whatever is there at the start is a leftover.
 */
export class Blobs {
  readonly #dir: string

  private constructor(dir: string) {
    this.#dir = dir
  }

  static async open(dir: string): Promise<Blobs> {
    await rm(join(dir, 'tmp'), { recursive: true, force: true })
    await mkdir(join(dir, 'tmp'), { recursive: true, mode: 0o700 })
    await mkdir(join(dir, 'sha256'), { recursive: true, mode: 0o700 })
    return new Blobs(dir)
  }

  /** A new folder below `tmp`, gone when it is disposed of. */
  async makeTemporary(): Promise<AsyncDisposable & { path: string }> {
    const path = join(this.#dir, 'tmp', randomBytes(8).toString('hex'))
    await mkdir(path, { mode: 0o700 })
    return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) }
  }

  /** Stores a stream; on disk, synced, when the promise resolves. */
  async put(content: Readable): Promise<{ digest: string; sizeBytes: number }> {
    await using temporary = await this.makeTemporary()
    const path = join(temporary.path, 'blob')
    const hash = createHash('sha256')
    await pipeline(content, tee(hash), createZstdCompress(), createWriteStream(path, { mode: 0o600, flush: true }))
    const digest = `sha256:${hash.digest('hex')}`
    const target = this.#path(digest)
    if (await this.#refresh(target)) return { digest, sizeBytes: (await stat(target)).size }
    await mkdir(dirname(target), { recursive: true, mode: 0o700 })
    const { size } = await stat(path)
    await rename(path, target)
    await syncFolder(dirname(target))
    return { digest, sizeBytes: size }
  }

  /**
   * Gives the content to `consume`. Rejects with `internal` when the blob is missing or its content is not that of the
   * digest; what was consumed must be thrown away then.
   */
  async get(digest: string, consume: (content: Readable) => Promise<void>): Promise<void> {
    const source = createReadStream(this.#path(digest))
    const decompressed = createZstdDecompress()
    const hash = createHash('sha256')
    const content = tee(hash)
    const flow = pipeline(source, decompressed, content)
    try {
      await Promise.all([flow, consume(content)])
    } catch (error) {
      content.destroy()
      await flow.catch(() => {})
      const { code, path, syscall } = error as { code?: string; path?: string; syscall?: string }
      if (code === 'ENOENT' && path === this.#path(digest)) throw lost(digest, 'is missing')
      // It was checked before it was stored: unless the disk fails, whatever is wrong with it came later.
      throw syscall === undefined ? lost(digest, 'is damaged', error) : error
    }
    if (`sha256:${hash.digest('hex')}` !== digest) throw lost(digest, 'is damaged')
  }

  /** Removes blobs that are not named and are older than `olderThanMs`: younger ones may belong to a deploy that is going on. */
  async removeExcept(digests: ReadonlySet<string>, olderThanMs: number): Promise<{ removed: string[]; freedBytes: number }> {
    const result = { removed: [] as string[], freedBytes: 0 }
    const limit = Date.now() - olderThanMs
    for (const folder of await readdir(join(this.#dir, 'sha256'))) {
      for (const hex of await readdir(join(this.#dir, 'sha256', folder))) {
        const digest = `sha256:${hex}`
        const path = join(this.#dir, 'sha256', folder, hex)
        const found = await stat(path)
        // The clock of files may be ahead of ours by less than a tick: what may go at any age is not asked for its age.
        if (digests.has(digest) || (olderThanMs > 0 && found.mtimeMs > limit)) continue
        await rm(path, { force: true })
        result.removed.push(digest)
        result.freedBytes += found.size
      }
      // Refused while something is in it.
      await rmdir(join(this.#dir, 'sha256', folder)).catch(() => undefined)
    }
    return result
  }

  /** A blob that is stored again counts as new. False when there is none. */
  async #refresh(path: string): Promise<boolean> {
    const now = new Date()
    return utimes(path, now, now).then(
      () => true,
      () => false,
    )
  }

  #path(digest: string): string {
    const hex = /^sha256:([0-9a-f]{64})$/.exec(digest)?.[1]
    if (hex === undefined) throw new ThawError('internal', `Not a digest: ${digest}`)
    return join(this.#dir, 'sha256', hex.slice(0, 2), hex)
  }
}

function tee(hash: { update(chunk: Buffer): unknown }): Transform {
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      hash.update(chunk)
      done(null, chunk)
    },
  })
}

function lost(digest: string, what: string, cause?: unknown): ThawError {
  return new ThawError('internal', `The code ${digest} ${what} in the blob folder of the data directory.`, {
    fix: 'Deploy the function again, or restore the data directory from a backup.',
    cause,
  })
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}
