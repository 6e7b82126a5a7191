import { ThawError } from '@thaw/protocol'
import type { Kysely, Selectable } from 'kysely'
import type { FunctionRow, FunctionStore, VersionRow } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables, VersionTable } from './tables.ts'

export class SqliteFunctions implements FunctionStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: FunctionRow): Promise<void> {
    const { numInsertedOrUpdatedRows } = await this.#do((db) =>
      db
        .insertInto('functions')
        .values({ ...row })
        .onConflict((conflict) => conflict.columns(['tenant', 'name']).doNothing())
        .executeTakeFirstOrThrow(),
    )
    if (numInsertedOrUpdatedRows === 0n) throw new ThawError('function_exists', `A function named ${row.name} exists already.`)
  }

  async get(tenant: string, name: string): Promise<FunctionRow | null> {
    const row = await this.#do((db) =>
      db.selectFrom('functions').selectAll().where('tenant', '=', tenant).where('name', '=', name).executeTakeFirst(),
    )
    return row === undefined ? null : { ...row }
  }

  async list(page: { after?: string | undefined; limit: number }): Promise<FunctionRow[]> {
    const rows = await this.#do((db) => {
      const query = db.selectFrom('functions').selectAll().orderBy('id').limit(page.limit)
      return (page.after === undefined ? query : query.where('id', '>', page.after)).execute()
    })
    return rows.map((row) => ({ ...row }))
  }

  async delete(id: string): Promise<boolean> {
    // The versions go with it: their foreign key cascades.
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('functions').where('id', '=', id).executeTakeFirstOrThrow())
    return numDeletedRows > 0n
  }

  addVersion(row: Omit<VersionRow, 'version'>): Promise<VersionRow> {
    return this.#do((db) =>
      db.transaction().execute(async (transaction) => {
        const taken = await transaction
          .updateTable('functions')
          .set((table) => ({ next_version: table('next_version', '+', 1) }))
          .where('id', '=', row.function_id)
          .returning('next_version')
          .executeTakeFirst()
        if (taken === undefined) throw new ThawError('function_not_found')
        const version = { ...row, version: taken.next_version - 1 }
        await transaction.insertInto('versions').values(encodeVersion(version)).execute()
        return version
      }),
    )
  }

  async updateVersion(id: string, change: Partial<Pick<VersionRow, 'state' | 'error' | 'image_digest'>>): Promise<void> {
    const { error, ...plain } = change
    const values = error === undefined ? plain : { ...plain, error: encodeJson(error) }
    if (Object.keys(values).length === 0) return
    await this.#do((db) => db.updateTable('versions').set(values).where('id', '=', id).execute())
  }

  async deleteVersion(id: string): Promise<void> {
    await this.#do((db) =>
      db.transaction().execute(async (transaction) => {
        await transaction.updateTable('functions').set({ active_version_id: null }).where('active_version_id', '=', id).execute()
        await transaction.deleteFrom('versions').where('id', '=', id).execute()
      }),
    )
  }

  async activate(functionId: string, versionId: string, now: number): Promise<void> {
    await this.#do((db) =>
      db.transaction().execute(async (transaction) => {
        const { numUpdatedRows } = await transaction
          .updateTable('versions')
          .set({ state: 'ready', error: null })
          .where('id', '=', versionId)
          .where('function_id', '=', functionId)
          .executeTakeFirstOrThrow()
        if (numUpdatedRows === 0n) throw new ThawError('version_not_found')
        await transaction
          .updateTable('functions')
          .set({ active_version_id: versionId, updated_at: now })
          .where('id', '=', functionId)
          .execute()
      }),
    )
  }

  async version(id: string): Promise<VersionRow | null> {
    const row = await this.#do((db) => db.selectFrom('versions').selectAll().where('id', '=', id).executeTakeFirst())
    return row === undefined ? null : decodeVersion(row)
  }

  async versionByNumber(functionId: string, version: number): Promise<VersionRow | null> {
    const row = await this.#do((db) =>
      db.selectFrom('versions').selectAll().where('function_id', '=', functionId).where('version', '=', version).executeTakeFirst(),
    )
    return row === undefined ? null : decodeVersion(row)
  }

  async versions(functionId: string): Promise<VersionRow[]> {
    const rows = await this.#do((db) =>
      db.selectFrom('versions').selectAll().where('function_id', '=', functionId).orderBy('version', 'desc').execute(),
    )
    return rows.map(decodeVersion)
  }

  async versionsInState(state: VersionRow['state']): Promise<VersionRow[]> {
    const rows = await this.#do((db) => db.selectFrom('versions').selectAll().where('state', '=', state).orderBy('id').execute())
    return rows.map(decodeVersion)
  }

  async codeDigests(): Promise<string[]> {
    const rows = await this.#do((db) =>
      db.selectFrom('versions').select('code_digest').distinct().where('code_digest', 'is not', null).execute(),
    )
    return rows.flatMap((row) => row.code_digest ?? [])
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}

function encodeJson(value: unknown): string | null {
  return value === null || value === undefined ? null : JSON.stringify(value)
}

function encodeVersion(row: VersionRow): VersionTable {
  return { ...row, error: encodeJson(row.error), config: JSON.stringify(row.config) }
}

function decodeVersion(row: Selectable<VersionTable>): VersionRow {
  return {
    ...row,
    state: row.state as VersionRow['state'],
    error: row.error === null ? null : JSON.parse(row.error),
    config: JSON.parse(row.config),
  }
}
