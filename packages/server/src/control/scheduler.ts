import type { Logger } from '../telemetry/log.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Budget } from './budget.ts'
import { type GroupOptions, InstanceGroup, type Lease } from './group.ts'
import type { Instance } from './instance.ts'
import type { Version } from './version.ts'

export interface SchedulerParts {
  /** Shared with the pools. */
  budget: Budget
  pools: { makeRoom(): Promise<boolean> }
  start(version: Version, signal: AbortSignal): Promise<Instance>
  log: Logger
  metrics: Metrics
}

const sweepMs = 500

/** All instance groups of this host: who may start what, and what goes when it is idle. */
export class Scheduler {
  readonly #options: GroupOptions
  readonly #budget: Budget
  readonly #pools: { makeRoom(): Promise<boolean> }
  readonly #start: (version: Version, signal: AbortSignal) => Promise<Instance>
  readonly #groups = new Map<string, InstanceGroup>()
  /** Groups of versions that serve no longer, until their last call is done. */
  readonly #retiring = new Set<InstanceGroup>()
  /** Groups that found the host full, in the order in which they came. */
  readonly #hungry = new Set<InstanceGroup>()
  readonly #log: Logger
  readonly #sweeper: NodeJS.Timeout
  #sweeping = false
  /** An instance is being given up for a group that waits. */
  #yielding = false

  constructor(options: GroupOptions, parts: SchedulerParts) {
    this.#options = options
    this.#budget = parts.budget
    this.#pools = parts.pools
    this.#start = parts.start
    this.#log = parts.log
    this.#sweeper = setInterval(() => void this.#sweep(), sweepMs)
    this.#sweeper.unref()
    parts.metrics.observeInstances(() => this.#totals())
  }

  /** An instance of the version with a free place now, or null. */
  take(version: Version): Lease | null {
    return this.#groups.get(version.id)?.take() ?? null
  }

  wait(version: Version, signal: AbortSignal): Promise<Lease> {
    return this.#group(version).wait(signal)
  }

  release(lease: Lease, reusable: boolean): void {
    lease.group.release(lease.instance, reusable)
  }

  counts(versionId: string): { starting: number; idle: number; busy: number } {
    return this.#groups.get(versionId)?.counts ?? { starting: 0, idle: 0, busy: 0 }
  }

  /** The version serves from now on: its `min_instances` are started. */
  activate(version: Version): void {
    if (version.config.scaling.min_instances > 0) this.#group(version).pump()
  }

  /** The version serves no new calls; its running ones end in peace. */
  retire(versionId: string): void {
    const group = this.#groups.get(versionId)
    if (group === undefined) return
    this.#groups.delete(versionId)
    this.#retiring.add(group)
    group.drain()
  }

  /** Ends all instances of a version now. */
  async remove(versionId: string): Promise<void> {
    this.retire(versionId)
    const groups = [...this.#retiring].filter((group) => group.version.id === versionId)
    await Promise.all(groups.map((group) => group.close()))
    for (const group of groups) this.#retiring.delete(group)
  }

  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    await Promise.allSettled([...this.#groups.values(), ...this.#retiring].map((group) => group.close()))
    this.#groups.clear()
    this.#retiring.clear()
  }

  #group(version: Version): InstanceGroup {
    const known = this.#groups.get(version.id)
    if (known !== undefined) return known
    const group = new InstanceGroup(version, this.#options, {
      budget: this.#budget,
      start: this.#start,
      makeRoom: (hungry) => this.#makeRoom(hungry),
      mustYield: (candidate) => this.#mustYield(candidate),
      freed: () => this.#feedHungry(),
      onStartFailed: (failed, error) =>
        this.#log.warn({ err: error, function: failed.functionName, version: failed.number }, 'instance failed'),
    })
    this.#groups.set(version.id, group)
    return group
  }

  /** What waits in a pool goes first, then the instance that has been idle for longest, of whichever function. */
  #makeRoom(hungry: InstanceGroup): void {
    this.#hungry.add(hungry)
    void this.#pools.makeRoom().then((made) => {
      if (made) this.#feedHungry()
      else this.#evictOldestIdle(hungry)
    })
  }

  #evictOldestIdle(hungry: InstanceGroup): void {
    let victim: { group: InstanceGroup; since: number } | undefined
    for (const group of this.#groups.values()) {
      const since = group === hungry ? null : group.oldestIdle
      if (since !== null && (victim === undefined || since < victim.since)) victim = { group, since }
    }
    victim?.group.evictOldestIdle()
  }

  /** Who has the fewest instances starts the next one, until the host is full again. */
  #feedHungry(): void {
    this.#yielding = false
    while (this.#hungry.size > 0) {
      let next: InstanceGroup | undefined
      for (const group of this.#hungry) {
        if (!group.wantsMore) this.#hungry.delete(group)
        else if (next === undefined || group.size < next.size) next = group
      }
      if (next === undefined) return
      this.#hungry.delete(next)
      if (!next.pumpOne()) return
      if (next.wantsMore) this.#hungry.add(next)
    }
  }

  /**
   * A function whose instances are never idle would keep a full host to itself: it gives one up, at the end of a call, to
   * one that waits and has fewer. One at a time, so that no more are given up than are needed.
   */
  #mustYield(group: InstanceGroup): boolean {
    if (this.#yielding || this.#hungry.size === 0) return false
    for (const hungry of this.#hungry) {
      if (hungry !== group && hungry.wantsMore && hungry.size + 1 < group.size) {
        this.#yielding = true
        return true
      }
    }
    return false
  }

  async #sweep(): Promise<void> {
    if (this.#sweeping) return
    this.#sweeping = true
    const now = performance.now()
    for (const [id, group] of this.#groups) {
      group.reapIdle(now)
      await group.reapOutOfMemory()
      if (group.empty && group.version.config.scaling.min_instances === 0) this.#groups.delete(id)
    }
    for (const group of this.#retiring) if (group.empty) this.#retiring.delete(group)
    // An idle instance may have become old enough to give way.
    for (const group of [...this.#hungry]) if (group.waiting > 0) this.#makeRoom(group)
    this.#sweeping = false
  }

  #totals(): { starting: number; idle: number; busy: number } {
    const totals = { starting: 0, idle: 0, busy: 0 }
    for (const group of [...this.#groups.values(), ...this.#retiring]) {
      const counts = group.counts
      totals.starting += counts.starting
      totals.idle += counts.idle
      totals.busy += counts.busy
    }
    return totals
  }
}
