import { errorTable, ThawError, toThawError, type VersionSnapshotItem } from '@thaw/protocol'
import type { Driver, SnapshotSource } from '../drivers/driver.ts'
import type { SnapshotRow, SnapshotStore } from '../store/store.ts'
import type { Logger } from '../telemetry/log.ts'
import type { Budget } from './budget.ts'
import type { Drivers } from './drivers.ts'
import type { Instance } from './instance.ts'
import type { SnapshotFiles } from './ports.ts'
import { hearsOfSnapshots } from './resolve.ts'
import type { Version } from './version.ts'
import { fingerprintOf, makeVersionSnapshot } from './version-snapshot-making.ts'

export interface VersionSnapshotsOptions {
  /** Versions that load for longer than this are snapshotted without being asked; null: none is. */
  autoInitMs: number | null
  runtimesDir: string
}

export interface VersionSnapshotsParts {
  store: SnapshotStore
  files: SnapshotFiles
  drivers: Drivers
  budget: Budget
  /** Gives up something that waits in a pool; false: there is nothing. */
  makeRoom: () => Promise<boolean>
  /** A fresh instance of a version, loaded without its secrets. */
  startBare: (version: Version, signal: AbortSignal) => Promise<Instance>
  log: Logger
}

/** After so many failures in a row a snapshot is not used any more. */
const unhealthyAfter = 3
/** So often it is made for a version without one start from it that worked; then no more until the server starts again. */
const maxAttempts = 3

/**
 * The memory that versions start from: one snapshot per version, taken of an instance that has loaded its code and nothing else.
 * They are made behind the traffic, one at a time. A start never waits for one that is being made: it would wait for longer than
 * the next method takes.
 */
export class VersionSnapshots {
  readonly #options: VersionSnapshotsOptions
  readonly #parts: VersionSnapshotsParts
  /** By version; the newest of each. */
  readonly #rows = new Map<string, SnapshotRow>()
  /** Makings that wait or run, by version. */
  readonly #makings = new Map<string, { stop: AbortController; settled: Promise<void> }>()
  /** Since the last start that worked, by version. */
  readonly #attempts = new Map<string, number>()
  #last: Promise<unknown> = Promise.resolve()
  #closed = false

  constructor(options: VersionSnapshotsOptions, parts: VersionSnapshotsParts) {
    this.#options = options
    this.#parts = parts
  }

  /** Reads what the store knows. Before the first start, which may go on from there. */
  async open(): Promise<void> {
    for (const row of await this.#parts.store.all()) {
      if (row.purpose !== 'version' || row.version_id === null) continue
      const known = this.#rows.get(row.version_id)
      // What this machine could not do, it may be able to do now.
      if (known?.state === 'ready' || row.error?.code === 'snapshot_unsupported') {
        await this.#drop(row)
        continue
      }
      if (known !== undefined) await this.#drop(known)
      this.#rows.set(row.version_id, row)
    }
  }

  /**
   * Removes the snapshots of versions that are gone. Those of `active` versions are read once, so that the first start need not, and
   * made where a version wants one and has none.
   */
  async settle(versionIds: ReadonlySet<string>, active: readonly Version[]): Promise<void> {
    for (const versionId of [...this.#rows.keys()]) if (!versionIds.has(versionId)) await this.remove(versionId)
    for (const version of active) {
      const row = this.ready(version)
      if (row !== null) void this.#behind(() => this.#read(version, row))
      else if (version.config.snapshot === true) this.started(version, 0)
    }
  }

  async #read(version: Version, row: SnapshotRow): Promise<void> {
    try {
      await this.#parts.files.check(row.id, row.manifest_digest ?? '')
    } catch (error) {
      // It may have been removed meanwhile.
      if (this.ready(version) === row) await this.failed(version, row, error)
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const { stop } of this.#makings.values()) stop.abort(new ThawError('shutting_down'))
    await Promise.allSettled([...this.#makings.values()].map(({ settled }) => settled))
    await this.#last
  }

  /** The snapshot that instances of the version can start from now, or null. */
  ready(version: Version): SnapshotRow | null {
    const row = this.#rows.get(version.id)
    return row?.state === 'ready' ? row : null
  }

  /** What the driver starts from, once it is known to be whole and to fit. Throws `snapshot_corrupt`, `snapshot_incompatible`. */
  async source(version: Version, row: SnapshotRow, driver: Driver): Promise<SnapshotSource> {
    const now = await fingerprintOf(version, driver, this.#options.runtimesDir)
    const changed = Object.keys({ ...row.fingerprint, ...now }).filter((key) => row.fingerprint[key] !== now[key])
    if (changed.length > 0) {
      throw new ThawError('snapshot_incompatible', `The snapshot was taken where this was different: ${changed.join(', ')}.`, {
        details: { snapshot: row.fingerprint, now },
      })
    }
    await this.#parts.files.check(row.id, row.manifest_digest ?? '')
    return { dir: this.#parts.files.dataDir(row.id), kind: row.kind, state: row.driver_state }
  }

  /** An instance was started without a snapshot, and loaded its code for so long: reason enough to make one, or not. */
  started(version: Version, initMs: number): void {
    const { config } = version
    if (this.#closed || this.#makings.has(version.id) || !this.#isAble(version) || config.snapshot === false) return
    const { autoInitMs } = this.#options
    if (config.snapshot !== true && (autoInitMs === null || initMs < autoInitMs)) return
    const row = this.#rows.get(version.id)
    if (row?.state === 'ready' || (row !== undefined && isFinal(row))) return
    if ((this.#attempts.get(version.id) ?? 0) < maxAttempts) this.#enqueue(version)
  }

  /** Counts a start from a snapshot that takes calls now. */
  succeeded(version: Version, row: SnapshotRow): void {
    this.#attempts.delete(version.id)
    row.success_count++
    row.failures_in_row = 0
    row.last_used_at = Date.now()
    this.#count(row, true)
  }

  /** Counts one that failed. A snapshot that is damaged, does not fit, or failed too often is made anew. */
  async failed(version: Version, row: SnapshotRow, cause: unknown): Promise<void> {
    const error = toThawError(cause)
    row.failure_count++
    row.failures_in_row++
    row.last_used_at = Date.now()
    this.#count(row, false)
    const useless = error.code === 'snapshot_corrupt' || error.code === 'snapshot_incompatible' || row.failures_in_row >= unhealthyAfter
    if (!useless || row.state !== 'ready') return
    row.state = 'unhealthy'
    row.error = { code: error.code, message: error.message }
    await this.#parts.store.update(row.id, { state: row.state, error: row.error })
    if (!this.#closed && !this.#makings.has(version.id) && (this.#attempts.get(version.id) ?? 0) < maxAttempts) this.#enqueue(version)
  }

  /** What the API says of a version's snapshot. */
  summary(versionId: string): VersionSnapshotItem | null {
    const row = this.#rows.get(versionId)
    if (row === undefined) return null
    const { state, kind, size_bytes, success_count, failure_count, error } = row
    return {
      ...{ state, kind, size_bytes, success_count, failure_count, error },
      created_at: new Date(row.created_at).toISOString(),
      last_used_at: row.last_used_at === null ? null : new Date(row.last_used_at).toISOString(),
    }
  }

  /** The version is gone, and so is all that was kept for it. */
  async remove(versionId: string): Promise<void> {
    const making = this.#makings.get(versionId)
    making?.stop.abort(new ThawError('function_not_found'))
    await making?.settled
    this.#attempts.delete(versionId)
    const row = this.#rows.get(versionId)
    this.#rows.delete(versionId)
    if (row !== undefined) await this.#drop(row)
  }

  /** Removes those from which nothing was started since `before`. Returns how many. */
  async prune(before: number): Promise<number> {
    const old = [...this.#rows].filter(([id, row]) => !this.#makings.has(id) && (row.last_used_at ?? row.created_at) < before)
    for (const [versionId] of old) await this.remove(versionId)
    return old.length
  }

  #isAble({ config }: Version): boolean {
    if (!hearsOfSnapshots(config)) return false
    const driver = this.#parts.drivers.all().find((candidate) => candidate.kind === config.driver)
    return driver?.abilities.snapshot === 'memory' && driver.snapshot !== undefined
  }

  #enqueue(version: Version): void {
    this.#attempts.set(version.id, (this.#attempts.get(version.id) ?? 0) + 1)
    const stop = new AbortController()
    const settled = this.#behind(() => this.#make(version, stop.signal)).finally(() => this.#makings.delete(version.id))
    this.#makings.set(version.id, { stop, settled })
  }

  /** One after the other. Never rejects. */
  #behind(work: () => Promise<unknown>): Promise<void> {
    const done = this.#last.then(work).then(
      () => undefined,
      (error) => this.#parts.log.warn({ err: error }, 'work on a snapshot of a version failed'),
    )
    this.#last = done
    return done
  }

  async #make(version: Version, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { budget, store, log } = this.#parts
    const { memory_mib } = version.config.resources
    if (!budget.take(memory_mib) && !((await this.#parts.makeRoom()) && budget.take(memory_mib))) {
      // No fault of the version: the next start asks again.
      this.#attempts.delete(version.id)
      return
    }
    const before = this.#rows.get(version.id)
    let begun: SnapshotRow | undefined
    try {
      if (before !== undefined) await this.#drop(before)
      const made = await makeVersionSnapshot(version, { ...this.#parts, runtimesDir: this.#options.runtimesDir, signal }, (row) => {
        begun = row
        this.#rows.set(version.id, row)
      })
      this.#rows.set(version.id, made)
      log.info({ function: version.functionName, version: version.number, bytes: made.size_bytes }, 'made a snapshot to start from')
    } catch (caught) {
      const error = toThawError(caught)
      if (begun === undefined) {
        this.#rows.delete(version.id)
      } else if (signal.aborted) {
        this.#rows.delete(version.id)
        await store.delete(begun.id)
      } else {
        Object.assign(begun, { state: 'unhealthy', error: { code: error.code, message: error.message } })
        await store.update(begun.id, { state: begun.state, error: begun.error })
      }
      if (!signal.aborted) log.warn({ err: error, function: version.functionName, version: version.number }, 'no snapshot could be made')
    } finally {
      budget.give(memory_mib)
    }
  }

  async #drop(row: SnapshotRow): Promise<void> {
    await this.#parts.store.delete(row.id)
    await this.#parts.files.remove(row.id)
  }

  #count(row: SnapshotRow, success: boolean): void {
    this.#parts.store
      .count(row.id, success, Date.now())
      .catch((error: unknown) => this.#parts.log.warn({ err: error, snapshot: row.id }, 'a use of a snapshot could not be counted'))
  }
}

/** It would fail again: the code cannot be loaded so, or this machine cannot keep memory. */
function isFinal({ state, error }: SnapshotRow): boolean {
  return state === 'unhealthy' && error !== null && (error.code === 'snapshot_unsupported' || errorTable[error.code].blame === 'code')
}
