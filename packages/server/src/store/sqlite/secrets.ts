import { ThawError } from '@thaw/protocol'
import type { Kysely } from 'kysely'
import type { SecretRow, SecretStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

export class SqliteSecrets implements SecretStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: SecretRow): Promise<void> {
    const { numInsertedOrUpdatedRows } = await this.#do((db) =>
      db
        .insertInto('secrets')
        .values({ ...row })
        .onConflict((conflict) => conflict.column('name').doNothing())
        .executeTakeFirstOrThrow(),
    )
    if (numInsertedOrUpdatedRows === 0n) throw new ThawError('secret_exists', `A secret named ${row.name} exists already.`)
  }

  async update(name: string, change: Pick<SecretRow, 'sealed' | 'key_id' | 'updated_at'>): Promise<boolean> {
    const { numUpdatedRows } = await this.#do((db) =>
      db
        .updateTable('secrets')
        .set({ ...change })
        .where('name', '=', name)
        .executeTakeFirstOrThrow(),
    )
    return numUpdatedRows > 0n
  }

  async get(name: string): Promise<SecretRow | null> {
    const row = await this.#do((db) => db.selectFrom('secrets').selectAll().where('name', '=', name).executeTakeFirst())
    return row === undefined ? null : { ...row }
  }

  async list(): Promise<Omit<SecretRow, 'sealed'>[]> {
    const rows = await this.#do((db) =>
      db.selectFrom('secrets').select(['name', 'key_id', 'created_at', 'updated_at']).orderBy('name').execute(),
    )
    return rows.map((row) => ({ ...row }))
  }

  async delete(name: string): Promise<boolean> {
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('secrets').where('name', '=', name).executeTakeFirstOrThrow())
    return numDeletedRows > 0n
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}
