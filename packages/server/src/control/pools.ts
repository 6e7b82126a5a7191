import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { type DriverKind, type PoolItem, ThawError } from '@thaw/protocol'
import type { Logger } from '../telemetry/log.ts'
import type { Budget } from './budget.ts'
import { Pool, type Poolable, type PoolKey, poolName } from './pool.ts'

export interface PoolsOptions {
  /** Sandboxes kept ready for each kind that a deployed function could use. 0: none unless asked for. */
  size: number
  /** Most of one kind, however large the demand. */
  maxSize: number
  /** How long a take counts as demand. */
  demandMs: number
}

/** What a waiting sandbox counts against the memory of the host: an interpreter and little more. */
export const pooledMemoryMib = 32
const sweepMs = 500
const refillDelayMs = 20
/** Below this share of free memory nothing is kept in reserve. */
const lowMemoryShare = 0.08

/**
 * The pools of this server. How many sandboxes of a kind are kept: what was configured; else, while some function
 * could use them, `size` and as many as were taken within the last `demandMs`, up to `maxSize`; what was prewarmed stays as
 * long; none when the machine runs short of memory.
 */
export class Pools {
  readonly #options: PoolsOptions
  readonly #budget: Budget
  readonly #log: Logger
  readonly #start: (key: PoolKey, signal: AbortSignal) => Promise<Poolable>
  readonly #pools = new Map<string, Pool>()
  /** Kinds that a deployed function could use. */
  #wanted = new Set<string>()
  readonly #sweeper: NodeJS.Timeout
  #closed = false
  #waiters = new Set<() => void>()

  constructor(
    options: PoolsOptions,
    parts: { budget: Budget; log: Logger; start: (key: PoolKey, signal: AbortSignal) => Promise<Poolable> },
  ) {
    this.#options = options
    this.#budget = parts.budget
    this.#log = parts.log
    this.#start = parts.start
    this.#sweeper = setInterval(() => void this.#resizeAll(), sweepMs)
    this.#sweeper.unref()
  }

  /** A started sandbox of this kind, or undefined. Counts as demand either way. */
  take(key: PoolKey): Poolable | undefined {
    if (this.#closed) return undefined
    const pool = this.#pool(key)
    pool.demand.push(performance.now())
    const sandbox = pool.take()
    this.#refillLater(pool)
    return sandbox
  }

  /** Starting a process holds the event loop up for some milliseconds: the call that took the sandbox comes first. */
  #refillLater(pool: Pool): void {
    const timer = setTimeout(() => pool.fill(), refillDelayMs)
    timer.unref()
  }

  /** Which kinds deployed functions could use. Pools of other kinds are emptied, unless configured. */
  async want(keys: PoolKey[]): Promise<void> {
    this.#wanted = new Set(keys.map(poolName))
    for (const key of keys) this.#pool(key)
    await this.#resizeAll()
  }

  /** Fixes the size of a pool; undefined: it follows demand again. */
  async configure(key: PoolKey, size: number | undefined): Promise<PoolItem> {
    const pool = this.#pool(key)
    pool.configured = size
    pool.prewarmed = undefined
    await this.#resize(pool, this.#memoryIsLow())
    return describe(pool)
  }

  /** Resolves once a pool holds `count` sandboxes, or rejects with why it cannot. */
  async prewarm(key: PoolKey, count: number, signal: AbortSignal): Promise<PoolItem> {
    const pool = this.#pool(key)
    const before = pool.configured
    pool.configured = Math.max(before ?? 0, count)
    await this.#resize(pool, false)
    try {
      while (pool.ready < count) {
        signal.throwIfAborted()
        if (pool.starting === 0) {
          pool.fill()
          if (pool.starting === 0 && pool.ready < count)
            throw new ThawError('start_failed', `The host has room for ${pool.ready} of ${count} sandboxes.`)
        }
        await new Promise<void>((resolve) => {
          this.#waiters.add(resolve)
          signal.addEventListener('abort', () => resolve(), { once: true })
        })
      }
      // Kept for as long as demand is remembered, also where no function could use them yet.
      pool.prewarmed = { count, untilMs: performance.now() + this.#options.demandMs }
    } finally {
      pool.configured = before
    }
    return describe(pool)
  }

  list(): PoolItem[] {
    return [...this.#pools.values()].map(describe)
  }

  /** Gives up one waiting sandbox for somebody who needs its share of the host now. False: there is none. */
  async makeRoom(): Promise<boolean> {
    for (const pool of this.#pools.values()) if (await pool.shrink()) return true
    return false
  }

  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#sweeper)
    await Promise.all([...this.#pools.values()].map((pool) => pool.close()))
  }

  #pool(key: PoolKey): Pool {
    const name = poolName(key)
    const known = this.#pools.get(name)
    if (known !== undefined) return known
    const pool = new Pool(key, {
      start: (signal) => this.#start(key, signal),
      reserve: () => this.#fillingNow() < availableParallelism() && this.#budget.take(pooledMemoryMib),
      release: () => this.#budget.give(pooledMemoryMib),
      filled: (error) => {
        if (error !== undefined)
          this.#log.warn({ err: error, image: key.imageRef, driver: key.driver }, 'a sandbox of the pool could not be started')
        const waiters = [...this.#waiters]
        this.#waiters.clear()
        for (const resolve of waiters) resolve()
      },
    })
    this.#pools.set(name, pool)
    return pool
  }

  /** Sandboxes being started for all pools: together they leave a processor to the calls. */
  #fillingNow(): number {
    let filling = 1
    for (const pool of this.#pools.values()) filling += pool.starting
    return filling
  }

  async #resizeAll(): Promise<void> {
    if (this.#closed) return
    const low = this.#memoryIsLow()
    await Promise.all([...this.#pools.values()].map((pool) => this.#resize(pool, low)))
    for (const [name, pool] of this.#pools) {
      const idle = pool.configured === undefined && !this.#wanted.has(name) && pool.ready === 0 && pool.starting === 0
      if (idle && pool.demand.length === 0 && pool.prewarmed === undefined) this.#pools.delete(name)
    }
  }

  #resize(pool: Pool, memoryIsLow: boolean): Promise<void> {
    const oldest = performance.now() - this.#options.demandMs
    if (pool.prewarmed !== undefined && pool.prewarmed.untilMs <= performance.now()) pool.prewarmed = undefined
    while (pool.demand.length > 0 && (pool.demand[0] as number) < oldest) pool.demand.shift()
    return pool.resize(memoryIsLow ? 0 : this.#targetOf(pool))
  }

  #targetOf(pool: Pool): number {
    const prewarmed = pool.prewarmed?.count ?? 0
    if (pool.configured !== undefined) return Math.max(prewarmed, pool.configured)
    // Sandboxes with an agent are for whoever asks for one: an image that was asked for lately is wanted.
    const wanted = this.#wanted.has(poolName(pool.key)) || (pool.key.folder === 'agent' && pool.demand.length > 0)
    if (!wanted || this.#options.size === 0) return prewarmed
    return Math.max(prewarmed, Math.min(this.#options.maxSize, Math.max(this.#options.size, pool.demand.length)))
  }

  #memoryIsLow(): boolean {
    const info = readFileSync('/proc/meminfo', 'latin1')
    const read = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(info)?.[1] ?? 0)
    return read('MemAvailable') < read('MemTotal') * lowMemoryShare
  }
}

function describe(pool: Pool): PoolItem {
  const { driver, imageRef, imageDigest, folder, network, tmp_mib } = pool.key
  return {
    image: imageRef,
    image_digest: imageDigest,
    driver: driver as DriverKind,
    runtime: folder,
    network,
    tmp_mib,
    ready: pool.ready,
    starting: pool.starting,
    target: pool.target,
    configured: pool.configured ?? null,
    taken_recently: pool.demand.length,
  }
}
