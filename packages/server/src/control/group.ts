import { ThawError } from '@thaw/protocol'
import type { Budget } from './budget.ts'
import type { Instance } from './instance.ts'
import type { Version } from './version.ts'

export interface GroupOptions {
  queueLength: number
  queueTimeoutMs: number
}

export interface GroupParts {
  budget: Budget
  start(version: Version, signal: AbortSignal): Promise<Instance>
  /** The host is full: make room for `group`, or remember that it waits. */
  makeRoom(group: InstanceGroup): void
  /** The host is full, and another group has fewer instances than this one: its idle ones go there. */
  mustYield(group: InstanceGroup): boolean
  /** An instance of this group is gone, and its share of the budget is free. */
  freed(): void
  onStartFailed(version: Version, error: unknown): void
}

/** What a caller gets: the instance, with one of its places taken. */
export interface Lease {
  instance: Instance
  group: InstanceGroup
  /** False for the first call of an instance that was started for it. */
  reused: boolean
}

interface Waiter {
  resolve(lease: Lease): void
  reject(error: unknown): void
}

const longestBackoffMs = 30_000

/**
 * The instances of one version, and the calls that wait for one.
 *
 * An instance is starting, available (it has a free place) or full. A call takes the available instance that was
 * used last, so that the others fall idle and go. When all are full, calls wait in order, and instances are started for
 * them up to `max_instances`; whichever comes first, a start or a free place, serves the oldest.
 */
export class InstanceGroup {
  readonly version: Version
  readonly #options: GroupOptions
  readonly #parts: GroupParts
  readonly #instances = new Set<Instance>()
  /** Instances with a free place, the last used last. */
  readonly #available: Instance[] = []
  readonly #waiters = new Set<Waiter>()
  readonly #closing = new AbortController()
  readonly #startsPending = new Set<Promise<void>>()
  readonly #destroysPending = new Set<Promise<void>>()
  #starting = 0
  /** No new calls; instances go when their calls are done. */
  #draining = false
  #failures = 0
  #retry: NodeJS.Timeout | undefined

  constructor(version: Version, options: GroupOptions, parts: GroupParts) {
    this.version = version
    this.#options = options
    this.#parts = parts
  }

  get counts(): { starting: number; idle: number; busy: number } {
    let idle = 0
    for (const instance of this.#instances) if (instance.busy === 0) idle++
    return { starting: this.#starting, idle, busy: this.#instances.size - idle }
  }

  get waiting(): number {
    return this.#waiters.size
  }

  get empty(): boolean {
    return this.#instances.size === 0 && this.#starting === 0 && this.#destroysPending.size === 0 && this.#waiters.size === 0
  }

  /** An instance with a free place right now, or null. The hot path: no promise, no timer. */
  take(): Lease | null {
    if (this.#draining) return null
    const instance = this.version.config.scaling.concurrency === 1 ? this.#available.at(-1) : this.#leastLoaded()
    return instance === undefined ? null : this.#lease(instance)
  }

  /** Waits for an instance. Rejects with `too_many_requests` when too many wait already, or for too long. */
  async wait(signal: AbortSignal): Promise<Lease> {
    if (this.#draining) throw new ThawError('function_not_found', 'The function was deleted or replaced while the call waited.')
    if (this.#waiters.size >= this.#options.queueLength + this.#freePlaces())
      throw this.#tooMany(`${this.#waiters.size} calls wait already.`)
    if (!this.#parts.budget.couldEverFit(this.version.config.resources.memory_mib)) {
      throw neverFits(this.version.config.resources.memory_mib)
    }
    return new Promise((resolve, reject) => {
      const settle = () => {
        this.#waiters.delete(waiter)
        clearTimeout(timer)
        signal.removeEventListener('abort', abort)
      }
      const waiter: Waiter = {
        resolve: (lease) => {
          settle()
          resolve(lease)
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      const abort = () => waiter.reject(signal.reason)
      const timer = setTimeout(
        () => waiter.reject(this.#tooMany(`No instance was free for ${this.#options.queueTimeoutMs} ms.`)),
        this.#options.queueTimeoutMs,
      )
      signal.addEventListener('abort', abort, { once: true })
      this.#waiters.add(waiter)
      if (signal.aborted) abort()
      else this.pump()
    })
  }

  /** Gives a place back. `reusable: false`: the instance is not to be trusted any more and is destroyed. */
  release(instance: Instance, reusable: boolean): void {
    instance.busy--
    if (!this.#instances.has(instance)) return
    const waiter = this.#waiters.values().next().value
    const gone = instance.busy === 0 && ((this.#draining && waiter === undefined) || this.#parts.mustYield(this))
    if (!reusable || gone) {
      this.#discard(instance)
      return
    }
    instance.idleSince = performance.now()
    if (waiter !== undefined) {
      waiter.resolve(this.#occupy(instance))
      return
    }
    if (!this.#available.includes(instance)) this.#available.push(instance)
  }

  /** Instances that it has or is starting: its share of the host. */
  get size(): number {
    return this.#instances.size + this.#starting
  }

  /** Whether it would start one more instance, if the host had room. */
  get wantsMore(): boolean {
    if (this.#closing.signal.aborted) return false
    const { concurrency, min_instances, max_instances } = this.version.config.scaling
    if (this.size >= max_instances) return false
    if (this.#waiters.size > this.#starting * concurrency) return true
    return !this.#draining && this.size < min_instances && this.#retry === undefined
  }

  /** Starts instances for those who wait, and up to `min_instances`. */
  pump(): void {
    while (this.wantsMore) if (!this.pumpOne()) return
  }

  /** Starts one instance. False when the host is full; it is remembered then that this group waits. */
  pumpOne(): boolean {
    if (!this.#parts.budget.take(this.version.config.resources.memory_mib)) {
      this.#parts.makeRoom(this)
      return false
    }
    const start = this.#start().finally(() => this.#startsPending.delete(start))
    this.#startsPending.add(start)
    return true
  }

  /** Destroys instances that have been idle for longer than the version allows, down to `min_instances`. */
  reapIdle(now: number): void {
    const { idle_timeout_ms, min_instances } = this.version.config.scaling
    for (const instance of [...this.#available]) {
      if (this.#instances.size <= min_instances && !this.#draining) return
      if (instance.busy === 0 && now - instance.idleSince >= idle_timeout_ms) this.#discard(instance)
    }
  }

  /** Since when the instance that has been idle for longest has been so; null: none may go. */
  get oldestIdle(): number | null {
    if (this.#instances.size <= this.version.config.scaling.min_instances) return null
    return this.#available.find((instance) => instance.busy === 0)?.idleSince ?? null
  }

  /** Ends the instance that has been idle for longest. */
  evictOldestIdle(): void {
    const instance = this.#available.find((candidate) => candidate.busy === 0)
    if (instance !== undefined) this.#discard(instance)
  }

  /** Destroys what the kernel has killed a part of, although it still answers. */
  async reapOutOfMemory(): Promise<void> {
    for (const instance of [...this.#available]) {
      if (instance.used && instance.busy === 0 && (await instance.outOfMemory()) && instance.busy === 0) this.#discard(instance)
    }
  }

  /** No new calls from here on: idle instances go now, the others when those who wait already have been served. */
  drain(): void {
    this.#draining = true
    for (const instance of [...this.#available]) if (instance.busy === 0) this.#discard(instance)
  }

  /** Destroys everything, running calls included, and resolves when nothing is left. */
  async close(): Promise<void> {
    this.drain()
    clearTimeout(this.#retry)
    this.#closing.abort(new ThawError('shutting_down'))
    for (const waiter of [...this.#waiters])
      waiter.reject(new ThawError('function_not_found', 'The function was deleted while the call waited.'))
    for (const instance of [...this.#instances]) this.#discard(instance)
    await Promise.allSettled([...this.#startsPending])
    await Promise.allSettled([...this.#destroysPending])
  }

  async #start(): Promise<void> {
    this.#starting++
    let instance: Instance
    try {
      instance = await this.#parts.start(this.version, this.#closing.signal)
    } catch (error) {
      this.#starting--
      this.#parts.budget.give(this.version.config.resources.memory_mib)
      this.#startFailed(error)
      this.#parts.freed()
      return
    }
    this.#starting--
    this.#failures = 0
    this.#instances.add(instance)
    void instance.lost.then(() => this.#discard(instance))
    if (this.#closing.signal.aborted || (this.#draining && this.#waiters.size === 0)) {
      this.#discard(instance)
      return
    }
    // Several calls may have been waiting for this one instance.
    for (const waiter of [...this.#waiters].slice(0, this.version.config.scaling.concurrency)) waiter.resolve(this.#occupy(instance))
    if (instance.busy < this.version.config.scaling.concurrency && !this.#available.includes(instance)) this.#available.push(instance)
  }

  /** The caller who has waited for longest hears of it; min_instances are tried again, ever more slowly. */
  #startFailed(error: unknown): void {
    if (this.#closing.signal.aborted) return
    this.#parts.onStartFailed(this.version, error)
    this.#failures++
    const waiter = this.#waiters.values().next().value
    waiter?.reject(error)
    clearTimeout(this.#retry)
    this.#retry = setTimeout(
      () => {
        this.#retry = undefined
        this.pump()
      },
      Math.min(longestBackoffMs, 250 * 2 ** this.#failures),
    )
    this.#retry.unref()
    this.pump()
  }

  /** Of those that were used as little, the one that was used last. */
  #leastLoaded(): Instance | undefined {
    let best: Instance | undefined
    for (const instance of this.#available) if (best === undefined || instance.busy <= best.busy) best = instance
    return best
  }

  #lease(instance: Instance): Lease {
    const lease = this.#occupy(instance)
    if (instance.busy >= this.version.config.scaling.concurrency) {
      const index = this.#available.lastIndexOf(instance)
      if (index >= 0) this.#available.splice(index, 1)
    }
    return lease
  }

  #occupy(instance: Instance): Lease {
    instance.busy++
    const reused = instance.used
    instance.used = true
    return { instance, group: this, reused }
  }

  #discard(instance: Instance): void {
    if (!this.#instances.delete(instance)) return
    const index = this.#available.indexOf(instance)
    if (index >= 0) this.#available.splice(index, 1)
    const destroy: Promise<void> = instance
      .destroy()
      .catch((error) => this.#parts.onStartFailed(this.version, error))
      .finally(() => {
        this.#destroysPending.delete(destroy)
        // Only now is its memory free again.
        this.#parts.budget.give(this.version.config.resources.memory_mib)
        this.#parts.freed()
        this.pump()
      })
    this.#destroysPending.add(destroy)
  }

  #freePlaces(): number {
    const { max_instances, concurrency } = this.version.config.scaling
    return Math.max(0, max_instances - this.#instances.size) * concurrency
  }

  #tooMany(why: string): ThawError {
    return new ThawError('too_many_requests', `${this.version.functionName} is at its capacity. ${why}`, { details: { retry_after_s: 1 } })
  }
}

/** The host could not even run one instance. */
export function neverFits(memoryMib: number): ThawError {
  return new ThawError(
    'invalid_request',
    `The function asks for ${memoryMib} MiB of memory, which is more than this host may promise to all together.`,
    {
      fix: 'Lower resources.memory_mib, or raise limits.memory_mib of the server.',
    },
  )
}
