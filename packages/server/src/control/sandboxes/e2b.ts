import { createHmac } from 'node:crypto'
import { type SandboxItem, ThawError } from '@thaw/protocol'
import { z } from 'zod'
import type { E2bFacet, SandboxRow } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import { createE2bSandbox, definedOnly, type E2bCreate, type E2bTemplateFacts } from './e2b-create.ts'
import { E2bEntry, ownerOf } from './e2b-entry.ts'
import { sandboxItem } from './items.ts'
import type { LiveSandbox } from './live-sandbox.ts'
import type { Lives } from './lives.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'

export interface E2bSandboxesParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  lives: Lives
}

/** A sandbox as clients of E2B see it. */
export interface E2bView {
  item: SandboxItem
  facet: E2bFacet | null
  /** Opens its agent; null where the server adds it by itself. */
  agentToken: string | null
  /** Opens its ports; null where they are open. */
  trafficToken: string | null
}

export interface E2bListFilter {
  states: ('running' | 'paused')[]
  metadata: Record<string, string>
  template?: string | undefined
  startedAfter?: number | undefined
  order: 'asc' | 'desc'
  limit: number
  after?: { startedAt: number; id: string } | undefined
}

/** Sandboxes with the manners of E2B: their life ends with a timeout, pausing stops that clock, and traffic may wake them. */
export class E2bSandboxes {
  readonly #parts: E2bSandboxesParts
  /** Templates are being built in them. */
  readonly #hidden = new WeakSet<LiveSandbox>()

  constructor(parts: E2bSandboxesParts) {
    this.#parts = parts
  }

  async create(caller: Caller, request: E2bCreate, signal?: AbortSignal): Promise<E2bView> {
    return this.#view(await createE2bSandbox(this.#parts, caller, request, signal))
  }

  /** What a sandbox in which a template was built becomes, for those that start from its files. */
  async describeTemplate(caller: Caller, id: string, { env, user, workdir, startCmd, readyCmd }: E2bTemplateFacts): Promise<void> {
    const sandbox = await this.#live(caller, id)
    await this.#parts.lives.locked(sandbox, async () => {
      const { command: _, ...spec } = sandbox.row.spec
      const { ready_cmd: __, build: ___, ...facet } = spec.e2b as E2bFacet
      const e2b: E2bFacet = { ...facet, user, workdir, is_template: true, ...definedOnly({ ready_cmd: readyCmd }) }
      this.#hidden.add(sandbox)
      await sandbox.change({ spec: { ...spec, env, e2b, ...definedOnly({ command: startCmd }) } })
    })
  }

  /** Sandboxes in which an earlier server built templates: nobody goes on with them. */
  async dropBuilds(): Promise<void> {
    const left = [...this.#parts.lives.all()].filter(({ row }) => row.spec.e2b?.build === true)
    await Promise.all(left.map(({ row }) => this.#parts.sandboxes.delete(ownerOf(row), row.id).catch(() => undefined)))
  }

  /** Throws `sandbox_not_found`, also for one that has ended: E2B knows no others. */
  async get(caller: Caller, id: string): Promise<E2bView> {
    return this.#viewOf((await this.#live(caller, id)).row)
  }

  /** One more than `limit` where there are more. */
  list(caller: Caller, filter: E2bListFilter): E2bView[] {
    const wanted = Object.entries(filter.metadata)
    const rows = [...this.#parts.lives.all()]
      .filter((sandbox) => !this.#hidden.has(sandbox))
      .map((sandbox) => sandbox.row)
      .filter((row) => {
        const state = e2bState(row)
        if (row.tenant !== caller.tenant || row.spec.e2b?.build === true || state === null || !filter.states.includes(state)) return false
        if (filter.template !== undefined && templateOf(row) !== filter.template) return false
        if (filter.startedAfter !== undefined && startedAt(row) <= filter.startedAfter) return false
        return wanted.every(([key, value]) => row.spec.metadata[key] === value)
      })
    const sign = filter.order === 'asc' ? 1 : -1
    const compare = (a: { startedAt: number; id: string }, b: { startedAt: number; id: string }) =>
      sign * (a.startedAt - b.startedAt || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0))
    const key = (row: SandboxRow) => ({ startedAt: startedAt(row), id: row.id })
    const { after } = filter
    return rows
      .sort((a, b) => compare(key(a), key(b)))
      .filter((row) => after === undefined || compare(key(row), after) > 0)
      .slice(0, filter.limit + 1)
      .map((row) => this.#viewOf(row))
  }

  async delete(caller: Caller, id: string): Promise<void> {
    await this.#live(caller, id)
    await this.#parts.sandboxes.delete(caller, id)
  }

  /** Wakes it. Its time is as long as asked for from now on; that of one that runs only grows. */
  async connect(caller: Caller, id: string, timeoutMs: number): Promise<{ view: E2bView; resumed: boolean }> {
    const sandbox = await this.#live(caller, id)
    const resumed = sandbox.row.state !== 'running'
    using _ = await this.#parts.sandboxes.use(caller, id)
    const { ends_at } = sandbox.row
    if (resumed || (ends_at !== null && ends_at < Date.now() + timeoutMs)) await this.#setTimeout(caller, id, timeoutMs)
    return { view: this.#viewOf(sandbox.row), resumed }
  }

  /** Throws `sandbox_state_conflict` for one that runs. */
  async resume(caller: Caller, id: string, timeoutMs: number, onTimeout?: 'stop' | 'pause'): Promise<E2bView> {
    const sandbox = await this.#live(caller, id)
    if (sandbox.row.state === 'running') throw new ThawError('sandbox_state_conflict', `The sandbox ${id} is running already.`)
    if (onTimeout !== undefined) await this.#parts.sandboxes.update(caller, id, { on_timeout: onTimeout })
    return (await this.connect(caller, id, timeoutMs)).view
  }

  /** Stops it, and the clock of its life. Throws `sandbox_state_conflict` for one that is paused. */
  async pause(caller: Caller, id: string): Promise<void> {
    const sandbox = await this.#live(caller, id)
    const { lives } = this.#parts
    await lives.locked(sandbox, async () => {
      if (sandbox.row.state !== 'running') throw new ThawError('sandbox_state_conflict', `The sandbox ${id} is paused already.`)
      await lives.pause(sandbox)
      await sandbox.change({ ends_at: null })
    })
  }

  /** From now on. Throws `sandbox_state_conflict` for one that is paused: its clock stands still. */
  async setTimeout(caller: Caller, id: string, timeoutMs: number): Promise<void> {
    const { row } = await this.#live(caller, id)
    if (row.state !== 'running')
      throw new ThawError('sandbox_state_conflict', `The sandbox ${id} is paused.`, { fix: 'Connect to it first.' })
    await this.#setTimeout(caller, id, timeoutMs)
  }

  /** Lets it live for so long at least. */
  async refresh(caller: Caller, id: string, durationMs: number): Promise<void> {
    const { row } = await this.#live(caller, id)
    if (row.ends_at !== null && row.ends_at < Date.now() + durationMs) await this.#setTimeout(caller, id, durationMs)
  }

  async #setTimeout(caller: Caller, id: string, timeoutMs: number): Promise<void> {
    await this.#parts.sandboxes.update(caller, id, { timeout_ms: timeoutMs })
  }

  /** New sandboxes that go on from its memory: all of them, or none. */
  async fork(caller: Caller, id: string, count: number, timeoutMs: number): Promise<E2bView[]> {
    await this.#live(caller, id)
    const { items } = await this.#parts.snapshots.fork(caller, id, { count, kind: 'memory', fallback: false, timeout_ms: timeoutMs })
    return items.map((item) => this.#view(item))
  }

  /** What it uses now, in the words of its agent; null while it sleeps. Inside, the whole host may be seen: its share counts. */
  async metrics(caller: Caller, id: string): Promise<Record<string, number> | null> {
    const sandbox = await this.#live(caller, id)
    const { state, spec } = sandbox.row
    if (state !== 'running') return null
    const text = await sandbox.agent.call({ method: 'GET', path: '/metrics', signal: AbortSignal.timeout(5000) })
    const seen = readMetrics(text)
    const { cpus, memory_mib } = spec.resources
    return {
      ...seen,
      cpu_count: Math.ceil(cpus),
      cpu_used_pct: (seen.cpu_used_pct * seen.cpu_count) / cpus,
      mem_total: memory_mib * 1024 * 1024,
    }
  }

  /** Whose sandbox this is, for traffic that brings no API key; null where there is none that lives. */
  find(id: string): E2bView | null {
    const sandbox = this.#parts.lives.find(id)
    return sandbox === undefined || e2bState(sandbox.row) === null ? null : this.#viewOf(sandbox.row)
  }

  isRunning(caller: Caller, id: string): boolean {
    return this.isOf(caller, id) && this.#parts.lives.find(id)?.row.state === 'running'
  }

  isOf(caller: Caller, id: string): boolean {
    return this.#parts.lives.find(id)?.row.tenant === caller.tenant
  }

  /**
   * Lets traffic in, and wakes the sandbox for it; null where that has to be asked for. `onSleep` is called when the sandbox
   * is about to fall asleep all the same. `wake`: false for what must not wake it.
   */
  async enter(id: string, onSleep: () => void, wake: boolean): Promise<E2bEntry | null> {
    const sandbox = this.#parts.lives.find(id)
    if (sandbox === undefined) return null
    // It may be about to fall asleep, or in the middle of a snapshot, during which the agent answers nobody.
    await this.#parts.lives.locked(sandbox, async () => undefined)
    const { row } = sandbox
    if (row.state !== 'running' && (!wake || row.spec.e2b?.auto_resume === false)) return null
    const caller = ownerOf(row)
    const lease = await this.#parts.sandboxes.use(caller, id)
    try {
      // Its clock stood still while it was paused.
      const { ends_at, spec } = sandbox.row
      if (row.state !== 'running' && ends_at === null && spec.e2b !== undefined && spec.timeout_ms !== null)
        await this.#setTimeout(caller, id, spec.timeout_ms)
      return new E2bEntry(lease, onSleep)
    } catch (error) {
      lease.release()
      throw error
    }
  }

  async #live(caller: Caller, id: string): Promise<LiveSandbox> {
    const sandbox = await this.#parts.sandboxes.liveOf(caller, id).catch((error: unknown) => {
      throw error instanceof ThawError && error.code === 'sandbox_not_running' ? new ThawError('sandbox_not_found', error.message) : error
    })
    // It is about to end, or to fall asleep: what it is then is the answer, so that no two answers contradict each other.
    if (sandbox.running === null && sandbox.row.state === 'running') await this.#parts.lives.locked(sandbox, async () => undefined)
    if (e2bState(sandbox.row) === null) throw new ThawError('sandbox_not_found', `The sandbox ${id} is ${sandbox.row.state}.`)
    return sandbox
  }

  #view(item: SandboxItem): E2bView {
    const row = this.#parts.lives.find(item.id)?.row
    if (row === undefined) throw new ThawError('sandbox_not_found', `The sandbox ${item.id} has ended already.`)
    return this.#viewOf(row)
  }

  #viewOf(row: SandboxRow): E2bView {
    const facet = row.spec.e2b ?? null
    return {
      item: sandboxItem(row),
      facet,
      agentToken: facet?.secure === false ? null : row.access_token,
      trafficToken: facet?.public_traffic === true ? null : trafficToken(row),
    }
  }
}

const metricsSchema = z.object({
  cpu_count: z.number(),
  cpu_used_pct: z.number(),
  mem_used: z.number(),
  mem_cache: z.number(),
  disk_used: z.number(),
  disk_total: z.number(),
})

/** What comes from inside may be anything. */
function readMetrics(text: Buffer): z.output<typeof metricsSchema> {
  try {
    return metricsSchema.parse(JSON.parse(text.toString('utf8')))
  } catch (cause) {
    throw new ThawError('sandbox_unavailable', 'The agent of the sandbox said something that is not understood.', { cause })
  }
}

export function e2bState({ state }: Pick<SandboxRow, 'state'>): 'running' | 'paused' | null {
  if (state === 'running') return 'running'
  return state === 'paused' || state === 'hibernated' ? 'paused' : null
}

/** The template of a sandbox that was made by other means is its image. */
export function templateOf({ spec }: Pick<SandboxRow, 'spec'>): string {
  return spec.e2b?.template ?? spec.image
}

function startedAt(row: SandboxRow): number {
  return row.started_at ?? row.created_at
}

/** Follows from the token of the agent, so that each clone has one of its own, and tells nothing about it. */
function trafficToken(row: SandboxRow): string {
  return createHmac('sha256', row.access_token).update('traffic').digest('hex')
}
