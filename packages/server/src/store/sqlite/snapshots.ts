import type { DriverKind } from '@thaw/protocol'
import { type Kysely, sql } from 'kysely'
import type { SandboxSpec, SnapshotRow, SnapshotStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { SnapshotTable, Tables } from './tables.ts'

export class SqliteSnapshots implements SnapshotStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: SnapshotRow): Promise<void> {
    await this.#do((db) =>
      db
        .insertInto('snapshots')
        .values(toTable(row) as SnapshotTable)
        .execute(),
    )
  }

  async update(id: string, change: Partial<Omit<SnapshotRow, 'id' | 'tenant'>>): Promise<void> {
    await this.#do((db) => db.updateTable('snapshots').set(toTable(change)).where('id', '=', id).execute())
  }

  async get(id: string): Promise<SnapshotRow | null> {
    const row = await this.#do((db) => db.selectFrom('snapshots').selectAll().where('id', '=', id).executeTakeFirst())
    return row === undefined ? null : fromTable(row)
  }

  async list(filter: {
    tenant: string
    sandbox_id?: string | undefined
    before?: string | undefined
    limit: number
  }): Promise<SnapshotRow[]> {
    const rows = await this.#do((db) => {
      let query = db.selectFrom('snapshots').selectAll().where('tenant', '=', filter.tenant).where('purpose', '=', 'user')
      if (filter.sandbox_id !== undefined) query = query.where('sandbox_id', '=', filter.sandbox_id)
      if (filter.before !== undefined) query = query.where('id', '<', filter.before)
      return query.orderBy('id', 'desc').limit(filter.limit).execute()
    })
    return rows.map(fromTable)
  }

  async all(): Promise<SnapshotRow[]> {
    return (await this.#do((db) => db.selectFrom('snapshots').selectAll().orderBy('id').execute())).map(fromTable)
  }

  async ofVersion(versionId: string): Promise<SnapshotRow[]> {
    const rows = await this.#do((db) => db.selectFrom('snapshots').selectAll().where('version_id', '=', versionId).orderBy('id').execute())
    return rows.map(fromTable)
  }

  async count(id: string, success: boolean, now: number): Promise<void> {
    await this.#do((db) =>
      db
        .updateTable('snapshots')
        .set(
          success
            ? { success_count: sql`success_count + 1`, failures_in_row: 0, last_used_at: now }
            : { failure_count: sql`failure_count + 1`, failures_in_row: sql`failures_in_row + 1`, last_used_at: now },
        )
        .where('id', '=', id)
        .execute(),
    )
  }

  async delete(id: string): Promise<boolean> {
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('snapshots').where('id', '=', id).executeTakeFirstOrThrow())
    return numDeletedRows > 0n
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}

function toTable({ spec, fingerprint, driver_state, error, ...plain }: Partial<SnapshotRow>): Partial<SnapshotTable> {
  return {
    ...plain,
    ...(spec === undefined ? {} : { spec: JSON.stringify(spec) }),
    ...(fingerprint === undefined ? {} : { fingerprint: JSON.stringify(fingerprint) }),
    ...(driver_state === undefined ? {} : { driver_state: JSON.stringify(driver_state) }),
    ...(error === undefined ? {} : { error: error === null ? null : JSON.stringify(error) }),
  }
}

function fromTable(row: SnapshotTable): SnapshotRow {
  return {
    ...row,
    purpose: row.purpose as SnapshotRow['purpose'],
    kind: row.kind as SnapshotRow['kind'],
    state: row.state as SnapshotRow['state'],
    driver: row.driver as DriverKind,
    spec: JSON.parse(row.spec) as SandboxSpec,
    fingerprint: JSON.parse(row.fingerprint) as Record<string, string>,
    driver_state: JSON.parse(row.driver_state) as Record<string, unknown>,
    error: row.error === null ? null : (JSON.parse(row.error) as SnapshotRow['error']),
  }
}
