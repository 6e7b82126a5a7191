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
        .onConflict((conflict) => conflict.columns(['tenant', 'name']).doNothing())
        .executeTakeFirstOrThrow(),
    )
    if (numInsertedOrUpdatedRows === 0n) throw new ThawError('secret_exists', `A secret named ${row.name} exists already.`)
  }

  async update(tenant: string, name: string, change: Pick<SecretRow, 'sealed' | 'key_id' | 'updated_at'>): Promise<boolean> {
    const { numUpdatedRows } = await this.#do((db) =>
      db
        .updateTable('secrets')
        .set({ ...change })
        .where('tenant', '=', tenant)
        .where('name', '=', name)
        .executeTakeFirstOrThrow(),
    )
    return numUpdatedRows > 0n
  }

  async get(tenant: string, name: string): Promise<SecretRow | null> {
    const row = await this.#do((db) =>
      db.selectFrom('secrets').selectAll().where('tenant', '=', tenant).where('name', '=', name).executeTakeFirst(),
    )
    return row === undefined ? null : { ...row }
  }

  async list(tenant: string): Promise<Omit<SecretRow, 'sealed'>[]> {
    const rows = await this.#do((db) =>
      db
        .selectFrom('secrets')
        .select(['tenant', 'name', 'key_id', 'created_at', 'updated_at'])
        .where('tenant', '=', tenant)
        .orderBy('name')
        .execute(),
    )
    return rows.map((row) => ({ ...row }))
  }

  async keyIds(): Promise<{ key_id: string; count: number }[]> {
    const rows = await this.#do((db) =>
      db
        .selectFrom('secrets')
        .select((table) => ['key_id', table.fn.countAll<number>().as('count')])
        .groupBy('key_id')
        .execute(),
    )
    return rows.map((row) => ({ ...row }))
  }

  async delete(tenant: string, name: string): Promise<boolean> {
    const { numDeletedRows } = await this.#do((db) =>
      db.deleteFrom('secrets').where('tenant', '=', tenant).where('name', '=', name).executeTakeFirstOrThrow(),
    )
    return numDeletedRows > 0n
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}
