import type { Fork, Restore, SandboxItem, SnapshotCreate, SnapshotItem } from '@thaw/protocol'
import type { CallOptions } from '../functions.ts'
import { type Http, isOk, itemOf, pageOf } from '../http.ts'
import { type PageQuery, Pages } from '../page.ts'
import { pathOf } from './path.ts'
import { Sandbox } from './sandbox.ts'

export interface SnapshotQuery extends PageQuery {
  /** Those of this sandbox. */
  sandbox?: string | undefined
}

export interface Forked {
  children: Sandbox[]
  /** How long the parent stood still, in milliseconds. */
  frozen_ms: number
}

/** Sandboxes frozen on disk, see docs/snapshots.md. They are taken by `sandbox.snapshot()`. */
export class Snapshots {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Newest first. */
  list(query: SnapshotQuery = {}): Pages<SnapshotItem> {
    const { sandbox, limit, signal } = query
    return new Pages<SnapshotItem>(
      async (cursor) =>
        pageOf<SnapshotItem>(
          await this.#http.json({ method: 'GET', path: '/v1/snapshots', query: { limit, sandbox_id: sandbox, cursor }, signal }),
        ),
      query.cursor,
    )
  }

  async get(id: string, { signal }: CallOptions = {}): Promise<SnapshotItem> {
    return itemOf<SnapshotItem>(await this.#http.json({ method: 'GET', path: snapshotPath(id), signal }))
  }

  /** A new sandbox that goes on where the snapshot was taken. `snapshot_corrupt` and the like say why it cannot. */
  async restore(id: string, own: Restore = {}, { signal }: CallOptions = {}): Promise<Sandbox> {
    const answer = await this.#http.json({ method: 'POST', path: `${snapshotPath(id)}/restore`, json: own, signal, patient: true })
    return new Sandbox(this.#http, itemOf<SandboxItem>(answer))
  }

  /** Sandboxes that came from it go on. */
  async delete(id: string, { signal }: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: snapshotPath(id), signal, patient: true }, isOk)
  }
}

export async function takeSnapshot(http: Http, sandboxId: string, how: SnapshotCreate, { signal }: CallOptions): Promise<SnapshotItem> {
  return itemOf<SnapshotItem>(await http.json({ method: 'POST', path: `${pathOf(sandboxId)}/snapshot`, json: how, signal, patient: true }))
}

export async function forkSandbox(http: Http, sandboxId: string, how: Fork, { signal }: CallOptions): Promise<Forked> {
  const answer = await http.json({ method: 'POST', path: `${pathOf(sandboxId)}/fork`, json: how, signal, patient: true })
  const { items, frozen_ms } = answer as { items: SandboxItem[]; frozen_ms: number }
  return { children: items.map((item) => new Sandbox(http, item)), frozen_ms }
}

function snapshotPath(id: string): string {
  return `/v1/snapshots/${encodeURIComponent(id)}`
}
