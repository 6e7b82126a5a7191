import { type DriverKind, type NetworkMode, type PoolItem, ThawError } from '@thaw/protocol'
import type { Caller } from './caller.ts'
import type { Drivers } from './drivers.ts'
import type { Functions } from './functions.ts'
import type { AgentFolder, RuntimeFolder } from './launch.ts'
import { type PoolKey, poolName } from './pool.ts'
import type { Pools } from './pools.ts'
import type { Images } from './ports.ts'

/** Which pool somebody means, with what may be left out. */
export interface PoolRequest {
  image: string
  runtime?: RuntimeFolder | AgentFolder | undefined
  driver?: DriverKind | undefined
  network: NetworkMode
  tmp_mib: number
}

/** Pools as the API names them: by image and driver. */
export class PoolCatalog {
  readonly #pools: Pools
  readonly #drivers: Drivers
  readonly #images: Images
  readonly #functions: Functions

  constructor(pools: Pools, drivers: Drivers, images: Images, functions: Functions) {
    this.#pools = pools
    this.#drivers = drivers
    this.#images = images
    this.#functions = functions
  }

  /** Pools are shared: what waits in them belongs to nobody yet. A member sees those that its functions could use. */
  list(caller: Caller): PoolItem[] {
    const pools = this.#pools.list()
    if (caller.role === 'admin') return pools
    const usable = new Set(this.#functions.poolKeys(caller.tenant).map(poolName))
    return pools.filter(({ driver, image, image_digest, runtime, network, tmp_mib }) =>
      usable.has(poolName({ driver, imageRef: image, imageDigest: image_digest, folder: runtime, network, tmp_mib })),
    )
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
