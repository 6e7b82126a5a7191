import { createHash, randomBytes } from 'node:crypto'
import { chmod, mkdir, open, readdir, readFile, rename, rm, stat, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { ImageSource } from '../drivers/driver.ts'
import { runCommand } from './command.ts'
import { withLock } from './lock.ts'
import { type ImageManifest, manifestSchema, pointerSchema } from './manifest.ts'
import { isAliveMark, ownMark } from './marks.ts'
import { unmountBelow } from './mounts.ts'

/**
 * The folder of images, which several servers may share:
 *
 *     sha256-<hex>/manifest.json   what it is
 *     sha256-<hex>/rootfs/         its files, owned by shifted ids
 *     sha256-<hex>/last_used       its time says when the image was last asked for
 *     sha256-<hex>/users/<mark>    one per process that uses it (see marks.ts)
 *     refs/<hash>.json             which digest a reference or a recipe gave
 *     locks/                       lock files (see lock.ts)
 *     tmp/<mark>-<random>/         what a process is making; removed when that process is dead
 *
 * An image appears whole, by a rename, or not at all, and is never changed afterwards.
 */
export class ImageCache {
  readonly dir: string

  private constructor(dir: string) {
    this.dir = dir
  }

  /** Makes the folder where it is missing, and removes what processes that died left half made. */
  static async open(dir: string): Promise<ImageCache> {
    await makePublicFolder(dir)
    for (const name of ['refs', 'locks', 'tmp']) await mkdir(join(dir, name), { recursive: true, mode: 0o700 })
    const cache = new ImageCache(dir)
    await cache.#sweep()
    return cache
  }

  rootfs(digest: string): string {
    return join(this.#path(digest), 'rootfs')
  }

  source(manifest: ImageManifest): ImageSource {
    const path = this.rootfs(manifest.digest)
    return manifest.kind === 'host'
      ? { kind: 'host', digest: manifest.digest, path, binds: manifest.binds }
      : { kind: 'rootfs', digest: manifest.digest, path }
  }

  /** The manifest of an image on disk, or null. */
  async read(digest: string): Promise<ImageManifest | null> {
    return readJson(join(this.#path(digest), 'manifest.json'), manifestSchema.parse)
  }

  async list(): Promise<{ manifest: ImageManifest; lastUsedAt: number }[]> {
    const images = []
    for (const name of await readdir(this.dir)) {
      const hex = /^sha256-([0-9a-f]{64})$/.exec(name)?.[1]
      if (hex === undefined) continue
      const manifest = await this.read(`sha256:${hex}`)
      if (manifest !== null) images.push({ manifest, lastUsedAt: await this.#lastUsed(manifest.digest) })
    }
    return images
  }

  /** Marks an image as used by this process and gives its manifest, or null when it is not on disk. */
  async use(digest: string): Promise<ImageManifest | null> {
    if ((await this.read(digest)) === null) return null
    // Under the lock, so that no other process removes it between the look and the mark.
    return withLock(this.#lock('images'), async () => {
      const manifest = await this.read(digest)
      if (manifest !== null) await this.#mark(this.#path(digest))
      return manifest
    })
  }

  /** Says that an image that this process uses was used now. False when somebody deleted it by hand. */
  async touch(digest: string): Promise<boolean> {
    const now = new Date()
    return utimes(join(this.#path(digest), 'last_used'), now, now).then(
      () => true,
      () => false,
    )
  }

  /** Drops the mark of this process. */
  async release(digest: string): Promise<void> {
    await rm(join(this.#path(digest), 'users', ownMark()), { force: true })
  }

  /** The digest that a key was resolved to before. That image may be gone: `use` tells. */
  async pointer(key: string): Promise<string | null> {
    return (await readJson(this.#pointerPath(key), pointerSchema.parse))?.digest ?? null
  }

  /** What references and recipes were resolved to. */
  async pointers(): Promise<{ ref: string; digest: string }[]> {
    const names = await readdir(join(this.dir, 'refs'))
    const pointers = await Promise.all(names.map((name) => readJson(join(this.dir, 'refs', name), pointerSchema.parse)))
    return pointers.filter((pointer) => pointer !== null)
  }

  async setPointer(key: string, ref: string, digest: string): Promise<void> {
    const path = this.#pointerPath(key)
    const temporary = join(this.dir, 'tmp', `${ownMark()}-${randomBytes(6).toString('hex')}`)
    await writeSynced(temporary, JSON.stringify({ ref, digest }))
    await rename(temporary, path)
  }

  /** Runs `work` while no other call, of any process, works on the same key. */
  exclusively<Result>(
    key: string,
    work: () => Promise<Result>,
    options: { signal?: AbortSignal | undefined; onWait?: () => void },
  ): Promise<Result> {
    return withLock(this.#lock(hash(key)), work, options)
  }

  /** A new folder of this process, gone with it. */
  async makeTemporary(): Promise<AsyncDisposable & { path: string }> {
    const path = join(this.dir, 'tmp', `${ownMark()}-${randomBytes(6).toString('hex')}`)
    await mkdir(path, { mode: 0o700 })
    return { path, [Symbol.asyncDispose]: () => removeFolder(path) }
  }

  /** Moves a finished `<folder>/rootfs` into its place, marked as used by this process. */
  async publish(folder: string, manifest: ImageManifest): Promise<void> {
    await writeSynced(join(folder, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`, 0o644)
    await this.#mark(folder)
    await chmod(folder, 0o755)
    await runCommand('sync', ['--file-system', folder], { timeoutMs: 120_000 })
    await withLock(this.#lock('images'), async () => {
      if ((await this.read(manifest.digest)) === null) {
        // A folder without a manifest was left by somebody who deleted by hand.
        await removeFolder(this.#path(manifest.digest))
        await rename(folder, this.#path(manifest.digest))
        await syncFolder(this.dir)
      } else await this.#mark(this.#path(manifest.digest))
    })
  }

  /**
   * Removes an image unless `keep` says no; other processes that use it always keep it. Gives the bytes freed, or
   * null when it stays.
   */
  async remove(digest: string, keep: (lastUsedAt: number) => boolean = () => false): Promise<number | null> {
    const path = this.#path(digest)
    await using doomed = await this.makeTemporary()
    return await withLock(this.#lock('images'), async () => {
      const manifest = await this.read(digest)
      if (manifest === null) return 0
      if (keep(await this.#lastUsed(digest)) || (await this.usedElsewhere(digest))) return null
      await rename(path, join(doomed.path, 'image'))
      await this.#removePointers(digest)
      return manifest.size_bytes
    })
  }

  /** Whether a living process other than this one has marked the image. */
  async usedElsewhere(digest: string): Promise<boolean> {
    const marks = await readdir(join(this.#path(digest), 'users')).catch(() => [])
    return marks.some((mark) => mark !== ownMark() && isAliveMark(mark))
  }

  async #mark(folder: string): Promise<void> {
    await mkdir(join(folder, 'users'), { recursive: true, mode: 0o700 })
    for (const name of ['last_used', join('users', ownMark())]) {
      const file = await open(join(folder, name), 'w', 0o600)
      await file.close()
    }
  }

  async #lastUsed(digest: string): Promise<number> {
    return stat(join(this.#path(digest), 'last_used')).then(
      (found) => found.mtimeMs,
      () => 0,
    )
  }

  async #removePointers(digest: string): Promise<void> {
    for (const name of await readdir(join(this.dir, 'refs'))) {
      const path = join(this.dir, 'refs', name)
      if ((await readJson(path, pointerSchema.parse))?.digest === digest) await rm(path, { force: true })
    }
  }

  async #sweep(): Promise<void> {
    for (const name of await readdir(join(this.dir, 'tmp'))) {
      if (!isAliveMark(name.slice(0, name.lastIndexOf('-')))) await removeFolder(join(this.dir, 'tmp', name))
    }
    for (const { manifest } of await this.list()) {
      const users = join(this.#path(manifest.digest), 'users')
      for (const mark of await readdir(users).catch(() => [])) {
        if (!isAliveMark(mark)) await rm(join(users, mark), { force: true })
      }
    }
  }

  #path(digest: string): string {
    return join(this.dir, digest.replace(':', '-'))
  }

  #pointerPath(key: string): string {
    return join(this.dir, 'refs', `${hash(key)}.json`)
  }

  #lock(name: string): string {
    return join(this.dir, 'locks', name)
  }
}

export function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** Removes a folder of ours, after ending mounts that a build left in it: removing through a mount would reach the host. */
async function removeFolder(path: string): Promise<void> {
  await unmountBelow(path)
  await rm(path, { recursive: true, force: true })
}

/** Sandboxes run as other users and must be able to walk through the folder, whatever the umask is. */
async function makePublicFolder(dir: string): Promise<void> {
  const first = await mkdir(dir, { recursive: true, mode: 0o755 })
  if (first === undefined) return
  for (let path = dir; path.length >= first.length; path = dirname(path)) await chmod(path, 0o755)
}

async function writeSynced(path: string, text: string, mode = 0o600): Promise<void> {
  const file = await open(path, 'w', mode)
  try {
    await file.writeFile(text)
    await file.sync()
  } finally {
    await file.close()
  }
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(path, 'r')
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
}

/** A file that is missing or damaged reads as null: it is then made again. */
async function readJson<Value>(path: string, parse: (value: unknown) => Value): Promise<Value | null> {
  try {
    return parse(JSON.parse(await readFile(path, 'utf8')))
  } catch {
    return null
  }
}
