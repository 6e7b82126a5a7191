import { type FunctionConfig, type FunctionItem, newId, ThawError, toThawError, type VersionItem } from '@thaw/protocol'
import type { FunctionRow, Store, VersionRow } from '../store/store.ts'
import type { Logger } from '../telemetry/log.ts'
import type { Artifacts } from './artifacts.ts'
import type { Budget } from './budget.ts'
import type { BuildLogs } from './buildlog.ts'
import { type Caller, qualified } from './caller.ts'
import type { Drivers } from './drivers.ts'
import { neverFits } from './group.ts'
import type { Invoker } from './invoker.ts'
import { KeyedLock } from './keyed-lock.ts'
import type { PoolKey } from './pool.ts'
import type { Bundles } from './ports.ts'
import { resolveConfig } from './resolve.ts'
import type { Scheduler } from './scheduler.ts'
import type { Secrets } from './secrets.ts'
import type { Starter } from './starter.ts'
import { type ResolvedConfig, toVersion, type Version, versionItem } from './version.ts'
import type { VersionSnapshots } from './version-snapshots.ts'

/** Where the code of a deploy comes from, already decoded. */
export type CodeInput = { inline: Buffer } | { archive: Buffer } | { image: string }

export interface DeployInput {
  config: FunctionConfig
  code: CodeInput
}

interface Live {
  row: FunctionRow
  /** The version that serves. */
  active: Version | null
  /** Rows of the active version, or else of the newest one: what the function is shown as. */
  shown: VersionRow
}

interface Parts {
  store: Store
  bundles: Bundles
  artifacts: Artifacts
  drivers: Drivers
  starter: Starter
  scheduler: Scheduler
  invoker: Invoker
  buildLogs: BuildLogs
  pools: { want(keys: PoolKey[]): Promise<void> }
  snapshots: Pick<VersionSnapshots, 'summary' | 'remove'>
  budget: Budget
  secrets: Secrets
  log: Logger
}

/**
 * Functions and their versions. A deploy commits the version as `building` before anything else happens, so that a
 * server that dies meanwhile takes it up again; it becomes `ready`, and active, once its handler has been loaded
 * in a real instance.
 */
export class Functions {
  readonly #parts: Parts
  /** By tenant and name. */
  readonly #live = new Map<string, Live>()
  readonly #lock = new KeyedLock()
  /** Keeping an archive and committing who refers to it is one step for the collector. */
  readonly #codeLock = new KeyedLock()
  readonly #stopping = new AbortController()
  readonly #background = new Set<Promise<unknown>>()

  constructor(parts: Parts) {
    this.#parts = parts
  }

  /** Reads what the store knows and takes up builds that a crash interrupted. */
  async open(): Promise<void> {
    let after: string | undefined
    do {
      const rows = await this.#parts.store.functions.list({ after, limit: 500 })
      for (const row of rows) await this.#load(row)
      after = rows.length === 500 ? rows.at(-1)?.id : undefined
    } while (after !== undefined)
    for (const row of await this.#parts.store.functions.versionsInState('building')) {
      const live = [...this.#live.values()].find((candidate) => candidate.row.id === row.function_id)
      if (live !== undefined) this.#inBackground(this.#lock.run(keyOf(live.row), () => this.#make(live.row, row)))
    }
    for (const live of this.#live.values()) if (live.active !== null) this.#parts.scheduler.activate(live.active)
    void this.#updatePools()
  }

  async close(): Promise<void> {
    this.#stopping.abort(new ThawError('shutting_down'))
    await Promise.allSettled([...this.#background])
  }

  /** The version that serves. Throws `function_not_found` or `function_not_ready`. */
  active(caller: Caller, name: string): Version {
    const live = this.#find(caller, name)
    if (live.active === null) {
      const why = live.shown.error === null ? `Version ${live.shown.version} is ${live.shown.state}.` : live.shown.error.message
      throw new ThawError('function_not_ready', `${name} has no version that is ready. ${why}`)
    }
    return live.active
  }

  get(caller: Caller, name: string): FunctionItem {
    return this.#item(this.#find(caller, name))
  }

  list(caller: Caller, page: { after?: string | undefined; limit: number }): { items: FunctionItem[]; next: string | null } {
    const names = [...this.#live.values()]
      .filter(({ row }) => row.tenant === caller.tenant && (page.after === undefined || row.name > page.after))
      .map(({ row }) => row.name)
      .sort()
    const items = names.slice(0, page.limit).map((name) => this.get(caller, name))
    return { items, next: names.length > page.limit ? (items.at(-1)?.name ?? null) : null }
  }

  async versions(caller: Caller, name: string): Promise<VersionItem[]> {
    const live = this.#find(caller, name)
    return (await this.#parts.store.functions.versions(live.row.id)).map((row) =>
      versionItem(name, row, this.#parts.snapshots.summary(row.id)),
    )
  }

  async version(caller: Caller, name: string, number: number): Promise<VersionItem & { id: string }> {
    const row = await this.#versionRow(caller, name, number)
    return versionItem(name, row, this.#parts.snapshots.summary(row.id))
  }

  /**
   * Makes a function. With `wait`, nothing of it is left when its first version fails. `token` names the request: one that
   * comes again, because a crash cut off its answer, goes on with what it has made.
   */
  create(caller: Caller, name: string, input: DeployInput, wait: boolean, token: string | null = null): Promise<FunctionItem> {
    const { tenant } = caller
    const key = qualified(tenant, name)
    return this.#lock.run(key, async () => {
      const known = this.#live.get(key)
      if (known !== undefined) {
        if (token !== null && known.row.creation_token === token) return this.#goOn(known, wait)
        throw new ThawError('function_exists', `A function named ${name} exists already.`)
      }
      const now = Date.now()
      const row: FunctionRow = {
        id: newId('fn'),
        tenant,
        name,
        active_version_id: null,
        next_version: 1,
        creation_token: token,
        created_at: now,
        updated_at: now,
      }
      const version = await this.#commit(input, row, () => this.#parts.store.functions.create(row))
      this.#live.set(key, { row, active: null, shown: version })
      return this.#finishDeploy(row, version, wait, () => this.#remove(row))
    })
  }

  async #goOn({ row, active, shown }: Live, wait: boolean): Promise<FunctionItem> {
    if (active !== null || !wait) return this.#item(this.#find(row, row.name))
    // The build that the crash cut off may have failed since: it is undone as it would have been then.
    if (shown.error === null) return this.#finishDeploy(row, shown, wait, () => this.#remove(row))
    await this.#remove(row)
    throw new ThawError(shown.error.code, shown.error.message, { details: shown.error.details })
  }

  /** Makes a new version. The old one serves until the new one is ready; with `wait`, a failed one is removed. */
  update(caller: Caller, name: string, input: DeployInput, wait: boolean): Promise<FunctionItem> {
    return this.#lock.run(qualified(caller.tenant, name), async () => {
      const { row } = this.#find(caller, name)
      const version = await this.#commit(input, row, async () => undefined)
      await this.#load(row)
      return this.#finishDeploy(row, version, wait, async () => {
        await this.#removeVersion(version)
        await this.#load(row)
      })
    })
  }

  /** Makes an earlier version the active one. */
  rollback(caller: Caller, name: string, number: number | undefined): Promise<FunctionItem> {
    return this.#lock.run(qualified(caller.tenant, name), async () => {
      const { row, active } = this.#find(caller, name)
      const versions = await this.#parts.store.functions.versions(row.id)
      const target =
        number === undefined
          ? versions.find((candidate) => candidate.state === 'ready' && (active === null || candidate.version < active.number))
          : versions.find((candidate) => candidate.version === number)
      if (target === undefined)
        throw new ThawError('version_not_found', number === undefined ? 'There is no earlier version that is ready.' : undefined)
      if (target.state !== 'ready') throw new ThawError('function_not_ready', `Version ${target.version} of ${name} is ${target.state}.`)
      await this.#parts.secrets.check(row.tenant, target.config)
      await this.#activate(row, target)
      return this.get(caller, name)
    })
  }

  delete(caller: Caller, name: string): Promise<void> {
    return this.#lock.run(qualified(caller.tenant, name), async () => {
      await this.#remove(this.#find(caller, name).row)
    })
  }

  /** Everything that versions, of one tenant or of all, refer to: what the collector must keep. */
  async references(tenant?: string): Promise<{ versionIds: Set<string>; imageDigests: Set<string> }> {
    const of = [...this.#live.values()].filter(({ row }) => tenant === undefined || row.tenant === tenant)
    const versions = (await Promise.all(of.map((live) => this.#parts.store.functions.versions(live.row.id)))).flat()
    return {
      versionIds: new Set(versions.map((row) => row.id)),
      imageDigests: new Set(versions.map((row) => row.image_digest).filter((digest) => digest !== null)),
    }
  }

  /** Versions that serve, of all tenants. */
  activeVersions(): Version[] {
    return [...this.#live.values()].map(({ active }) => active).filter((active) => active !== null)
  }

  /** Names of a tenant's functions whose active version is given this secret. */
  usersOfSecret(tenant: string, secret: string): string[] {
    const users = [...this.#live.values()].filter(
      ({ row, active }) => row.tenant === tenant && active?.config.secrets.some((ref) => ref.name === secret),
    )
    return users.map(({ row }) => row.name).sort()
  }

  /** The build log of a version, and the running build to follow, if there is one. */
  async buildLog(caller: Caller, name: string, number: number): Promise<{ text: string; running: ReturnType<BuildLogs['running']> }> {
    const row = await this.#versionRow(caller, name, number)
    return { text: this.#parts.buildLogs.read(row.id), running: this.#parts.buildLogs.running(row.id) }
  }

  async #versionRow(caller: Caller, name: string, number: number): Promise<VersionRow> {
    const row = await this.#parts.store.functions.versionByNumber(this.#find(caller, name).row.id, number)
    if (row === null) throw new ThawError('version_not_found', `${name} has no version ${number}.`)
    return row
  }

  #find({ tenant }: Pick<Caller, 'tenant'>, name: string): Live {
    const live = this.#live.get(qualified(tenant, name))
    if (live === undefined) throw new ThawError('function_not_found', `There is no function named ${name}.`)
    return live
  }

  /** Checks what can be checked without running anything, keeps the code, and commits the version. */
  async #commit(input: DeployInput, of: FunctionRow, createFunction: () => Promise<void>): Promise<VersionRow> {
    const config = await this.#resolve(of.tenant, input)
    const { code } = input
    return this.#codeLock.run('code', async () => {
      const codeDigest = await this.#keep(code, config)
      await createFunction()
      return this.#parts.store.functions.addVersion({
        id: newId('ver'),
        function_id: of.id,
        state: 'building',
        error: null,
        config,
        code_digest: codeDigest,
        image_digest: null,
        created_at: Date.now(),
      })
    })
  }

  async #keep(code: CodeInput, config: FunctionConfig): Promise<string | null> {
    if ('image' in code) return null
    const { bundles } = this.#parts
    return ('inline' in code ? await bundles.addInline(code.inline, config.runtime) : await bundles.addArchive(code.archive)).digest
  }

  /** Removes the archives that no version refers to any more. */
  collectCode(): Promise<void> {
    return this.#codeLock.run('code', async () => {
      await this.#parts.bundles.removeBlobsExcept(await this.#parts.store.functions.codeDigests(), { olderThanMs: 0 })
    })
  }

  async #resolve(tenant: string, { config, code }: DeployInput): Promise<ResolvedConfig> {
    if (!this.#parts.budget.couldEverFit(config.resources.memory_mib)) throw neverFits(config.resources.memory_mib)
    const driver = config.driver ?? (await this.#parts.drivers.defaultKind())
    const { abilities } = await this.#parts.drivers.usable(driver)
    await this.#parts.secrets.check(tenant, config)
    return resolveConfig(config, { kind: driver, abilities }, 'image' in code ? code.image : undefined)
  }

  async #finishDeploy(row: FunctionRow, version: VersionRow, wait: boolean, undo: () => Promise<void>): Promise<FunctionItem> {
    if (!wait) {
      // The lock is taken anew: the caller's ends with the answer.
      this.#inBackground(this.#lock.run(keyOf(row), () => this.#make(row, version)))
      return this.#item(this.#find(row, row.name))
    }
    const error = await this.#make(row, version)
    if (error !== null) {
      await undo()
      throw error
    }
    return this.#item(this.#find(row, row.name))
  }

  /** Image, code, dependencies, a trial load; then active. Resolves with what went wrong, which is recorded then. */
  async #make(row: FunctionRow, versionRow: VersionRow): Promise<ThawError | null> {
    // It may have been deleted while it waited for its turn.
    if (this.#live.get(keyOf(row))?.row.id !== row.id) return new ThawError('function_not_found')
    const version = toVersion(row, versionRow)
    const log = this.#parts.buildLogs.open(version.id)
    const signal = this.#stopping.signal
    try {
      const { driver, image } = await this.#parts.starter.prepare(version, signal, (line) => log.line(line))
      await this.#parts.artifacts.make(version, driver, image, log, signal)
      await this.#parts.store.functions.updateVersion(version.id, { image_digest: image.digest })
      version.imageDigest = image.digest
      log.line('loading the handler')
      const instance = await this.#parts.starter.start(version, signal)
      log.line(`loaded in ${Math.round(instance.times.init_ms)} ms`)
      await instance.destroy()
      await this.#activate(row, { ...versionRow, image_digest: image.digest })
      return null
    } catch (caught) {
      const failure = toThawError(caught)
      // A server that stops does not fail the version: the next start takes it up.
      if (signal.aborted) return failure
      log.line(`failed: ${failure.message}`)
      const error = withLog(failure, log.tail())
      this.#parts.log.info({ err: error, function: row.name, version: version.number }, 'version failed')
      await this.#parts.store.functions.updateVersion(version.id, {
        state: 'failed',
        error: { code: error.code, message: error.message, ...(error.details === undefined ? {} : { details: error.details }) },
      })
      await this.#load(row)
      return error
    } finally {
      this.#parts.buildLogs.close(version.id)
    }
  }

  async #activate(row: FunctionRow, versionRow: VersionRow): Promise<void> {
    const before = this.#live.get(keyOf(row))?.active
    await this.#parts.store.functions.activate(row.id, versionRow.id, Date.now())
    await this.#load({ ...row, active_version_id: versionRow.id })
    const version = this.#find(row, row.name).active
    if (version === null) return
    this.#parts.scheduler.activate(version)
    void this.#updatePools()
    if (before !== null && before !== undefined && before.id !== version.id) this.#parts.scheduler.retire(before.id)
  }

  /** Brings what is held in memory up to what the store says. */
  async #load(stale: FunctionRow): Promise<void> {
    const row = (await this.#parts.store.functions.get(stale.tenant, stale.name)) ?? stale
    const versions = await this.#parts.store.functions.versions(row.id)
    const activeRow = versions.find((candidate) => candidate.id === row.active_version_id)
    const shown = activeRow ?? versions[0]
    if (shown === undefined) {
      // A crash between the row of a function and that of its first version: nobody was told of it.
      await this.#parts.store.functions.delete(row.id)
      this.#live.delete(keyOf(row))
      return
    }
    const known = this.#live.get(keyOf(row))?.active
    const active = activeRow === undefined ? null : known?.id === activeRow.id ? known : toVersion(row, activeRow)
    this.#live.set(keyOf(row), { row, active, shown })
  }

  /** Tells the pools which kinds of sandboxes the functions could use. */
  #updatePools(): Promise<void> {
    return this.#parts.pools.want(this.poolKeys())
  }

  /** The kinds of sandboxes that the functions, of one tenant or of all, could start from. */
  poolKeys(tenant?: string): PoolKey[] {
    const keys: PoolKey[] = []
    for (const { row, active } of this.#live.values()) {
      if (tenant !== undefined && row.tenant !== tenant) continue
      if (active === null || active.imageDigest === null || !this.#parts.artifacts.isComplete(active)) continue
      const key = this.#parts.starter.poolKeyOf(active, { digest: active.imageDigest })
      if (key !== null) keys.push(key)
    }
    return keys
  }

  async #remove(row: FunctionRow): Promise<void> {
    const versions = await this.#parts.store.functions.versions(row.id)
    await this.#parts.store.functions.delete(row.id)
    this.#live.delete(keyOf(row))
    const poolsUpdated = this.#updatePools()
    this.#parts.invoker.cancelAllOf(row.id, new ThawError('cancelled', `${row.name} was deleted.`))
    await Promise.all(versions.map((version) => this.#removeTraces(version)))
    await this.#parts.store.records.deleteOfFunction(row.tenant, row.name)
    await poolsUpdated
    await this.collectCode()
  }

  async #removeVersion(version: VersionRow): Promise<void> {
    await this.#parts.store.functions.deleteVersion(version.id)
    await this.#removeTraces(version)
    await this.collectCode()
  }

  async #removeTraces(version: VersionRow): Promise<void> {
    await this.#parts.scheduler.remove(version.id)
    await this.#parts.snapshots.remove(version.id)
    this.#parts.artifacts.remove(version.id)
    this.#parts.buildLogs.remove(version.id)
  }

  #inBackground(work: Promise<unknown>): void {
    const task: Promise<unknown> = work
      .catch((error) => this.#parts.log.error({ err: error }, 'deploy failed'))
      .finally(() => this.#background.delete(task))
    this.#background.add(task)
  }

  #item(live: Live): FunctionItem {
    const {
      function: _function,
      id: versionId,
      ...version
    } = versionItem(live.row.name, live.shown, this.#parts.snapshots.summary(live.shown.id))
    return {
      ...version,
      id: live.row.id,
      name: live.row.name,
      version_id: versionId,
      instances: this.#parts.scheduler.counts(live.shown.id),
      created_at: new Date(live.row.created_at).toISOString(),
      updated_at: new Date(live.row.updated_at).toISOString(),
    }
  }
}

function keyOf(row: FunctionRow): string {
  return qualified(row.tenant, row.name)
}

/** Whoever waits for a deploy gets the end of its log with the error: the log itself goes with the version. */
function withLog(error: ThawError, tail: string): ThawError {
  const details = { ...(typeof error.details === 'object' ? error.details : {}), log: tail }
  return new ThawError(error.code, error.message, { fix: error.fix, details, cause: error.cause ?? error })
}
