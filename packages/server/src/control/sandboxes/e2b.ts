import { createHmac } from 'node:crypto'
import { execRequestSchema, type SandboxCreateParsed, type SandboxItem, sandboxCreateSchema, ThawError, toThawError } from '@thaw/protocol'
import type { E2bFacet, SandboxRow } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import { sandboxItem } from './items.ts'
import type { Lease, LiveSandbox } from './live-sandbox.ts'
import type { Lives } from './lives.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'

export interface E2bSandboxesParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  lives: Lives
}

/** What a client of E2B asks for, in words of thaw. */
export interface E2bCreate {
  /** An image, or a snapshot by its id. */
  source: { image: string | undefined } | { snapshotId: string; env?: Record<string, string> }
  template: string
  timeoutMs: number
  onTimeout: 'stop' | 'pause'
  autoResume: boolean
  secure: boolean
  publicTraffic: boolean
  network: 'none' | 'egress'
  env: Record<string, string>
  metadata: Record<string, string>
  /** A template is being built in it: nobody else sees it. */
  build?: boolean
  resources?: { cpus: number | undefined; memory_mib: number | undefined }
}

/** What a template has beside its files. */
export interface E2bTemplateFacts {
  env: Record<string, string>
  user: string
  workdir: string
  startCmd?: string | undefined
  readyCmd?: string | undefined
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

/** The account that E2B's images have. Commands and files are its own, unless a call names another. */
export const e2bUser = 'user'

const readyMs = 120_000
/** `ss`, which ready commands of E2B's clients ask for ports, is missing in most images: this one knows as much as they need. */
const readyScript = `command -v ss > /dev/null 2>&1 || ss() {
  for last; do :; done
  grep -ihE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "\${last#:}") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6 2> /dev/null
}
until eval "$0"; do sleep 0.1; done > /dev/null 2>&1`

/** Sandboxes with the manners of E2B: their life ends with a timeout, pausing stops that clock, and traffic may wake them. */
export class E2bSandboxes {
  readonly #parts: E2bSandboxesParts

  constructor(parts: E2bSandboxesParts) {
    this.#parts = parts
  }

  async create(caller: Caller, request: E2bCreate): Promise<E2bView> {
    const { sandboxes, snapshots } = this.#parts
    const facet: E2bFacet = {
      template: request.template,
      secure: request.secure,
      public_traffic: request.publicTraffic,
      auto_resume: request.autoResume,
      user: e2bUser,
      ...(request.build === true ? { build: true } : {}),
    }
    const resources = definedOnly(request.resources ?? {})
    const common = { timeout_ms: request.timeoutMs, on_timeout: request.onTimeout, metadata: request.metadata } as const
    const { source } = request
    if ('image' in source) {
      const parsed: SandboxCreateParsed = sandboxCreateSchema.parse({
        ...common,
        image: source.image,
        env: request.env,
        network: request.network,
        ports: 'all',
        resources,
      })
      return this.#view((await sandboxes.create(caller, { ...parsed, e2b: facet })).item)
    }
    const snapshot = await snapshots.row(caller, source.snapshotId)
    const template = snapshot.spec.e2b
    if (snapshot.kind === 'memory' && snapshot.spec.network !== request.network) {
      throw new ThawError('invalid_request', `The snapshot ${snapshot.id} keeps memory, and its network cannot be another one.`, {
        fix: `Leave network and allow_internet_access as they were when it was taken: ${snapshot.spec.network}.`,
      })
    }
    const { user = e2bUser, workdir, ready_cmd } = template ?? {}
    const { item } = await snapshots.restore(caller, snapshot.id, {
      ...common,
      ports: 'all',
      env: { ...source.env, ...request.env },
      network: request.network,
      e2b: { ...facet, user, ...definedOnly({ workdir, ready_cmd }) },
      ...(Object.keys(resources).length === 0 ? {} : { resources: { ...snapshot.spec.resources, ...resources } }),
    })
    if (ready_cmd !== undefined && snapshot.kind === 'filesystem') await this.#untilReady(caller, item.id, ready_cmd)
    return this.#view(item)
  }

  /** What was started with it takes its time. The sandbox is gone when that takes too long. */
  async #untilReady(caller: Caller, id: string, command: string): Promise<void> {
    try {
      const request = { command: ['/bin/sh', '-c', readyScript, command], timeout_ms: readyMs }
      const result = await this.#parts.sandboxes.exec(caller, id, execRequestSchema.parse(request), new AbortController().signal)
      if (result.exit_code === 0) return
      throw new ThawError(
        'start_failed',
        `What the template starts was not ready within ${readyMs / 1000} seconds: ${command.slice(0, 200)}`,
        {
          fix: 'Look at its start command and its ready command; the latter needs its programs in the image.',
        },
      )
    } catch (error) {
      await this.#parts.sandboxes.delete(caller, id).catch(() => undefined)
      throw error
    }
  }

  /** What a sandbox in which a template was built becomes, for those that start from its files. */
  async describeTemplate(caller: Caller, id: string, { env, user, workdir, startCmd, readyCmd }: E2bTemplateFacts): Promise<void> {
    const sandbox = await this.#live(caller, id)
    await this.#parts.lives.locked(sandbox, async () => {
      const { command: _, ...spec } = sandbox.row.spec
      const { ready_cmd: __, ...facet } = spec.e2b as E2bFacet
      const e2b: E2bFacet = { ...facet, user, workdir, is_template: true, ...definedOnly({ ready_cmd: readyCmd }) }
      await sandbox.change({ spec: { ...spec, env, e2b, ...definedOnly({ command: startCmd }) } })
    })
  }

  /** Throws `sandbox_not_found`, also for one that has ended: E2B knows no others. */
  async get(caller: Caller, id: string): Promise<E2bView> {
    return this.#viewOf((await this.#live(caller, id)).row)
  }

  /** One more than `limit` where there are more. */
  list(caller: Caller, filter: E2bListFilter): E2bView[] {
    const wanted = Object.entries(filter.metadata)
    const rows = [...this.#parts.lives.all()]
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

  /** New sandboxes that go on from its memory, each of them or the reason why not. */
  async fork(caller: Caller, id: string, count: number, timeoutMs: number): Promise<({ view: E2bView } | { error: ThawError })[]> {
    await this.#live(caller, id)
    try {
      const { items } = await this.#parts.snapshots.fork(caller, id, { count, kind: 'memory', fallback: false, timeout_ms: timeoutMs })
      return items.map((item) => ({ view: this.#view(item) }))
    } catch (error) {
      const failure = toThawError(error)
      // What the sandbox itself cannot do is an answer to the call, not the fate of each fork.
      if (['snapshot_unsupported', 'sandbox_not_found', 'sandbox_not_running'].includes(failure.code)) throw failure
      return Array.from({ length: count }, () => ({ error: failure }))
    }
  }

  /** What it uses now, in the words of its agent; null while it sleeps. Inside, the whole host may be seen: its share counts. */
  async metrics(caller: Caller, id: string): Promise<Record<string, number> | null> {
    const sandbox = await this.#live(caller, id)
    const { state, spec } = sandbox.row
    if (state !== 'running') return null
    const text = await sandbox.agent.call({ method: 'GET', path: '/metrics', signal: AbortSignal.timeout(5000) })
    const seen = JSON.parse(text.toString('utf8')) as Record<string, number>
    const { cpus, memory_mib } = spec.resources
    return {
      ...seen,
      cpu_count: Math.ceil(cpus),
      cpu_used_pct: ((seen.cpu_used_pct ?? 0) * (seen.cpu_count ?? 1)) / cpus,
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
    const { row } = await this.#parts.sandboxes.liveOf(caller, id).catch((error: unknown) => {
      throw error instanceof ThawError && error.code === 'sandbox_not_running' ? new ThawError('sandbox_not_found', error.message) : error
    })
    const sandbox = this.#parts.lives.find(row.id)
    if (sandbox === undefined || e2bState(row) === null) throw new ThawError('sandbox_not_found', `The sandbox ${id} is ${row.state}.`)
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

/** Traffic that is inside of a sandbox. While it is held, the sandbox does not fall asleep by itself. */
export class E2bEntry implements Disposable {
  readonly #lease: Lease
  readonly #onSleep: () => void

  constructor(lease: Lease, onSleep: () => void) {
    this.#lease = lease
    this.#onSleep = onSleep
    lease.sandbox.onSleep.add(onSleep)
  }

  get connections() {
    return this.#lease.agent.connections
  }

  /** What the server itself shows to the agent. */
  get agentHeaders(): Record<string, string> {
    return this.#lease.agent.headers
  }

  get caller(): Caller {
    return ownerOf(this.#lease.sandbox.row)
  }

  [Symbol.dispose](): void {
    this.#lease.sandbox.onSleep.delete(this.#onSleep)
    this.#lease.release()
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

function ownerOf({ tenant }: SandboxRow): Caller {
  return { tenant, role: 'member', keyId: null }
}

/** Follows from the token of the agent, so that each clone has one of its own, and tells nothing about it. */
function trafficToken(row: SandboxRow): string {
  return createHmac('sha256', row.access_token).update('traffic').digest('hex')
}

function definedOnly<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: Exclude<Fields[Name], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Name in keyof Fields]?: Exclude<Fields[Name], undefined>
  }
}
