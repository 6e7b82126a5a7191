import { randomBytes } from 'node:crypto'
import {
  type ExecRequestParsed,
  type ExecResult,
  newId,
  type SandboxCreateParsed,
  type SandboxItem,
  type SandboxState,
  type SandboxStats,
  type SandboxUpdate,
  ThawError,
  toThawError,
} from '@thaw/protocol'
import type { SandboxFilter, SandboxRow, SandboxSpec, SandboxStore } from '../../store/store.ts'
import type { Logger } from '../../telemetry/log.ts'
import type { Budget } from '../budget.ts'
import type { Caller } from '../caller.ts'
import type { Drivers } from '../drivers.ts'
import { KeyedLock } from '../keyed-lock.ts'
import { AgentSandbox } from './agent-sandbox.ts'
import { runCommand } from './exec.ts'
import { sandboxItem } from './items.ts'
import { Lease, LiveSandbox } from './live-sandbox.ts'
import { checkDriver, type SandboxPlan, type SandboxStarter } from './sandbox-starter.ts'

export interface SandboxesParts {
  store: SandboxStore
  drivers: Drivers
  starter: SandboxStarter
  budget: Budget
  /** Gives up something that waits in a pool; false: there is nothing. */
  makeRoom: () => Promise<boolean>
  log: Logger
}

const sweepMs = 250

/**
 * The sandboxes of the API: their lives, from creation to deletion. What a caller may not see does not exist for it. Every
 * change of state of one sandbox happens under its lock; uses of it do not wait for each other.
 */
export class Sandboxes {
  readonly #parts: SandboxesParts
  readonly #live = new Map<string, LiveSandbox>()
  readonly #locks = new KeyedLock()
  readonly #sweeper: NodeJS.Timeout
  #closed = false

  constructor(parts: SandboxesParts) {
    this.#parts = parts
    this.#sweeper = setInterval(() => this.#sweep(), sweepMs)
    this.#sweeper.unref()
  }

  /** Ids of sandboxes that an earlier server left running and that this one goes on with. */
  static async known(store: SandboxStore): Promise<Set<string>> {
    return new Set((await store.live()).filter((row) => row.state !== 'creating').map((row) => row.id))
  }

  /** Takes over what an earlier server left. Call once, before anything else. */
  async open(): Promise<void> {
    for (const row of await this.#parts.store.live()) {
      const sandbox = new LiveSandbox(row, this.#parts.store)
      const driver = this.#parts.drivers.all().find((candidate) => candidate.kind === row.driver)
      const status = row.state === 'creating' ? null : await driver?.inspect(row.id).catch(() => null)
      if (driver === undefined || !status || status.state === 'exited') {
        await driver?.destroy(row.id).catch(() => undefined)
        const message = row.state === 'creating' ? 'The server ended while it was being created.' : 'It was gone when the server started.'
        await sandbox.change({ state: 'failed', ended_at: Date.now(), error: { code: 'sandbox_not_running', message } })
        continue
      }
      this.#parts.budget.force(row.spec.resources.memory_mib)
      if (status.state !== row.state) await sandbox.change({ state: status.state })
      this.#live.set(row.id, sandbox)
      this.#watch(sandbox, new AgentSandbox(row.id, driver, 0, row.access_token))
      this.#parts.log.info({ sandbox: row.id, state: status.state }, 'sandbox taken over')
    }
  }

  /** `created`: false where a sandbox of this name was there already, which is given back as it is. */
  async create(caller: Caller, request: SandboxCreateParsed): Promise<{ item: SandboxItem; created: boolean }> {
    const { name } = request
    if (name === undefined) return { item: await this.#create(caller, request), created: true }
    return this.#locks.run(`${caller.tenant}/${name}`, async () => {
      const known = await this.#parts.store.byName(caller.tenant, name)
      if (known !== null) return { item: sandboxItem(this.#live.get(known.id)?.row ?? known), created: false }
      return { item: await this.#create(caller, request), created: true }
    })
  }

  async #create(caller: Caller, { image, driver, name, snapshot_id, ...rest }: SandboxCreateParsed): Promise<SandboxItem> {
    if (this.#closed) throw new ThawError('shutting_down')
    const planning = new AbortController()
    const plan = await this.#parts.starter.plan({ image, driver }, planning.signal)
    const spec: SandboxSpec = { ...rest, image: plan.ref }
    checkDriver(plan.driver, spec)
    await this.#reserve(spec.resources.memory_mib)
    const pooled = this.#parts.starter.pooled(plan, spec)
    const now = Date.now()
    const row: SandboxRow = {
      id: pooled?.id ?? newId('sbx'),
      tenant: caller.tenant,
      name: name ?? null,
      state: 'creating',
      driver: plan.driver.kind,
      image_digest: plan.image.digest,
      spec,
      boot_method: null,
      access_token: randomBytes(24).toString('base64url'),
      parent_id: null,
      snapshot_id: snapshot_id ?? null,
      hibernation_id: null,
      error: null,
      created_at: now,
      started_at: null,
      ends_at: null,
      ended_at: null,
      used_at: now,
    }
    const sandbox = new LiveSandbox(row, this.#parts.store)
    try {
      await this.#parts.store.create(row)
    } catch (error) {
      await pooled?.destroy()
      this.#parts.budget.give(spec.resources.memory_mib)
      throw error
    }
    this.#live.set(row.id, sandbox)
    return this.#locks.run(row.id, () => this.#start(sandbox, plan, pooled))
  }

  async #start(sandbox: LiveSandbox, plan: SandboxPlan, pooled: AgentSandbox | undefined): Promise<SandboxItem> {
    const { signal } = sandbox.abandoned
    try {
      signal.throwIfAborted()
      const fromPool = pooled !== undefined && (await this.#parts.starter.adoptPooled(pooled, plan, sandbox.row, signal))
      const started = fromPool ? pooled : await this.#parts.starter.cold(plan, sandbox.row, signal)
      const now = Date.now()
      const { timeout_ms } = sandbox.row.spec
      try {
        await sandbox.change({
          state: 'running',
          boot_method: fromPool ? 'pooled' : 'cold',
          started_at: now,
          ends_at: timeout_ms === null ? null : now + timeout_ms,
        })
      } catch (error) {
        await started.destroy()
        throw error
      }
      this.#watch(sandbox, started)
      return sandboxItem(sandbox.row)
    } catch (error) {
      const failure = signal.aborted
        ? new ThawError('sandbox_not_running', 'The sandbox was deleted while it was being created.')
        : toThawError(error)
      await pooled?.destroy().catch(() => undefined)
      await this.#end(sandbox, 'failed', failure)
      throw failure
    }
  }

  /** The sandbox of this id or name, as the caller may see it. */
  async get(caller: Caller, idOrName: string): Promise<SandboxItem> {
    return sandboxItem(await this.#row(caller, idOrName))
  }

  async list(caller: Caller, filter: Omit<SandboxFilter, 'tenant'>): Promise<SandboxItem[]> {
    return (await this.#parts.store.list({ ...filter, tenant: caller.tenant })).map(sandboxItem)
  }

  /** Wakes the sandbox where it sleeps, and keeps it awake until the lease is released. */
  async use(caller: Caller, idOrName: string): Promise<Lease> {
    const sandbox = await this.#liveOf(caller, idOrName)
    // While somebody wakes it up, it must not fall asleep again.
    const lease = new Lease(sandbox)
    try {
      if (sandbox.row.state !== 'running') await this.#locks.run(sandbox.row.id, () => this.#wake(sandbox))
      return lease
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /** Runs a command to its end; wakes the sandbox for it. */
  async exec(caller: Caller, idOrName: string, request: ExecRequestParsed, signal: AbortSignal): Promise<ExecResult> {
    using lease = await this.use(caller, idOrName)
    return await runCommand(lease.agent, request, signal)
  }

  async pause(caller: Caller, idOrName: string): Promise<SandboxItem> {
    const sandbox = await this.#liveOf(caller, idOrName)
    await this.#locks.run(sandbox.row.id, () => this.#pause(sandbox))
    return sandboxItem(sandbox.row)
  }

  async resume(caller: Caller, idOrName: string): Promise<SandboxItem> {
    const lease = await this.use(caller, idOrName)
    lease.release()
    return sandboxItem(lease.sandbox.row)
  }

  /** Ends it, and keeps the record. */
  async stop(caller: Caller, idOrName: string): Promise<SandboxItem> {
    const row = await this.#row(caller, idOrName)
    const sandbox = this.#live.get(row.id)
    if (sandbox === undefined) return sandboxItem(row)
    sandbox.abandoned.abort()
    await this.#locks.run(row.id, () => this.#end(sandbox, 'stopped', null))
    return sandboxItem(sandbox.row)
  }

  /** Ends it, from whatever state, and forgets it. */
  async delete(caller: Caller, idOrName: string): Promise<void> {
    const row = await this.#row(caller, idOrName)
    const sandbox = this.#live.get(row.id)
    if (sandbox !== undefined) {
      sandbox.abandoned.abort()
      await this.#locks.run(row.id, () => this.#end(sandbox, 'stopped', null))
    }
    if (!(await this.#parts.store.delete(row.id))) throw notFound(idOrName)
  }

  async update(caller: Caller, idOrName: string, { timeout_ms, ...change }: SandboxUpdate): Promise<SandboxItem> {
    const sandbox = await this.#liveOf(caller, idOrName)
    return this.#locks.run(sandbox.row.id, async () => {
      if (sandbox.row.ended_at !== null) throw ended(sandbox.row)
      const spec = { ...sandbox.row.spec, ...definedOnly(change), ...(timeout_ms === undefined ? {} : { timeout_ms }) }
      if (sandbox.running !== null) checkDriver(sandbox.running.driver, spec)
      const ends = timeout_ms === undefined ? {} : { ends_at: timeout_ms === null ? null : Date.now() + timeout_ms }
      await sandbox.change({ spec, ...ends })
      return sandboxItem(sandbox.row)
    })
  }

  async stats(caller: Caller, idOrName: string): Promise<SandboxStats> {
    const { row } = await this.#liveOf(caller, idOrName)
    const sandbox = this.#live.get(row.id)
    const status = await sandbox?.running?.driver.inspect(row.id)
    const fromAgent = row.state === 'running' ? await sandbox?.agent.stats().catch(() => null) : null
    const disk = fromAgent?.disk_bytes
    return {
      state: row.state,
      memory_bytes: status?.memory_bytes ?? numberOr(fromAgent?.memory_bytes),
      memory_limit_bytes: row.spec.resources.memory_mib * 1024 * 1024,
      cpu_ms: status?.cpu_ms ?? numberOr(fromAgent?.cpu_ms),
      cpus: row.spec.resources.cpus,
      processes: status?.processes ?? numberOr(fromAgent?.processes),
      disk_bytes: numberOr(disk),
      uptime_ms: row.started_at === null ? null : Date.now() - row.started_at,
    }
  }

  /** Images that sandboxes were made from and that must stay. */
  imageDigests(): string[] {
    return [...this.#live.values()].flatMap(({ row }) => (row.image_digest === null ? [] : [row.image_digest]))
  }

  /** Forgets sandboxes that ended before that time. */
  async prune(before: number): Promise<void> {
    await this.#parts.store.prune(before)
  }

  /** Lets go of all sandboxes, which go on running; the next server takes them over. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#sweeper)
    for (const sandbox of this.#live.values()) {
      if (sandbox.row.state === 'creating') sandbox.abandoned.abort()
    }
    await Promise.all(
      [...this.#live.values()].map((sandbox) => this.#locks.run(sandbox.row.id, async () => sandbox.running?.agent.close())),
    )
  }

  async #wake(sandbox: LiveSandbox): Promise<void> {
    const { row, running } = sandbox
    switch (row.state) {
      case 'running':
        return
      case 'paused':
        if (running === null) throw new ThawError('sandbox_unavailable')
        await running.driver.resume?.(row.id)
        await sandbox.change({ state: 'running', boot_method: 'warm' })
        return
      default:
        throw ended(row)
    }
  }

  async #pause(sandbox: LiveSandbox): Promise<void> {
    const { row, running } = sandbox
    if (row.state === 'paused' || row.state === 'hibernated') return
    if (running === null) throw ended(row)
    if (running.driver.pause === undefined) {
      throw new ThawError('sandbox_state_conflict', `The driver ${row.driver} cannot pause sandboxes.`, { fix: 'Choose another driver.' })
    }
    await running.driver.pause(row.id)
    await sandbox.change({ state: 'paused', used_at: Date.now() })
  }

  /** Called under the lock. Nothing of it is left afterwards but its record. */
  async #end(sandbox: LiveSandbox, state: Extract<SandboxState, 'stopped' | 'failed'>, error: ThawError | null): Promise<void> {
    if (sandbox.row.ended_at !== null) return
    const { running, row } = sandbox
    sandbox.running = null
    running?.agent.close()
    await running?.driver.destroy(row.id)
    this.#live.delete(row.id)
    this.#parts.budget.give(row.spec.resources.memory_mib)
    await sandbox.change({
      state,
      ended_at: Date.now(),
      error: error === null ? null : { code: error.code, message: error.message },
    })
  }

  /** From now on the sandbox ends when its first process does. */
  #watch(sandbox: LiveSandbox, running: AgentSandbox): void {
    sandbox.running = running
    void running.lost
      .then(() =>
        this.#locks.run(sandbox.row.id, async () => {
          if (sandbox.running !== running || this.#closed) return
          const status = await running.driver.inspect(running.id).catch(() => null)
          const error =
            status?.out_of_memory === true
              ? new ThawError('out_of_memory', 'The sandbox ran out of memory.')
              : new ThawError('sandbox_not_running', 'The first process of the sandbox ended.')
          await this.#end(sandbox, 'failed', error)
        }),
      )
      .catch((error) => this.#parts.log.error({ err: error, sandbox: sandbox.row.id }, 'a sandbox that ended could not be removed'))
  }

  /** What is due: ends of lives, and sleep for those that nobody uses. */
  #sweep(): void {
    const now = Date.now()
    for (const sandbox of this.#live.values()) {
      const { row } = sandbox
      if (row.ends_at !== null && row.ends_at <= now && row.state !== 'creating') this.#background(sandbox, () => this.#timeout(sandbox))
      else if (row.state === 'running' && row.spec.idle_ms !== null && this.#isIdle(sandbox)) {
        this.#background(sandbox, async () => {
          if (this.#isIdle(sandbox) && sandbox.row.state === 'running') await this.#pause(sandbox)
        })
      }
    }
  }

  #isIdle({ users, usedAt, row }: LiveSandbox): boolean {
    return users === 0 && row.spec.idle_ms !== null && performance.now() - usedAt >= row.spec.idle_ms
  }

  async #timeout(sandbox: LiveSandbox): Promise<void> {
    const { row } = sandbox
    if (row.ends_at === null || row.ends_at > Date.now()) return
    if (row.spec.on_timeout === 'stop') return this.#end(sandbox, 'stopped', null)
    await this.#pause(sandbox)
    await sandbox.change({ ends_at: null })
  }

  readonly #busy = new Set<LiveSandbox>()

  #background(sandbox: LiveSandbox, task: () => Promise<void>): void {
    if (this.#busy.has(sandbox)) return
    this.#busy.add(sandbox)
    this.#locks
      .run(sandbox.row.id, task)
      .catch((error) => this.#parts.log.warn({ err: error, sandbox: sandbox.row.id }, 'what was due of a sandbox could not be done'))
      .finally(() => this.#busy.delete(sandbox))
  }

  async #reserve(memoryMib: number): Promise<void> {
    const { budget, makeRoom } = this.#parts
    while (!budget.take(memoryMib)) {
      if (budget.couldEverFit(memoryMib) && (await makeRoom())) continue
      throw new ThawError('too_many_requests', 'The host has no room for another sandbox.', {
        fix: 'Delete sandboxes that are not needed, ask for less memory, or raise limits.max_instances and limits.memory_mib.',
      })
    }
  }

  async #row(caller: Caller, idOrName: string): Promise<SandboxRow> {
    const live = this.#live.get(idOrName)
    const row = live?.row ?? (await this.#parts.store.get(idOrName)) ?? (await this.#parts.store.byName(caller.tenant, idOrName))
    if (row === null || row === undefined || row.tenant !== caller.tenant) throw notFound(idOrName)
    return this.#live.get(row.id)?.row ?? row
  }

  async #liveOf(caller: Caller, idOrName: string): Promise<LiveSandbox> {
    const row = await this.#row(caller, idOrName)
    const sandbox = this.#live.get(row.id)
    if (sandbox === undefined) throw ended(row)
    return sandbox
  }
}

function notFound(idOrName: string): ThawError {
  return new ThawError('sandbox_not_found', `There is no sandbox ${JSON.stringify(idOrName.slice(0, 100))}.`)
}

function ended(row: SandboxRow): ThawError {
  const why = row.error === null ? '' : ` ${row.error.message}`
  return new ThawError('sandbox_not_running', `The sandbox ${row.id} is ${row.state}.${why}`, { details: { state: row.state } })
}

function numberOr(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? Math.round(value) : null
}

function definedOnly<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: Exclude<Fields[Name], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Name in keyof Fields]?: Exclude<Fields[Name], undefined>
  }
}
