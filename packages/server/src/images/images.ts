import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { ThawError, toThawError } from '@thaw/protocol'
import type { ImageSource } from '../drivers/driver.ts'
import { ImageCache } from './cache.ts'
import { buildHostTree, describeHost } from './host.ts'
import type { ImageConfig, ImageManifest, Interpreters } from './manifest.ts'
import { pullImage, unpackImage } from './oci-image.ts'
import { buildPackageImage, packageKey, parsePackages } from './package-images.ts'
import { parseReference } from './reference.ts'
import { Registry } from './registry.ts'
import { buildRuntimeImage, defaultNodeBinary, type RecipeName, recipeKey, runtimeImages } from './runtime-images.ts'
import { SharedWork, type Watcher, type Watchers } from './shared-work.ts'

export interface ImagesOptions {
  /** The folder of images; may be shared with other servers of this machine. */
  imagesDir: string
  /** The Node.js of `node` and `host` images. Default: the one that this installation pins. */
  nodeBinary?: string
  /** Folders of this machine that `host` shows beyond /usr and the like. */
  hostFolders?: readonly string[]
  /** Registries (host:port) that speak plain HTTP; those on loopback may anyway. */
  insecureRegistries?: readonly string[]
  /** Credentials for registries, as `skopeo login` writes them. Default: where skopeo looks by itself. */
  registryAuthFile?: string | null
  /** Largest OCI image, unpacked. Default: 8 GiB. */
  maxImageBytes?: number
}

const defaultMaxImageBytes = 8 * 1024 ** 3

/** An image that is on disk. */
export interface Image {
  source: ImageSource
  digest: string
  size_bytes: number
  kind: ImageManifest['kind']
  config: ImageConfig
  interpreters: Interpreters
}

export interface ListedImage {
  ref: string
  kind: ImageManifest['kind']
  digest: string | null
  /** available: known how to make it; ready: on disk. */
  state: 'available' | 'ready'
  size_bytes: number | null
  created_at: string | null
  last_used_at: string | null
}

/**
 * Makes images available on this machine's disk: `host`, the runtime images `python`, `node` and `go`, packages of Debian, and
 * OCI references. See docs/images.md for what is in them.
 *
 * All methods are safe to call at the same time, also from several servers that share the folder. An image that this
 * process got from `ensure` is kept from other processes' `prune` until this process releases it (by its own `prune`
 * or `remove`) or ends.
 */
export class Images {
  readonly #cache: ImageCache
  readonly #nodeBinary: string
  readonly #hostFolders: readonly string[]
  readonly #registry: Registry
  readonly #maxImageBytes: number
  readonly #work = new SharedWork<Image>()
  /** Images that carry the mark of this process. */
  readonly #held = new Map<string, Image>()
  /** Keys of recipes; they cannot change while the process runs. */
  readonly #recipeKeys = new Map<RecipeName, Promise<string>>()

  private constructor(cache: ImageCache, options: ImagesOptions) {
    this.#cache = cache
    this.#nodeBinary = options.nodeBinary ?? defaultNodeBinary()
    this.#hostFolders = options.hostFolders ?? []
    this.#registry = new Registry({ insecureRegistries: options.insecureRegistries ?? [], authFile: options.registryAuthFile ?? null })
    this.#maxImageBytes = options.maxImageBytes ?? defaultMaxImageBytes
  }

  /** Opens the folder, and removes what builds of dead processes left in it. */
  static async open(options: ImagesOptions): Promise<Images> {
    return new Images(await ImageCache.open(options.imagesDir), options)
  }

  /**
   * Gives the image, made first if it is not on disk. Idempotent. `onProgress` gets lines for people.
   *
   * The tag of an OCI reference is looked up in its registry each time; a reference with a digest that is on disk asks
   * nobody. What is pulled is content of a digest, so a tag that did not move costs no download.
   *
   * Errors: `image_unresolvable`, `image_digest_mismatch` (the reference), `image_unavailable` (registry or mirror not
   * reachable, tools missing; try again), `disk_full`.
   */
  async ensure(ref: string, options: Watcher = {}): Promise<Image> {
    return this.#work.run(ref, options, async (shared) => {
      try {
        if (ref === 'host') return await this.#ensureHost(shared)
        if (isRecipe(ref)) return await this.#ensureRecipe(ref, shared)
        const packages = parsePackages(ref)
        if (packages !== null) return await this.#findPackages(ref, packages)
        return await this.#ensureOci(ref, shared)
      } catch (error) {
        throw shared.signal.aborted ? error : toThawError(error, 'image_unavailable')
      }
    })
  }

  /**
   * As `ensure`, but it also builds images of Debian packages (`apt:postgresql,redis-server`), which `ensure` only finds:
   * the scripts of packages run as root of this machine, so the caller must be one who may do that.
   */
  async build(ref: string, options: Watcher = {}): Promise<Image> {
    const packages = parsePackages(ref)
    if (packages === null) return this.ensure(ref, options)
    requireRoot()
    return this.#work.run(`build ${ref}`, options, async (shared) => {
      try {
        return await this.#buildPackages(ref, packages, shared)
      } catch (error) {
        throw shared.signal.aborted ? error : toThawError(error, 'image_unavailable')
      }
    })
  }

  /**
   * Adds an image that `make` writes to a file, as `docker save` does, under a name that no registry is asked for from then
   * on. Errors: `image_unresolvable` (the name is one of ours, or the archive cannot be used), those of `make`, `disk_full`.
   */
  async add(ref: string, make: (file: string) => Promise<void>, options: Watcher = {}): Promise<Image> {
    const key = builtKey(ref)
    requireRoot()
    const signal = options.signal
    await using temporary = await this.#cache.makeTemporary()
    const file = join(temporary.path, 'image.tar')
    await make(file)
    const resolved = await this.#registry.readArchive(file, join(temporary.path, 'layout'), this.#maxImageBytes, signal)
    await rm(file)
    const image =
      (await this.find(resolved.digest)) ??
      (await (async () => {
        const manifest = await unpackImage(ref, resolved, join(temporary.path, 'layout'), {
          folder: temporary.path,
          maxBytes: this.#maxImageBytes,
          onProgress: (step) => options.onProgress?.(`image ${ref}: ${step}`),
          signal,
        })
        await rm(join(temporary.path, 'layout'), { recursive: true })
        await this.#cache.publish(temporary.path, manifest)
        return this.#hold(manifest)
      })())
    await this.#cache.setPointer(key, ref, image.digest)
    return image
  }

  /** The image of a digest, if it is on disk; asks no registry. */
  async find(digest: string): Promise<Image | null> {
    if (!/^sha256:[0-9a-f]{64}$/.test(digest)) return null
    const held = this.#held.get(digest)
    if (held !== undefined && (await this.#cache.touch(digest))) return held
    const manifest = await this.#cache.use(digest)
    return manifest === null ? null : this.#hold(manifest)
  }

  /** What is on disk, and the runtime images that could be. */
  async list(): Promise<ListedImage[]> {
    const ready: ListedImage[] = (await this.#cache.list()).map(({ manifest, lastUsedAt }) => ({
      ref: manifest.ref,
      kind: manifest.kind,
      digest: manifest.digest,
      state: 'ready',
      size_bytes: manifest.size_bytes,
      created_at: manifest.created_at,
      last_used_at: new Date(lastUsedAt).toISOString(),
    }))
    const available = ['host', ...runtimeImages]
      .filter((ref) => !ready.some((image) => image.ref === ref))
      .map((ref): ListedImage => {
        const kind = ref === 'host' ? 'host' : 'runtime'
        return { ref, kind, digest: null, state: 'available', size_bytes: null, created_at: null, last_used_at: null }
      })
    return [...ready, ...available].sort((a, b) => a.ref.localeCompare(b.ref))
  }

  /**
   * Removes images by digest or by the reference that they were asked for as. The caller must know that no sandbox of
   * its own uses them. Errors: `image_not_found`, `image_in_use` (by another process).
   */
  async remove(refOrDigest: string): Promise<{ removed: string[]; freed_bytes: number }> {
    const named = new Set((await this.#cache.pointers()).filter(({ ref }) => ref === refOrDigest).map(({ digest }) => digest))
    const found = (await this.#cache.list()).filter(({ manifest }) => manifest.digest === refOrDigest || named.has(manifest.digest))
    if (found.length === 0) throw new ThawError('image_not_found', `There is no image ${refOrDigest} on this machine.`)
    const result = { removed: [] as string[], freed_bytes: 0 }
    for (const { manifest } of found) {
      const freed = await this.#removeOne(manifest.digest)
      if (freed === null) {
        throw new ThawError('image_in_use', `The image ${manifest.ref} is used by another server on this machine.`, {
          fix: 'Stop the server that uses it, or give each server its own images_dir.',
        })
      }
      result.removed.push(manifest.digest)
      result.freed_bytes += freed
    }
    return result
  }

  /**
   * Removes images that nobody uses: not in `inUse`, not marked by another living process, and not asked for within
   * the last `olderThanMs`. Marks those in use as used now: call it regularly.
   */
  async prune(options: { inUse: ReadonlySet<string>; olderThanMs: number }): Promise<{ removed: string[]; freed_bytes: number }> {
    const result = { removed: [] as string[], freed_bytes: 0 }
    const limit = Date.now() - options.olderThanMs
    for (const { manifest, lastUsedAt } of await this.#cache.list()) {
      const { digest } = manifest
      if (options.inUse.has(digest)) {
        await this.find(digest)
        continue
      }
      if (lastUsedAt > limit) continue
      const freed = await this.#removeOne(digest, (usedAt) => usedAt > limit)
      if (freed === null) continue
      result.removed.push(digest)
      result.freed_bytes += freed
    }
    return result
  }

  async #removeOne(digest: string, keep?: (lastUsedAt: number) => boolean): Promise<number | null> {
    this.#held.delete(digest)
    const freed = await this.#cache.remove(digest, keep)
    // It stays for others; this process has no part in it any more.
    if (freed === null && !this.#held.has(digest)) await this.#cache.release(digest)
    return freed
  }

  async #ensureHost(shared: Watchers): Promise<Image> {
    const manifest = await describeHost({ nodeBinary: this.#nodeBinary, folders: this.#hostFolders })
    return this.#ensureKey(manifest.digest, 'host', shared, async (folder) => {
      await buildHostTree(join(folder, 'rootfs'), manifest)
      return manifest
    })
  }

  async #ensureRecipe(name: RecipeName, shared: Watchers): Promise<Image> {
    requireRoot()
    let key = this.#recipeKeys.get(name)
    if (key === undefined) {
      key = recipeKey(name, this.#nodeBinary)
      this.#recipeKeys.set(name, key)
      key.catch(() => this.#recipeKeys.delete(name))
    }
    return this.#ensureKey(await key, name, shared, async (folder) => {
      const started = performance.now()
      await using temporary = await this.#cache.makeTemporary()
      const say = (step: string) => shared.onProgress(`image ${name}: ${step}`)
      const manifest = await buildRuntimeImage(name, {
        folder,
        temporary: temporary.path,
        nodeBinary: this.#nodeBinary,
        base: async () => {
          const base = (await this.ensure('base', shared)).source.path
          if (base === undefined) throw new Error('the image base has no folder')
          return base
        },
        onProgress: say,
        signal: shared.signal,
      })
      const seconds = ((performance.now() - started) / 1000).toFixed(1)
      say(`built in ${seconds} s: ${manifest.packages.length} packages, ${Math.round(manifest.size_bytes / 1024 / 1024)} MiB`)
      return manifest
    })
  }

  async #findPackages(ref: string, packages: string[]): Promise<Image> {
    const image = await this.#findKey(await packageKey(packages))
    if (image !== null) return image
    throw new ThawError('image_unresolvable', `The image ${ref} was not built on this machine yet.`, {
      fix: `Build it, as an admin: thaw image build ${ref} (POST /v1/images).`,
    })
  }

  async #buildPackages(ref: string, packages: string[], shared: Watchers): Promise<Image> {
    return this.#ensureKey(await packageKey(packages), ref, shared, async (folder) => {
      await using temporary = await this.#cache.makeTemporary()
      return await buildPackageImage(ref, packages, {
        folder,
        temporary: temporary.path,
        maxBytes: this.#maxImageBytes,
        onProgress: (step) => shared.onProgress(`image ${ref}: ${step}`),
        signal: shared.signal,
      })
    })
  }

  async #ensureOci(ref: string, shared: Watchers): Promise<Image> {
    const reference = parseReference(ref)
    requireRoot()
    const built = await this.#findKey(builtKey(ref))
    if (built !== null) return built
    const key = `oci ${process.arch} ${ref}`
    const known = reference.digest === null ? null : await this.#findKey(key)
    if (known !== null) return known
    const resolved = await this.#registry.resolve(reference, shared.signal)
    const image = await this.#ensureKey(resolved.digest, ref, shared, async (folder) => {
      await using temporary = await this.#cache.makeTemporary()
      return await pullImage(ref, reference, resolved, {
        folder,
        temporary: temporary.path,
        registry: this.#registry,
        maxBytes: this.#maxImageBytes,
        onProgress: (step) => shared.onProgress(`image ${ref}: ${step}`),
        signal: shared.signal,
      })
    })
    await this.#cache.setPointer(key, ref, image.digest)
    return image
  }

  /** The image that a key stands for: held already, on disk, or made now by `build` into `<folder>/rootfs`. */
  async #ensureKey(key: string, ref: string, shared: Watchers, build: (folder: string) => Promise<ImageManifest>): Promise<Image> {
    const known = await this.#findKey(key)
    if (known !== null) return known
    const onWait = () => shared.onProgress(`image ${ref}: another server is making it; waiting`)
    return this.#cache.exclusively(
      key,
      async () => {
        const made = await this.#findKey(key)
        if (made !== null) return made
        await using temporary = await this.#cache.makeTemporary()
        const manifest = await build(temporary.path)
        shared.signal.throwIfAborted()
        await this.#cache.publish(temporary.path, manifest)
        await this.#cache.setPointer(key, ref, manifest.digest)
        return this.#hold(manifest)
      },
      { signal: shared.signal, onWait },
    )
  }

  async #findKey(key: string): Promise<Image | null> {
    const digest = await this.#cache.pointer(key)
    return digest === null ? null : this.find(digest)
  }

  #hold(manifest: ImageManifest): Image {
    const { digest, size_bytes, kind, config, interpreters } = manifest
    const image: Image = { source: this.#cache.source(manifest), digest, size_bytes, kind, config, interpreters }
    this.#held.set(digest, image)
    return image
  }
}

/** The key of an image that was built here. A name without a tag means the tag latest, as everywhere. */
function builtKey(ref: string): string {
  const { name, tag, digest } = parseReference(ref)
  if (ref === 'host' || isRecipe(name) || name === 'apt') {
    throw new ThawError('image_unresolvable', `The name ${ref} is that of an image which thaw makes itself.`, {
      fix: 'Choose another name.',
    })
  }
  return `built ${process.arch} ${name}:${tag ?? 'latest'}${digest === null ? '' : `@${digest}`}`
}

function isRecipe(ref: string): ref is RecipeName {
  return ref === 'base' || (runtimeImages as readonly string[]).includes(ref)
}

function requireRoot(): void {
  if (process.getuid?.() === 0) return
  throw new ThawError('image_unavailable', 'Images are unpacked with the owners that sandboxes need, which only root may set.', {
    fix: 'Run the server as root, or use image host with the process driver.',
  })
}
