import { randomBytes } from 'node:crypto'
import {
  type ExecRequestParsed,
  type ExecResult,
  newId,
  type SandboxCreateParsed,
  type SandboxItem,
  type SandboxStats,
  type SandboxUpdate,
  ThawError,
} from '@thaw/protocol'
import type { SandboxFilter, SandboxRow, SandboxSpec, SandboxStore } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import { KeyedLock } from '../keyed-lock.ts'
import { type CommandCaller, runCommand } from './exec.ts'
import { sandboxItem } from './items.ts'
import { Lease, type LiveSandbox } from './live-sandbox.ts'
import { endedError, type Lives } from './lives.ts'
import { checkDriver, type SandboxStarter } from './sandbox-starter.ts'

export interface SandboxesParts {
  store: SandboxStore
  lives: Lives
  starter: SandboxStarter
}

/** `e2b`: for clients of E2B. */
type SandboxRequest = SandboxCreateParsed & Pick<SandboxSpec, 'e2b'>

/** What an agent does not tell in this time is left out. */
const statsMs = 2000

/** The sandboxes of the API, as callers see them: what a caller may not see does not exist for it. */
export class Sandboxes {
  readonly #parts: SandboxesParts
  readonly #lives: Lives
  readonly #names = new KeyedLock()

  constructor(parts: SandboxesParts) {
    this.#parts = parts
    this.#lives = parts.lives
  }

  /** Ids of sandboxes that an earlier server left running and that this one goes on with. */
  static async known(store: SandboxStore): Promise<Set<string>> {
    return new Set((await store.live()).filter((row) => row.state !== 'creating').map((row) => row.id))
  }

  /** `created`: false where a sandbox of this name was there already, which is given back as it is. */
  async create(caller: Caller, request: SandboxRequest): Promise<{ item: SandboxItem; created: boolean }> {
    return this.named(caller, request.name, () => this.#create(caller, request))
  }

  /** What `make` makes, unless the caller has a sandbox of this name. */
  async named(
    caller: Caller,
    name: string | undefined,
    make: () => Promise<SandboxItem>,
  ): Promise<{ item: SandboxItem; created: boolean }> {
    if (name === undefined) return { item: await make(), created: true }
    return this.#names.run(`${caller.tenant}/${name}`, async () => {
      const known = await this.#parts.store.byName(caller.tenant, name)
      if (known !== null) return { item: sandboxItem(this.#lives.find(known.id)?.row ?? known), created: false }
      return { item: await make(), created: true }
    })
  }

  async #create(caller: Caller, { image, driver, name, snapshot_id: _, ...rest }: SandboxRequest): Promise<SandboxItem> {
    if (this.#lives.closed) throw new ThawError('shutting_down')
    const { starter } = this.#parts
    const plan = await starter.plan({ image, driver }, new AbortController().signal)
    const spec: SandboxSpec = { ...rest, image: plan.ref, agent: starter.agent }
    checkDriver(plan.driver, spec)
    await this.#lives.reserve(spec.resources.memory_mib)
    const pooled = starter.pooled(plan, spec)
    const row = newRow({
      ...(pooled === undefined ? {} : { id: pooled.id }),
      tenant: caller.tenant,
      name: name ?? null,
      driver: plan.driver.kind,
      image_digest: plan.image.digest,
      spec,
    })
    let untouched = pooled
    try {
      const made = await this.#lives.create(row, async (signal) => {
        untouched = undefined
        if (pooled !== undefined && (await starter.adoptPooled(pooled, plan, row, signal))) return { sandbox: pooled, bootMethod: 'pooled' }
        return { sandbox: await starter.cold(plan, row, signal), bootMethod: 'cold' }
      })
      return sandboxItem(made)
    } finally {
      // Taken, and then not even tried.
      await untouched?.destroy()
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
    const sandbox = await this.liveOf(caller, idOrName)
    // While somebody wakes it up, it must not fall asleep again.
    const lease = new Lease(sandbox)
    try {
      if (sandbox.row.state !== 'running') await this.#lives.locked(sandbox, () => this.#lives.wake(sandbox))
      return lease
    } catch (error) {
      lease.release()
      throw error
    }
  }

  /** Runs a command to its end; wakes the sandbox for it. */
  async exec(caller: Caller, idOrName: string, request: ExecRequestParsed, by: CommandCaller): Promise<ExecResult> {
    using lease = await this.use(caller, idOrName)
    return await runCommand(lease, request, by)
  }

  async pause(caller: Caller, idOrName: string): Promise<SandboxItem> {
    const sandbox = await this.liveOf(caller, idOrName)
    await this.#lives.locked(sandbox, () => this.#lives.pause(sandbox))
    return sandboxItem(sandbox.row)
  }

  async hibernate(caller: Caller, idOrName: string): Promise<SandboxItem> {
    const sandbox = await this.liveOf(caller, idOrName)
    await this.#lives.locked(sandbox, () => this.#lives.hibernate(sandbox))
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
    const sandbox = this.#lives.find(row.id)
    if (sandbox === undefined) return sandboxItem(row)
    sandbox.abandoned.abort()
    await this.#lives.locked(sandbox, () => this.#lives.end(sandbox, 'stopped', null))
    return sandboxItem(sandbox.row)
  }

  /** Ends it, from whatever state, and forgets it. */
  async delete(caller: Caller, idOrName: string): Promise<void> {
    const row = await this.#row(caller, idOrName)
    const sandbox = this.#lives.find(row.id)
    if (sandbox !== undefined) {
      sandbox.abandoned.abort()
      await this.#lives.locked(sandbox, () => this.#lives.end(sandbox, 'stopped', null))
    }
    if (!(await this.#parts.store.delete(row.id))) throw notFound(idOrName)
  }

  async update(caller: Caller, idOrName: string, { timeout_ms, ...change }: SandboxUpdate): Promise<SandboxItem> {
    const sandbox = await this.liveOf(caller, idOrName)
    return this.#lives.locked(sandbox, async () => {
      if (sandbox.row.ended_at !== null) throw endedError(sandbox.row)
      const spec = { ...sandbox.row.spec, ...definedOnly(change), ...(timeout_ms === undefined ? {} : { timeout_ms }) }
      if (sandbox.running !== null) checkDriver(sandbox.running.driver, spec)
      const ends = timeout_ms === undefined ? {} : { ends_at: timeout_ms === null ? null : Date.now() + timeout_ms }
      await sandbox.change({ spec, ...ends })
      return sandboxItem(sandbox.row)
    })
  }

  async stats(caller: Caller, idOrName: string): Promise<SandboxStats> {
    const { row } = await this.liveOf(caller, idOrName)
    const sandbox = this.#lives.find(row.id)
    const status = await sandbox?.running?.driver.inspect(row.id)
    const fromAgent = row.state === 'running' ? await sandbox?.agent.stats(AbortSignal.timeout(statsMs)).catch(() => null) : null
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
    return [...this.#lives.all()].flatMap(({ row }) => (row.image_digest === null ? [] : [row.image_digest]))
  }

  /** Forgets sandboxes that ended before that time. */
  async prune(before: number): Promise<void> {
    await this.#parts.store.prune(before)
  }

  async #row(caller: Caller, idOrName: string): Promise<SandboxRow> {
    const live = this.#lives.find(idOrName)
    const row = live?.row ?? (await this.#parts.store.get(idOrName)) ?? (await this.#parts.store.byName(caller.tenant, idOrName))
    if (row === null || row === undefined || row.tenant !== caller.tenant) throw notFound(idOrName)
    return this.#lives.find(row.id)?.row ?? row
  }

  /** The sandbox, unless it has ended. */
  async liveOf(caller: Caller, idOrName: string): Promise<LiveSandbox> {
    const row = await this.#row(caller, idOrName)
    const sandbox = this.#lives.find(row.id)
    if (sandbox === undefined) throw endedError(row)
    return sandbox
  }
}

function notFound(idOrName: string): ThawError {
  return new ThawError('sandbox_not_found', `There is no sandbox ${JSON.stringify(idOrName.slice(0, 100))}.`)
}

/** A sandbox that is about to be created. */
export function newRow(
  fields: Pick<SandboxRow, 'tenant' | 'name' | 'driver' | 'image_digest' | 'spec'> &
    Partial<Pick<SandboxRow, 'id' | 'parent_id' | 'snapshot_id'>>,
): SandboxRow {
  const now = Date.now()
  return {
    id: newId('sbx'),
    parent_id: null,
    snapshot_id: null,
    ...fields,
    state: 'creating',
    boot_method: null,
    access_token: randomBytes(24).toString('base64url'),
    hibernation_id: null,
    error: null,
    created_at: now,
    started_at: null,
    ends_at: null,
    ended_at: null,
    used_at: now,
  }
}

function numberOr(value: unknown): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? Math.round(value) : null
}

function definedOnly<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: Exclude<Fields[Name], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Name in keyof Fields]?: Exclude<Fields[Name], undefined>
  }
}
