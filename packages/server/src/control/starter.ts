import { existsSync } from 'node:fs'
import { type BootMethod, errorTable, type LoadMessage, ThawError } from '@thaw/protocol'
import { type Driver, insidePaths } from '../drivers/driver.ts'
import type { Artifacts } from './artifacts.ts'
import { BootedSandbox } from './booted.ts'
import type { Drivers } from './drivers.ts'
import { Instance, type InstanceLog } from './instance.ts'
import { bootKindOf, type LaunchPlaces, loadOf, pooledSpec, type RuntimeFolder, specOf } from './launch.ts'
import type { PoolKey } from './pool.ts'
import type { Images, ReadyImage } from './ports.ts'
import type { Secrets } from './secrets.ts'
import type { Version } from './version.ts'
import type { VersionSnapshots } from './version-snapshots.ts'

export interface StarterOptions {
  runtimesDir: string
  startTimeoutMs: number
}

/** A pool whose sandboxes run a runtime. */
export type RuntimePoolKey = PoolKey & { folder: RuntimeFolder }

export interface StarterParts {
  drivers: Drivers
  images: Images
  artifacts: Artifacts
  secrets: Secrets
  pools: { take(key: PoolKey): BootedSandbox | undefined }
  snapshots: Pick<VersionSnapshots, 'ready' | 'source' | 'started' | 'succeeded' | 'failed'>
  log: (version: Version) => InstanceLog
  /** A faster way of starting failed, and the next one is used. */
  onFallback: (version: Version, method: BootMethod, error: unknown) => void
}

/** What an instance stands on. */
interface Ground {
  driver: Driver
  image: ReadyImage
  places: LaunchPlaces
}

/** A start from memory that takes longer is given up, whatever holds it. */
const warmMs = 5_000
/** How long an image that was found is not looked for again. */
const trustedMs = 30_000
/** Code of more files is not bound into a pooled sandbox: making the links would take as long as a start. */
const maxBoundEntries = 2000

/**
 * Starts instances: brings driver, image and code of a version together. The memory of an earlier one comes first, then a pooled
 * sandbox; whatever is wrong with these, the caller gets a cold start.
 */
export class Starter {
  readonly #options: StarterOptions
  readonly #parts: StarterParts
  readonly #seen = new Map<string, { image: ReadyImage; at: number }>()

  constructor(options: StarterOptions, parts: StarterParts) {
    this.#options = options
    this.#parts = parts
  }

  /** The driver and the image of a version, ready for use. */
  async prepare(
    version: Version,
    signal: AbortSignal,
    onProgress?: (line: string) => void,
  ): Promise<{ driver: Driver; image: ReadyImage }> {
    const driver = await this.#parts.drivers.usable(version.config.driver)
    return { driver, image: await this.#image(version, signal, onProgress) }
  }

  async start(version: Version, signal: AbortSignal): Promise<Instance> {
    if (!this.#parts.artifacts.isComplete(version)) throw new ThawError('start_failed', 'The code of this version is not on disk yet.')
    const { driver, image } = await this.prepare(version, signal)
    const places = this.#places(version, image)
    const warm = await this.#startWarm(version, { driver, image, places }, signal)
    if (warm !== null) return warm
    const load = await this.#parts.secrets.addTo(loadOf(version, places), version.tenant, version.config.secrets)
    const instance =
      (await this.#startPooled(version, image, places, load, signal)) ??
      (await this.#startCold(version, { driver, image, places }, load, signal))
    this.#parts.snapshots.started(version, instance.times.init_ms)
    return instance
  }

  /** An instance that has loaded its code and knows no secrets: what is kept of it can be used for a long time. */
  async startBare(version: Version, signal: AbortSignal): Promise<Instance> {
    const { driver, image } = await this.prepare(version, signal)
    const places = this.#places(version, image)
    return this.#startCold(version, { driver, image, places }, loadOf(version, places), signal)
  }

  /** From the memory of an earlier one. Null: there is none, or it is of no use; the caller goes on without. */
  async #startWarm(version: Version, { driver, image, places }: Ground, signal: AbortSignal): Promise<Instance | null> {
    const { snapshots, secrets } = this.#parts
    const snapshot = snapshots.ready(version)
    if (snapshot === null) return null
    const started = performance.now()
    const limit = AbortSignal.timeout(warmMs)
    const both = AbortSignal.any([signal, limit])
    try {
      const source = await unlessAborted(snapshots.source(version, snapshot, driver), both)
      const own = await secrets.valuesOf(version.tenant, version.config.secrets)
      const spec = { ...specOf(version, await driver.prepare(image.source), places), snapshot: source }
      const booted = await BootedSandbox.start(driver, spec, { timeoutMs: warmMs, signal: both })
      const bootMs = performance.now() - started
      const instance = await Instance.wake(booted, version, own, this.#parts.log(version), { bootMs, signal: both })
      snapshots.succeeded(version, snapshot)
      return instance
    } catch (caught) {
      if (signal.aborted) throw caught
      const error = limit.aborted ? new ThawError('snapshot_failed', `It took longer than ${warmMs} ms.`, { cause: caught }) : caught
      await snapshots.failed(version, snapshot, error)
      this.#parts.onFallback(version, 'warm', error)
      return null
    }
  }

  async #startCold(version: Version, { driver, image, places }: Ground, load: LoadMessage, signal: AbortSignal): Promise<Instance> {
    const started = performance.now()
    const spec = specOf(version, await driver.prepare(image.source), places)
    const timeoutMs = this.#options.startTimeoutMs
    const booted = await BootedSandbox.start(driver, spec, { timeoutMs, signal })
    return Instance.load(booted, version, load, this.#parts.log(version), {
      timeoutMs,
      bootMs: performance.now() - started,
      bootMethod: 'cold',
      signal,
    })
  }

  /** The pool that a version's instances can come from, or null. */
  poolKeyOf(version: Version, image: { digest: string }): RuntimePoolKey | null {
    const kind = bootKindOf(version)
    if (kind === null || !this.#parts.artifacts.hasAtMost(version, maxBoundEntries)) return null
    return { ...kind, driver: version.config.driver, imageDigest: image.digest, imageRef: version.config.image }
  }

  /** Starts a sandbox for a pool. */
  async startForPool(key: RuntimePoolKey, signal: AbortSignal): Promise<BootedSandbox> {
    const driver = await this.#parts.drivers.usable(key.driver)
    const image = (await this.#parts.images.find(key.imageDigest)) ?? (await this.#parts.images.ensure(key.imageRef, { signal }))
    const spec = pooledSpec(key, await driver.prepare(image.source), {
      runtimesDir: this.#options.runtimesDir,
      imageEnv: image.config?.env ?? {},
    })
    return BootedSandbox.start(driver, spec, { timeoutMs: this.#options.startTimeoutMs, signal })
  }

  async #startPooled(
    version: Version,
    image: ReadyImage,
    places: LaunchPlaces,
    load: LoadMessage,
    signal: AbortSignal,
  ): Promise<Instance | null> {
    const key = this.poolKeyOf(version, image)
    if (key === null) return null
    const started = performance.now()
    const booted = this.#parts.pools.take(key)
    if (booted === undefined) return null
    try {
      await booted.driver.bind(booted.id, {
        ...(places.codeDir === undefined ? {} : { code: places.codeDir }),
        resources: version.config.resources,
      })
    } catch (error) {
      await booted.destroy()
      this.#parts.onFallback(version, 'pooled', error)
      return null
    }
    try {
      return await Instance.load(booted, version, load, this.#parts.log(version), {
        timeoutMs: this.#options.startTimeoutMs,
        bootMs: performance.now() - started,
        bootMethod: 'pooled',
        signal,
      })
    } catch (error) {
      // Code that cannot be loaded cannot be loaded in another sandbox either.
      if (signal.aborted || (error instanceof ThawError && errorTable[error.code].blame === 'code')) throw error
      this.#parts.onFallback(version, 'pooled', error)
      return null
    }
  }

  /** An image that was on disk a moment ago is taken to be there still: to look costs more than the rest of a pooled start. */
  async #known(digest: string): Promise<ReadyImage | null> {
    const seen = this.#seen.get(digest)
    const now = performance.now()
    if (seen !== undefined && now - seen.at < trustedMs && seen.image.source.path !== undefined && existsSync(seen.image.source.path))
      return seen.image
    const image = await this.#parts.images.find(digest)
    if (image === null) this.#seen.delete(digest)
    else this.#seen.set(digest, { image, at: now })
    return image
  }

  #places(version: Version, image: ReadyImage): LaunchPlaces {
    return {
      runtimesDir: this.#options.runtimesDir,
      codeDir: this.#parts.artifacts.path(version),
      insideCodeDir: version.codeDigest === null ? (image.config?.workdir ?? '/') : insidePaths.codeDir,
      imageEnv: image.config?.env ?? {},
    }
  }

  /** A version stays with the image that it was made with: a tag that moved meanwhile changes nothing. */
  async #image(version: Version, signal: AbortSignal, onProgress?: (line: string) => void): Promise<ReadyImage> {
    const { image: ref } = version.config
    if (version.imageDigest !== null) {
      const found = await this.#known(version.imageDigest)
      if (found !== null) return found
    }
    const image = await this.#parts.images.ensure(ref, { signal, ...(onProgress ? { onProgress } : {}) }).catch((error: unknown) => {
      // It was there when the version was deployed: whatever is wrong now is not the fault of who calls.
      if (version.imageDigest === null || !(error instanceof ThawError) || error.code !== 'image_unresolvable') throw error
      throw new ThawError('image_unavailable', error.message, { details: error.details, cause: error })
    })
    if (version.imageDigest !== null && image.digest !== version.imageDigest && image.kind === 'oci') {
      throw new ThawError(
        'image_unavailable',
        `The image ${ref} is not what it was when version ${version.number} was deployed, and the old one is gone.`,
        {
          fix: 'Deploy a new version.',
        },
      )
    }
    return image
  }
}

/** For what takes no signal. What it does goes on behind. */
function unlessAborted<Result>(work: Promise<Result>, signal: AbortSignal): Promise<Result> {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    if (signal.aborted) abort()
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}
