import type { RecordStore, ResultStore } from '../store/store.ts'
import type { Logger } from '../telemetry/log.ts'
import type { Artifacts } from './artifacts.ts'
import type { Drivers } from './drivers.ts'
import type { Functions } from './functions.ts'
import type { Idempotency } from './idempotency.ts'
import type { ImageCatalog } from './images.ts'
import type { Sandboxes } from './sandboxes/sandboxes.ts'
import type { Snapshots } from './sandboxes/snapshots.ts'
import type { VersionSnapshots } from './version-snapshots.ts'

export interface Retention {
  invocationsMs: number
  logsMs: number
  /** Of sandboxes that have ended. */
  sandboxesMs: number
  /** Of snapshots that nobody uses; null: for ever. */
  snapshotsMs: number | null
  imagesMs: number
  /** Of snapshots from which nothing is started. */
  versionSnapshotsMs: number
}

/**
 * Destroys every sandbox that an earlier server left, but those that are to be kept. Instances of functions are never
 * taken over: their calls failed with the server that made them, and a fresh one starts in milliseconds.
 */
export async function destroyLeftovers(drivers: Drivers, log: Logger, keep: ReadonlySet<string>): Promise<number> {
  let destroyed = 0
  for (const driver of drivers.all()) {
    for (const id of await driver.list()) {
      if (keep.has(id)) continue
      try {
        await driver.destroy(id)
        destroyed++
      } catch (error) {
        log.error({ err: error, driver: driver.kind, sandbox: id }, 'a sandbox of an earlier server could not be destroyed')
      }
    }
  }
  if (destroyed > 0) log.info({ destroyed }, 'destroyed what an earlier server left')
  return destroyed
}

const everyMs = 60 * 60 * 1000

/** Removes what is too old or belongs to nothing: once at the start, then every hour. */
export class Collector {
  readonly #parts: {
    functions: Functions
    artifacts: Artifacts
    images: ImageCatalog
    records: RecordStore
    idempotency: Idempotency
    sandboxes: Sandboxes
    snapshots: Snapshots
    results: ResultStore
    versionSnapshots: VersionSnapshots
    retention: Retention
    log: Logger
  }
  readonly #timer: NodeJS.Timeout
  #running: Promise<void> = Promise.resolve()

  constructor(parts: {
    functions: Functions
    artifacts: Artifacts
    images: ImageCatalog
    records: RecordStore
    idempotency: Idempotency
    sandboxes: Sandboxes
    snapshots: Snapshots
    results: ResultStore
    versionSnapshots: VersionSnapshots
    retention: Retention
    log: Logger
  }) {
    this.#parts = parts
    this.#timer = setInterval(() => void this.run(), everyMs)
    this.#timer.unref()
  }

  run(): Promise<void> {
    this.#running = this.#running.then(() => this.#collect()).catch((error) => this.#parts.log.warn({ err: error }, 'collecting failed'))
    return this.#running
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.#running
  }

  async #collect(): Promise<void> {
    const { functions, artifacts, images, records, sandboxes, retention } = this.#parts
    const now = Date.now()
    artifacts.collect((await functions.references()).versionIds, now - retention.imagesMs)
    await functions.collectCode()
    await this.#parts.idempotency.prune()
    await records.prune({ invocations: now - retention.invocationsMs, logs: now - retention.logsMs })
    await this.#parts.results.prune(now)
    await sandboxes.prune(now - retention.sandboxesMs)
    if (retention.snapshotsMs !== null) await this.#parts.snapshots.prune(now - retention.snapshotsMs)
    await this.#parts.versionSnapshots.prune(now - retention.versionSnapshotsMs)
    await images.prune(retention.imagesMs)
  }
}
