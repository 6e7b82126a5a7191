import { createHash } from 'node:crypto'
import {
  type ExecuteRequestParsed,
  type ExecuteResult,
  maxOutputBytes,
  type SandboxItem,
  sandboxCreateSchema,
  ThawError,
} from '@thaw/protocol'
import type { ResultStore } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import { type CommandCaller, runCommand } from './exec.ts'
import type { Lease } from './live-sandbox.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'

export interface ExecutorParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
  results: ResultStore
  /** The digest of the image that a request means. */
  imageDigest: (request: ExecuteRequestParsed, signal: AbortSignal) => Promise<string>
}

type Waiting = CommandCaller & { signal: AbortSignal }
type Outcome = Omit<ExecuteResult, 'request_id'>
type Branch = NonNullable<ExecuteResult['branches']>[number]

const defaultTtlMs = 3_600_000
/** Larger results are not kept. */
const maxKeptBytes = Math.min(1024 * 1024, maxOutputBytes)

/** Runs commands for callers who do not want to care about sandboxes. */
export class Executor {
  readonly #parts: ExecutorParts
  /** Runs whose result will be kept: whoever asks for the same meanwhile waits for it. */
  readonly #running = new Map<string, Promise<Outcome>>()

  constructor(parts: ExecutorParts) {
    this.#parts = parts
  }

  async execute(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    check(request)
    switch (request.mode) {
      case 'ephemeral':
        return this.#ephemeral(caller, request, by)
      case 'persistent':
        return this.#persistent(caller, request, by)
      case 'cached':
        return this.#cached(caller, request, by)
      case 'checkpointed':
        return this.#checkpointed(caller, request, by)
      case 'branched':
        return this.#branched(caller, request, by)
    }
  }

  /** A sandbox of its own, which ends with the command. */
  async #ephemeral(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    const { item } = await this.#parts.sandboxes.create(caller, createRequest(request))
    try {
      return whole(await this.#runIn(caller, item, request, by))
    } finally {
      this.#deleteLater(caller, item.id)
    }
  }

  /** The sandbox of `sandbox_id`, or a new one, which lives on. */
  async #persistent(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    const { sandboxes } = this.#parts
    const known = request.sandbox_id === undefined ? null : await sandboxes.get(caller, request.sandbox_id)
    const item = known ?? (await sandboxes.create(caller, createRequest(request))).item
    const outcome = await this.#runIn(caller, item, request, by)
    return whole({ ...outcome, boot_method: known === null ? outcome.boot_method : 'reused', sandbox_id: item.id })
  }

  /** The result of an earlier run of the very same, while its time lasts. Only what succeeded is kept. */
  async #cached(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    const { results } = this.#parts
    const key = hashOf(request, await this.#parts.imageDigest(request, by.signal))
    const kept = await results.get(caller.tenant, key, Date.now())
    if (kept !== null) return { ...(JSON.parse(kept.result) as Outcome), cached: true }
    const flight = `${caller.tenant}/${key}`
    const running = this.#running.get(flight)
    if (running !== undefined) return { ...(await running), cached: true }
    // Not ended by one caller who goes away: others may wait for it.
    const run = this.#ephemeral(caller, request, { ...by, signal: new AbortController().signal }).finally(() =>
      this.#running.delete(flight),
    )
    this.#running.set(flight, run)
    const outcome = await run
    const text = JSON.stringify(outcome)
    if (outcome.exit_code === 0 && !outcome.truncated && Buffer.byteLength(text) <= maxKeptBytes) {
      const now = Date.now()
      await results.put({
        tenant: caller.tenant,
        key,
        result: text,
        created_at: now,
        expires_at: now + (request.cache_ttl_ms ?? defaultTtlMs),
      })
    }
    return outcome
  }

  /** Ends in a snapshot, from which the next command can go on. */
  async #checkpointed(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    const { sandboxes, snapshots } = this.#parts
    const { item } =
      request.snapshot_id === undefined
        ? await sandboxes.create(caller, createRequest(request))
        : await snapshots.restore(caller, request.snapshot_id, {})
    try {
      const outcome = await this.#runIn(caller, item, request, by)
      const snapshot = await snapshots.take(caller, item.id, { kind: 'memory', fallback: true })
      return whole({ ...outcome, snapshot_id: snapshot.id })
    } finally {
      this.#deleteLater(caller, item.id)
    }
  }

  /** Variants side by side, each in a copy of the same sandbox or snapshot. */
  async #branched(caller: Caller, request: ExecuteRequestParsed, by: Waiting): Promise<Outcome> {
    const variants = request.branches ?? [{ command: request.command, env: {}, stdin: request.stdin }]
    const children = await this.#copies(caller, request.branch_from as string, variants.length)
    const drop = (id: string) => this.#deleteLater(caller, id)
    try {
      const branches = await Promise.all(
        variants.map((variant, index) => {
          const env = { ...request.env, ...variant.env }
          const stdin = variant.stdin ?? request.stdin
          return this.#runIn(caller, children[index] as SandboxItem, { ...request, command: variant.command, env, stdin }, by)
        }),
      )
      const outcomes = branches.map((branch, index) => ({ ...branch, sandbox_id: request.keep ? (children[index]?.id ?? null) : null }))
      if (!request.keep) for (const { id } of children) drop(id)
      return { ...whole(outcomes[0] as Branch), branches: outcomes }
    } catch (error) {
      for (const { id } of children) drop(id)
      throw error
    }
  }

  async #copies(caller: Caller, from: string, count: number): Promise<SandboxItem[]> {
    const { snapshots } = this.#parts
    if (!from.startsWith('snap-')) return (await snapshots.fork(caller, from, { count, fallback: false })).items
    const made = await Promise.allSettled(Array.from({ length: count }, () => snapshots.restore(caller, from, {})))
    const items = made.flatMap((result) => (result.status === 'fulfilled' ? [result.value.item] : []))
    const failed = made.find((result) => result.status === 'rejected')
    if (failed === undefined) return items
    for (const { id } of items) this.#deleteLater(caller, id)
    throw failed.reason
  }

  async #runIn(caller: Caller, item: SandboxItem, request: ExecuteRequestParsed, by: Waiting): Promise<Branch> {
    using lease = await this.#parts.sandboxes.use(caller, item.id)
    await writeFiles(lease, request, by.signal)
    const result = await runCommand(lease, request, by)
    return { ...result, boot_method: item.boot_method ?? 'cold', sandbox_id: null, snapshot_id: null }
  }

  /** The answer need not wait for the end of what it came from. */
  #deleteLater(caller: Caller, id: string): void {
    void this.#parts.sandboxes.delete(caller, id).catch(() => undefined)
  }
}

function whole(outcome: Branch): Outcome {
  return { ...outcome, cached: false }
}

/** Refuses what belongs to another mode: it would be ignored. */
function check(request: ExecuteRequestParsed): void {
  const belongs = {
    sandbox_id: 'persistent',
    cache_key: 'cached',
    cache_ttl_ms: 'cached',
    snapshot_id: 'checkpointed',
    branch_from: 'branched',
    branches: 'branched',
  } as const
  for (const [field, mode] of Object.entries(belongs)) {
    if (request[field as keyof typeof belongs] !== undefined && request.mode !== mode) {
      throw new ThawError('invalid_request', `${field} belongs to mode ${mode}, and the mode is ${request.mode}.`, {
        fix: `Leave ${field} out, or set mode to ${mode}.`,
      })
    }
  }
  if (request.mode === 'branched' && request.branch_from === undefined) {
    throw new ThawError('invalid_request', 'Mode branched needs branch_from.', { fix: 'Give the id of a sandbox or of a snapshot.' })
  }
}

/** Hash of all that the result depends on. */
function hashOf(request: ExecuteRequestParsed, imageDigest: string): string {
  const { command, env, stdin, cwd, files, encoding, network, resources, driver, cache_key } = request
  const sorted = (object: Record<string, string>) => Object.entries(object).sort(([a], [b]) => (a < b ? -1 : 1))
  const all = [command, imageDigest, sorted(env), stdin, cwd, sorted(files), encoding, network, resources, driver, cache_key]
  return createHash('sha256').update(JSON.stringify(all)).digest('hex')
}

async function writeFiles(lease: Lease, { files, encoding }: ExecuteRequestParsed, signal: AbortSignal): Promise<void> {
  for (const [path, content] of Object.entries(files)) {
    const body = Buffer.from(content, encoding)
    const headers = { 'content-type': 'application/octet-stream', 'content-length': body.length }
    await lease.agent.call({ method: 'POST', path: `/files?path=${encodeURIComponent(path)}`, headers, signal }, body)
  }
}

/** The sandbox that an execution asks for. It has no name, no ports and no end of its own. */
function createRequest({ image, driver, network, resources }: ExecuteRequestParsed) {
  return sandboxCreateSchema.parse({
    ...(image === undefined ? {} : { image }),
    ...(driver === undefined ? {} : { driver }),
    network,
    resources,
  })
}
