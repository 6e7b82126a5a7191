import type { BootMethod, DriverKind, SandboxState } from '@thaw/protocol'
import { ThawError } from '@thaw/protocol'
import { type Kysely, sql } from 'kysely'
import type { SandboxFilter, SandboxRow, SandboxSpec, SandboxStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { SandboxTable, Tables } from './tables.ts'

export class SqliteSandboxes implements SandboxStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: SandboxRow): Promise<void> {
    const { numInsertedOrUpdatedRows } = await this.#do((db) =>
      db
        .insertInto('sandboxes')
        .values(toTable(row) as SandboxTable)
        .onConflict((conflict) => conflict.doNothing())
        .executeTakeFirstOrThrow(),
    )
    if (numInsertedOrUpdatedRows === 0n) throw new ThawError('sandbox_state_conflict', `A sandbox named ${row.name} exists already.`)
  }

  async update(id: string, change: Partial<Omit<SandboxRow, 'id' | 'tenant'>>): Promise<void> {
    await this.#do((db) => db.updateTable('sandboxes').set(toTable(change)).where('id', '=', id).execute())
  }

  async get(id: string): Promise<SandboxRow | null> {
    const row = await this.#do((db) => db.selectFrom('sandboxes').selectAll().where('id', '=', id).executeTakeFirst())
    return row === undefined ? null : fromTable(row)
  }

  async byName(tenant: string, name: string): Promise<SandboxRow | null> {
    const row = await this.#do((db) =>
      db
        .selectFrom('sandboxes')
        .selectAll()
        .where('tenant', '=', tenant)
        .where('name', '=', name)
        .where('ended_at', 'is', null)
        .executeTakeFirst(),
    )
    return row === undefined ? null : fromTable(row)
  }

  async list(filter: SandboxFilter): Promise<SandboxRow[]> {
    const rows = await this.#do((db) => {
      let query = db.selectFrom('sandboxes').selectAll().where('tenant', '=', filter.tenant)
      if (filter.states !== undefined) query = query.where('state', 'in', filter.states)
      if (filter.name !== undefined) query = query.where('name', '=', filter.name)
      if (filter.image !== undefined) query = query.where(sql`json_extract(spec, '$.image')`, '=', filter.image)
      for (const [key, value] of Object.entries(filter.metadata ?? {})) {
        query = query.where(
          sql<boolean>`exists (select 1 from json_each(json_extract(spec, '$.metadata')) as entry where entry.key = ${key} and entry.value = ${value})`,
        )
      }
      if (filter.before !== undefined) query = query.where('id', '<', filter.before)
      return query.orderBy('id', 'desc').limit(filter.limit).execute()
    })
    return rows.map(fromTable)
  }

  async live(): Promise<SandboxRow[]> {
    const rows = await this.#do((db) => db.selectFrom('sandboxes').selectAll().where('ended_at', 'is', null).orderBy('id').execute())
    return rows.map(fromTable)
  }

  async delete(id: string): Promise<boolean> {
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('sandboxes').where('id', '=', id).executeTakeFirstOrThrow())
    return numDeletedRows > 0n
  }

  async prune(before: number): Promise<number> {
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('sandboxes').where('ended_at', '<', before).executeTakeFirstOrThrow())
    return Number(numDeletedRows)
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}

function toTable({ spec, error, ...plain }: Partial<SandboxRow>): Partial<SandboxTable> {
  return {
    ...plain,
    ...(spec === undefined ? {} : { spec: JSON.stringify(spec) }),
    ...(error === undefined ? {} : { error: error === null ? null : JSON.stringify(error) }),
  }
}

function fromTable(row: SandboxTable): SandboxRow {
  return {
    ...row,
    state: row.state as SandboxState,
    driver: row.driver as DriverKind,
    spec: JSON.parse(row.spec) as SandboxSpec,
    boot_method: row.boot_method as BootMethod | null,
    error: row.error === null ? null : (JSON.parse(row.error) as SandboxRow['error']),
  }
}
