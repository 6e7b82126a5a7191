import { type DriverKind, type NetworkMode, type PoolItem, ThawError } from '@thaw/protocol'
import type { Drivers } from './drivers.ts'
import type { RuntimeFolder } from './launch.ts'
import type { PoolKey } from './pool.ts'
import type { Pools } from './pools.ts'
import type { Images } from './ports.ts'

/** Which pool somebody means, with what may be left out. */
export interface PoolRequest {
  image: string
  runtime?: RuntimeFolder | undefined
  driver?: DriverKind | undefined
  network: NetworkMode
  tmp_mib: number
}

/** Pools as the API names them: by image and driver. */
export class PoolCatalog {
  readonly #pools: Pools
  readonly #drivers: Drivers
  readonly #images: Images

  constructor(pools: Pools, drivers: Drivers, images: Images) {
    this.#pools = pools
    this.#drivers = drivers
    this.#images = images
  }

  list(): PoolItem[] {
    return this.#pools.list()
  }

  /** Fixes the size of a pool, or, with null, lets it follow demand. */
  async configure(request: PoolRequest, size: number | null, signal: AbortSignal): Promise<PoolItem> {
    return this.#pools.configure(await this.#key(request, signal), size ?? undefined)
  }

  /** Resolves once so many sandboxes wait. */
  async prewarm(request: PoolRequest, count: number, signal: AbortSignal): Promise<PoolItem> {
    return this.#pools.prewarm(await this.#key(request, signal), count, signal)
  }

  async #key(request: PoolRequest, signal: AbortSignal): Promise<PoolKey> {
    const kind = request.driver ?? (await this.#drivers.defaultKind())
    const driver = await this.#drivers.usable(kind)
    // The process driver runs on the host itself, whatever the runtime is.
    const ref = driver.kind === 'process' ? 'host' : request.image
    if (request.image === 'go' && request.runtime === undefined) {
      throw new ThawError('invalid_request', 'Go functions are programs of their own and do not start from a pool.', {
        fix: 'Name a runtime (custom) if you run programs in this image.',
      })
    }
    const image = await this.#images.ensure(ref, { signal })
    const folder = request.runtime ?? (request.image === 'python' || request.image === 'node' ? request.image : 'custom')
    return { driver: kind, imageDigest: image.digest, imageRef: ref, folder, network: request.network, tmp_mib: request.tmp_mib }
  }
}
