import type { Kysely } from 'kysely'
import type { KeyRow, KeyStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

export class SqliteKeys implements KeyStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: KeyRow): Promise<void> {
    await this.#do((db) =>
      db
        .insertInto('api_keys')
        .values({ ...row })
        .execute(),
    )
  }

  async list(): Promise<KeyRow[]> {
    const rows = await this.#do((db) => db.selectFrom('api_keys').selectAll().orderBy('id').execute())
    return rows.map((row) => ({ ...row, role: row.role as KeyRow['role'] }))
  }

  revoke(id: string, now: number): Promise<boolean> {
    return this.#do((db) =>
      db.transaction().execute(async (transaction) => {
        const { numUpdatedRows } = await transaction
          .updateTable('api_keys')
          .set({ revoked_at: now })
          .where('id', '=', id)
          .where('revoked_at', 'is', null)
          .executeTakeFirstOrThrow()
        if (numUpdatedRows === 0n) return false
        // One that was revoked says for good that there were keys; more of them say no more.
        await transaction.deleteFrom('api_keys').where('revoked_at', 'is not', null).where('id', '!=', id).execute()
        return true
      }),
    )
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}
