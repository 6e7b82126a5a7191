import { ThawError } from '@thaw/protocol'
import type { Logger } from '../../telemetry/log.ts'
import type { LiveSandbox } from './live-sandbox.ts'
import type { Lives } from './lives.ts'

const everyMs = 250
/** What failed is not tried again at once. */
const patienceMs = 60_000

export interface SweeperOptions {
  /** How long a sandbox is paused before it is hibernated, where its driver can; null: never. */
  hibernateAfterMs: number | null
  /** How long a sandbox is hibernated before its snapshot is compressed; null: never. */
  archiveAfterMs: number | null
}

/**
 * Does what is due: ends lives whose time is over, and sends to sleep what nobody uses: paused after `idle_ms`, hibernated
 * some time later, and archived after that.
 */
export class Sweeper {
  readonly #options: SweeperOptions
  readonly #lives: Lives
  readonly #log: Logger
  readonly #timer: NodeJS.Timeout
  readonly #busy = new Set<LiveSandbox>()
  readonly #notBefore = new WeakMap<LiveSandbox, number>()
  /** The snapshot of each that is known to be compressed. */
  readonly #archived = new WeakMap<LiveSandbox, string | null>()

  constructor(options: SweeperOptions, lives: Lives, log: Logger) {
    this.#options = options
    this.#lives = lives
    this.#log = log
    this.#timer = setInterval(() => this.#sweep(), everyMs)
    this.#timer.unref()
  }

  close(): void {
    clearInterval(this.#timer)
  }

  #sweep(): void {
    const now = Date.now()
    for (const sandbox of this.#lives.all()) {
      const task = this.#due(sandbox, now)
      if (task !== null) this.#start(sandbox, task)
    }
  }

  #due(sandbox: LiveSandbox, now: number): (() => Promise<void>) | null {
    const { row } = sandbox
    if (row.state === 'creating') return null
    if (row.ends_at !== null && row.ends_at <= now) return () => this.#timeout(sandbox)
    if (row.state === 'running' && isIdle(sandbox)) return () => this.#idle(sandbox)
    if (this.#isLongPaused(sandbox, now)) return () => this.#hibernate(sandbox)
    const { archiveAfterMs } = this.#options
    if (
      row.state === 'hibernated' &&
      archiveAfterMs !== null &&
      now - row.used_at >= archiveAfterMs &&
      this.#archived.get(sandbox) !== row.hibernation_id
    ) {
      return () => this.#archive(sandbox)
    }
    return null
  }

  async #timeout(sandbox: LiveSandbox): Promise<void> {
    const { row } = sandbox
    if (row.ends_at === null || row.ends_at > Date.now()) return
    if (row.spec.on_timeout === 'stop') return this.#lives.end(sandbox, 'stopped', null)
    await this.#lives.pause(sandbox)
    await sandbox.change({ ends_at: null })
  }

  async #idle(sandbox: LiveSandbox): Promise<void> {
    if (sandbox.row.state === 'running' && isIdle(sandbox)) await this.#lives.pause(sandbox)
  }

  async #hibernate(sandbox: LiveSandbox): Promise<void> {
    if (!this.#isLongPaused(sandbox, Date.now())) return
    try {
      await this.#lives.hibernate(sandbox)
    } catch (error) {
      if (!(error instanceof ThawError) || error.code !== 'snapshot_unsupported') throw error
      // Its driver will not learn it.
      this.#notBefore.set(sandbox, Number.POSITIVE_INFINITY)
    }
  }

  async #archive(sandbox: LiveSandbox): Promise<void> {
    if (sandbox.row.state !== 'hibernated') return
    await this.#lives.archive(sandbox)
    this.#archived.set(sandbox, sandbox.row.hibernation_id)
  }

  #isLongPaused(sandbox: LiveSandbox, now: number): boolean {
    const { row, users } = sandbox
    const after = row.spec.hibernate_ms ?? this.#options.hibernateAfterMs
    return row.state === 'paused' && users === 0 && after !== null && now - row.used_at >= after
  }

  #start(sandbox: LiveSandbox, task: () => Promise<void>): void {
    if (this.#busy.has(sandbox) || performance.now() < (this.#notBefore.get(sandbox) ?? 0)) return
    this.#busy.add(sandbox)
    this.#lives
      .locked(sandbox, task)
      .catch((error) => {
        this.#notBefore.set(sandbox, performance.now() + patienceMs)
        this.#log.warn({ err: error, sandbox: sandbox.row.id }, 'what was due of a sandbox could not be done')
      })
      .finally(() => this.#busy.delete(sandbox))
  }
}

function isIdle({ users, usedAt, row }: LiveSandbox): boolean {
  return users === 0 && row.spec.idle_ms !== null && performance.now() - usedAt >= row.spec.idle_ms
}
