import type { DriverKind } from '@thaw/protocol'
import type { BootKind } from './launch.ts'

/** Identifies a pool: sandboxes in it are as good as each other. */
export interface PoolKey extends BootKind {
  driver: DriverKind
  imageDigest: string
  /** How the image was asked for; for people. */
  imageRef: string
}

export function poolName(key: PoolKey): string {
  return [key.driver, key.imageDigest, key.folder, key.network, key.tmp_mib].join(' ')
}

/** What a pool can hold: a started sandbox, whose end can be heard of. */
export interface Poolable {
  readonly id: string
  readonly lost: Promise<unknown>
  destroy(): Promise<void>
}

export interface PoolParts {
  start(signal: AbortSignal): Promise<Poolable>
  /** Takes a share of the host for one more sandbox; false: the host is full. */
  reserve(): boolean
  /** Gives the share of a sandbox back that left the pool. */
  release(): void
  /** Called after each sandbox that was added, and after a start that failed. */
  filled(error: unknown): void
}

/** Starts that fail are tried again ever more slowly. */
const longestBackoffMs = 30_000

/**
 * Sandboxes of one kind that are started ahead of need. It holds up to `target` of them; each is taken once and never
 * comes back. It starts one at a time: a refill must not take the machine from the calls that it is for.
 */
export class Pool {
  readonly key: PoolKey
  /** Fixed by configuration; undefined: follows demand. */
  configured: number | undefined
  /** Asked for ahead of a burst, and until which monotonic millisecond. */
  prewarmed: { count: number; untilMs: number } | undefined
  /** Monotonic milliseconds of the takes that count as recent demand. */
  readonly demand: number[] = []
  readonly #parts: PoolParts
  readonly #ready: Poolable[] = []
  readonly #closing = new AbortController()
  /** Ends that go on: what left for one caller is no less there for another who wants the pool empty. */
  readonly #leaving = new Set<Promise<void>>()
  #target = 0
  #filling: Promise<void> | undefined
  #failures = 0
  #notBefore = 0

  constructor(key: PoolKey, parts: PoolParts) {
    this.key = key
    this.#parts = parts
  }

  get ready(): number {
    return this.#ready.length
  }

  get starting(): number {
    return this.#filling === undefined ? 0 : 1
  }

  get target(): number {
    return this.#target
  }

  /** A started sandbox, or undefined. Its share of the host goes back: whoever takes it has one of its own. */
  take(): Poolable | undefined {
    const sandbox = this.#ready.shift()
    if (sandbox !== undefined) this.#parts.release()
    return sandbox
  }

  /** Sets how many are to be ready. Missing ones are started in the background; resolves when there are none too many, and for 0 when none is left. */
  async resize(target: number): Promise<void> {
    this.#target = target
    this.fill()
    while (this.#ready.length > this.#target) await this.#drop()
    if (target > 0) return
    await this.#filling
    await Promise.all(this.#leaving)
  }

  /** Goes on filling, where it is not already. */
  fill(): void {
    if (this.#filling !== undefined || this.#closing.signal.aborted || this.#ready.length >= this.#target) return
    if (performance.now() < this.#notBefore || !this.#parts.reserve()) return
    this.#filling = this.#startOne().finally(() => {
      this.#filling = undefined
      this.fill()
    })
  }

  /** Gives one up: the host needs its share. False when there is none. */
  async shrink(): Promise<boolean> {
    if (this.#ready.length === 0) return false
    await this.#drop()
    return true
  }

  async close(): Promise<void> {
    this.#closing.abort()
    await this.resize(0)
  }

  async #startOne(): Promise<void> {
    try {
      const sandbox = await this.#parts.start(this.#closing.signal)
      this.#failures = 0
      this.#ready.push(sandbox)
      // One that dies while it waits is no use to anyone.
      void sandbox.lost.then(() => this.#lost(sandbox))
      // It may have become one too many meanwhile.
      if (this.#ready.length > this.#target) await this.#drop()
      this.#parts.filled(undefined)
    } catch (error) {
      this.#parts.release()
      this.#failures++
      this.#notBefore = performance.now() + Math.min(longestBackoffMs, 500 * 2 ** this.#failures)
      if (!this.#closing.signal.aborted) this.#parts.filled(error)
    }
  }

  async #lost(sandbox: Poolable): Promise<void> {
    const index = this.#ready.indexOf(sandbox)
    if (index < 0) return
    this.#ready.splice(index, 1)
    await this.#end(sandbox)
    this.fill()
  }

  async #drop(): Promise<void> {
    const sandbox = this.#ready.pop()
    if (sandbox !== undefined) await this.#end(sandbox)
  }

  #end(sandbox: Poolable): Promise<void> {
    const ending = sandbox
      .destroy()
      .catch((error) => this.#parts.filled(error))
      .then(() => {
        this.#leaving.delete(ending)
        this.#parts.release()
      })
    this.#leaving.add(ending)
    return ending
  }
}
