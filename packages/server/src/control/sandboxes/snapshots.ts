import { availableParallelism } from 'node:os'
import type { Readable } from 'node:stream'
import {
  driverKindSchema,
  type ForkParsed,
  newId,
  type RestoreParsed,
  type SandboxItem,
  type SandboxTree,
  type SnapshotCreateParsed,
  type SnapshotItem,
  sandboxCreateSchema,
  ThawError,
  toThawError,
} from '@thaw/protocol'
import { z } from 'zod'
import type { SandboxRow, SandboxSpec, SandboxStore, SnapshotRow, SnapshotStore } from '../../store/store.ts'
import type { Logger } from '../../telemetry/log.ts'
import { type Caller, requireAdmin } from '../caller.ts'
import type { SnapshotFiles } from '../ports.ts'
import { type Captured, capture, chooseKind } from './capture.ts'
import { sandboxItem, snapshotItem } from './items.ts'
import { keepSnapshot } from './keep.ts'
import type { Lives } from './lives.ts'
import type { SandboxStarter } from './sandbox-starter.ts'
import { newRow, type Sandboxes } from './sandboxes.ts'

export interface SnapshotsParts {
  store: SnapshotStore
  sandboxStore: SandboxStore
  files: SnapshotFiles
  sandboxes: Sandboxes
  lives: Lives
  starter: SandboxStarter
  log: Logger
}

/** What an exported snapshot says beside its manifest. */
const noteSchema = z.object({
  spec: sandboxCreateSchema.omit({ driver: true, name: true, snapshot_id: true }).extend({ image: z.string(), agent: z.string() }),
  name: z.string().max(128).nullable(),
  resume_token: z.string().max(256).nullable(),
})

/** After so many failures in a row a snapshot is not used any more. */
const unhealthyAfter = 3
const restoreMs = 60_000

/** What the API of thaw does not offer. For snapshots of files: memory has its network and its limits already. */
type RestoreMore = Partial<Pick<SandboxSpec, 'e2b' | 'network' | 'resources'>>

/** What a clone gets for itself. */
interface Share extends Partial<RestoreParsed>, RestoreMore {
  parent_id: string | null
  snapshot_id: string | null
}

/** Snapshots that callers take, what they start from them, and forks of what lives. */
export class Snapshots {
  readonly #parts: SnapshotsParts

  constructor(parts: SnapshotsParts) {
    this.#parts = parts
  }

  /** Ids whose files must stay. Rows of snapshots that were being written when the server ended are removed. */
  static async known(store: SnapshotStore): Promise<Set<string>> {
    const rows = await store.all()
    const gone = rows.filter((row) => row.state === 'creating' || row.state === 'deleted')
    for (const row of gone) await store.delete(row.id)
    return new Set(rows.filter((row) => !gone.includes(row)).map((row) => row.id))
  }

  /** Keeps a sandbox as it is now; it goes on. */
  async take(caller: Caller, idOrName: string, request: SnapshotCreateParsed): Promise<SnapshotItem> {
    using lease = await this.#parts.sandboxes.use(caller, idOrName)
    const { sandbox } = lease
    return this.#parts.lives.locked(sandbox, async () => {
      const { running, row } = sandbox
      if (running === null) throw new ThawError('sandbox_not_running', `The sandbox ${row.id} is ${row.state}.`)
      const kind = chooseKind(running, request.kind, request.fallback)
      const image = await this.#parts.starter.imageOf(row)
      const id = newId('snap')
      await using draft = await this.#parts.files.draft()
      const captured = await capture(running, image, row, { dir: draft.data, kind, use: 'keep' })
      try {
        return snapshotItem(
          await keepSnapshot(this.#parts, {
            id,
            purpose: 'user',
            name: request.name ?? null,
            of: row,
            imageDigest: image.digest,
            captured,
            draft,
          }),
        )
      } catch (error) {
        await running.driver.dropSnapshot?.({ dir: draft.data, kind, state: captured.state })
        throw error
      }
    })
  }

  async list(
    caller: Caller,
    page: { sandbox_id?: string | undefined; before?: string | undefined; limit: number },
  ): Promise<SnapshotItem[]> {
    return (await this.#parts.store.list({ tenant: caller.tenant, ...page })).map(snapshotItem)
  }

  async get(caller: Caller, id: string): Promise<SnapshotItem> {
    return snapshotItem(await this.row(caller, id))
  }

  async delete(caller: Caller, id: string): Promise<void> {
    await this.#remove(await this.row(caller, id))
  }

  /** Removes those that callers took and nobody has used since that time. */
  async prune(before: number): Promise<void> {
    for (const row of await this.#parts.store.all()) {
      if (row.purpose === 'user' && (row.last_used_at ?? row.created_at) < before) await this.#remove(row)
    }
  }

  async #remove(row: SnapshotRow): Promise<void> {
    await this.#parts.store.delete(row.id)
    await this.#parts.starter.dropSnapshot(row, this.#parts.files.dataDir(row.id)).catch((error) => {
      this.#parts.log.warn({ err: error, snapshot: row.id }, 'the driver could not remove what it kept of a snapshot')
    })
    await this.#parts.files.remove(row.id)
  }

  /** The snapshot as one file. It holds the memory of its sandbox: whoever has it, has what was in there. */
  async export(caller: Caller, id: string): Promise<Readable> {
    const row = await this.row(caller, id)
    if (this.#keepsOutside(row)) {
      throw new ThawError('snapshot_unsupported', `Snapshots of the driver ${row.driver} stay in its engine and cannot be exported.`, {
        fix: 'Export the image with the tools of the engine.',
      })
    }
    await this.#parts.files.check(row.id, row.manifest_digest ?? '')
    const { env: _, e2b: __, ...spec } = row.spec
    return this.#parts.files.export(row.id, { spec, name: row.name, resume_token: row.driver_state.resume_token ?? null })
  }

  /**
   * A snapshot that was exported, here or elsewhere. For admins: what its memory does when it goes on is decided by whoever
   * made the file.
   */
  async import(caller: Caller, archive: Readable, name: string | undefined): Promise<SnapshotItem> {
    requireAdmin(caller)
    const { draft, manifest, note } = await this.#parts.files.import(archive)
    await using kept = draft
    const parsed = noteSchema.safeParse(note)
    const driver = driverKindSchema.safeParse(manifest.driver)
    if (!parsed.success || !driver.success) throw new ThawError('archive_invalid', 'The snapshot was exported by another version of thaw.')
    const spec = { ...parsed.data.spec, env: {} } as SandboxSpec
    await this.#parts.starter.imageOf({ image_digest: manifest.image_digest, spec })
    const id = newId('snap')
    const row = { tenant: caller.tenant, id: null, driver: driver.data, spec }
    const captured: Captured = {
      kind: manifest.kind,
      frozen_ms: 0,
      fingerprint: manifest.fingerprint,
      state: manifest.driver_state,
      resume_token: parsed.data.resume_token,
    }
    return snapshotItem(
      await keepSnapshot(this.#parts, {
        id,
        purpose: 'user',
        name: name ?? parsed.data.name,
        of: row,
        imageDigest: manifest.image_digest,
        captured,
        draft: kept,
      }),
    )
  }

  #keepsOutside(row: SnapshotRow): boolean {
    return row.driver === 'docker'
  }

  /** A new sandbox that goes on where the snapshot was taken. */
  async restore(caller: Caller, id: string, request: RestoreParsed & RestoreMore): Promise<{ item: SandboxItem; created: boolean }> {
    const snapshot = await this.row(caller, id)
    if (snapshot.state !== 'ready') {
      throw new ThawError('snapshot_corrupt', `The snapshot ${id} is ${snapshot.state}.`, { details: snapshot.error })
    }
    return this.#parts.sandboxes.named(caller, request.name, async () => {
      try {
        await this.#parts.files.check(snapshot.id, snapshot.manifest_digest ?? '')
        const dir = this.#parts.files.dataDir(snapshot.id)
        const item = await this.#clone(snapshot, dir, { ...request, parent_id: snapshot.sandbox_id, snapshot_id: snapshot.id })
        await this.#parts.store.count(snapshot.id, true, Date.now())
        return item
      } catch (error) {
        await this.#failed(snapshot, toThawError(error))
        throw error
      }
    })
  }

  /** New sandboxes that go on from where this one is, which goes on too. */
  async fork(caller: Caller, idOrName: string, request: ForkParsed): Promise<{ items: SandboxItem[]; frozen_ms: number }> {
    using lease = await this.#parts.sandboxes.use(caller, idOrName)
    const { sandbox } = lease
    const { starter, files, lives } = this.#parts
    // Deleted with the draft, which is never committed: what it is for is done when the children live.
    await using draft = await files.draft()
    const { captured, row } = await lives.locked(sandbox, async () => {
      const { running, row } = sandbox
      if (running === null) throw new ThawError('sandbox_not_running', `The sandbox ${row.id} is ${row.state}.`)
      const kind = chooseKind(running, request.kind, request.fallback)
      return { captured: await capture(running, await starter.imageOf(row), row, { dir: draft.data, kind, use: 'fork' }), row }
    })
    const source = {
      ...row,
      image_digest: row.image_digest ?? '',
      kind: captured.kind,
      fingerprint: captured.fingerprint,
      driver_state: { ...captured.state, resume_token: captured.resume_token },
    }
    const share: Share = {
      parent_id: row.id,
      snapshot_id: null,
      ...(request.metadata === undefined ? {} : { metadata: request.metadata }),
      ...(request.timeout_ms === undefined ? {} : { timeout_ms: request.timeout_ms }),
    }
    try {
      const items = await sideBySide(request.count, () => this.#clone(source, draft.data, share))
      const failed = items.find((result) => result.status === 'rejected')
      if (failed === undefined)
        return { items: items.map((result) => (result as PromiseFulfilledResult<SandboxItem>).value), frozen_ms: captured.frozen_ms }
      // All or none: whoever asked for five must not look for the three that came.
      for (const result of items)
        if (result.status === 'fulfilled') await this.#parts.sandboxes.delete(caller, result.value.id).catch(() => undefined)
      throw failed.reason
    } finally {
      await starter.dropSnapshot(source, draft.data)
    }
  }

  /** The sandbox that everything began with, and all that came from it and is still known; oldest first. */
  async tree(caller: Caller, idOrName: string): Promise<SandboxTree> {
    const { sandboxStore } = this.#parts
    const rows = new Map<string, SandboxRow>()
    let before: string | undefined
    for (let page = await sandboxStore.list({ tenant: caller.tenant, limit: 1000 }); page.length > 0; ) {
      for (const row of page) rows.set(row.id, row)
      before = page.at(-1)?.id
      page = page.length < 1000 ? [] : await sandboxStore.list({ tenant: caller.tenant, limit: 1000, before })
    }
    let root = rows.get((await this.#parts.sandboxes.get(caller, idOrName)).id)
    while (root?.parent_id != null && rows.has(root.parent_id)) root = rows.get(root.parent_id)
    if (root === undefined) throw new ThawError('sandbox_not_found')
    const family = new Set([root.id])
    // Oldest first, so that a parent comes before its children.
    const items = [...rows.values()].reverse().filter((row) => {
      if (row.parent_id !== null && family.has(row.parent_id)) family.add(row.id)
      return family.has(row.id)
    })
    return { root_id: root.id, items: items.map(sandboxItem) }
  }

  async #clone(
    source: Pick<SnapshotRow, 'tenant' | 'driver' | 'image_digest' | 'spec' | 'kind' | 'driver_state' | 'fingerprint'>,
    dir: string,
    { parent_id, snapshot_id, name, env, ...own }: Share,
  ): Promise<SandboxItem> {
    const { lives, starter } = this.#parts
    const spec: SandboxSpec = {
      ...source.spec,
      ...(Object.fromEntries(Object.entries(own).filter(([, value]) => value !== undefined)) as Partial<SandboxSpec>),
      env: { ...source.spec.env, ...env },
    }
    const row = newRow({
      tenant: source.tenant,
      name: name ?? null,
      driver: source.driver,
      image_digest: source.image_digest,
      spec,
      parent_id,
      snapshot_id,
    })
    await lives.reserve(spec.resources.memory_mib)
    const made = await lives.create(row, async (signal) => ({
      sandbox: await starter.restore(source, row, dir, AbortSignal.any([signal, AbortSignal.timeout(restoreMs)])),
      bootMethod: source.kind === 'memory' ? 'warm' : 'cold',
    }))
    return sandboxItem(made)
  }

  /** What the snapshot is not to blame for does not count against it. */
  async #failed(snapshot: SnapshotRow, error: ThawError): Promise<void> {
    if (!error.code.startsWith('snapshot_')) return
    await this.#parts.store.count(snapshot.id, false, Date.now())
    const broken = error.code === 'snapshot_corrupt' || snapshot.failures_in_row + 1 >= unhealthyAfter
    if (broken) await this.#parts.store.update(snapshot.id, { state: 'unhealthy', error: { code: error.code, message: error.message } })
  }

  /** The snapshot of this id, as the caller may see it. */
  async row(caller: Caller, id: string): Promise<SnapshotRow> {
    const row = await this.#parts.store.get(id)
    if (row === null || row.tenant !== caller.tenant || row.purpose !== 'user') {
      throw new ThawError('snapshot_not_found', `There is no snapshot ${JSON.stringify(id.slice(0, 100))}.`)
    }
    return row
  }
}

/** Restores wait for the kernel more than for the processor. */
async function sideBySide<Result>(count: number, task: () => Promise<Result>): Promise<PromiseSettledResult<Result>[]> {
  const results: PromiseSettledResult<Result>[] = []
  let left = count
  const worker = async () => {
    while (left > 0) {
      left--
      results.push(...(await Promise.allSettled([task()])))
    }
  }
  await Promise.all(Array.from({ length: Math.min(count, availableParallelism() * 2) }, worker))
  return results
}
