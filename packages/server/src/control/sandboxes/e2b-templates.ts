import { ThawError } from '@thaw/protocol'
import type { SnapshotRow, SnapshotStore } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import type { E2bCreate } from './e2b-create.ts'

/** What E2B calls its own templates, and what comes nearest. */
const ownTemplates: Record<string, string | undefined> = {
  // The image of the driver: python, or host.
  base: undefined,
  'e2bdev/base': undefined,
  'e2bdev/base:latest': undefined,
}
const builtImages = new Set(['python', 'node', 'go', 'host'])
const pageRows = 200

/** Finds what a sandbox is to start from by the names that clients of E2B give: snapshots, templates and images. */
export class E2bTemplates {
  readonly #store: SnapshotStore

  constructor(store: SnapshotStore) {
    this.#store = store
  }

  /** A snapshot by id or name, E2B's own names, an image by its reference. Throws `image_not_found`. */
  async source(caller: Caller, template: string): Promise<E2bCreate['source']> {
    const snapshot = await this.snapshot(caller, template)
    if (snapshot !== null) return { snapshotId: snapshot.id }
    if (Object.hasOwn(ownTemplates, template)) return { image: ownTemplates[template] }
    // Everything else that is a plain word would be looked for in a registry, where anybody may have put it.
    if (!builtImages.has(template) && !/[/:@]/.test(template)) {
      throw new ThawError('image_not_found', `There is no template ${JSON.stringify(template.slice(0, 100))}.`, {
        fix: 'Use base, python, node or go, the reference of an image such as docker.io/library/debian:12, or the id or name of a snapshot.',
      })
    }
    return { image: template }
  }

  /** By id, or the newest of this name that can be used. A name is also found with the tag `default`. */
  async snapshot(caller: Caller, idOrName: string): Promise<SnapshotRow | null> {
    const name = idOrName.replace(/:default$/, '')
    if (/^snap-/.test(name)) {
      const row = await this.#store.get(name)
      if (row !== null && row.tenant === caller.tenant && row.purpose === 'user') return row
    }
    for await (const row of this.all(caller)) if (row.name === name && row.state === 'ready') return row
    return null
  }

  /** Gives a snapshot the name of a template, in the place of the one that had it. */
  async replace(caller: Caller, name: string, id: string, drop: (id: string) => Promise<void>): Promise<void> {
    const before: string[] = []
    for await (const row of this.all(caller)) if (row.name === name && row.spec.e2b?.is_template === true) before.push(row.id)
    await this.#store.update(id, { name })
    for (const old of before) await drop(old)
  }

  /** Newest first. */
  async *all(caller: Caller, sandboxId?: string): AsyncGenerator<SnapshotRow> {
    let before: string | undefined
    for (;;) {
      const rows = await this.#store.list({ tenant: caller.tenant, sandbox_id: sandboxId, before, limit: pageRows })
      yield* rows
      before = rows.at(-1)?.id
      if (rows.length < pageRows) return
    }
  }
}
