import type { Kysely } from 'kysely'
import type { ResultRow, ResultStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

export class SqliteResults implements ResultStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async get(tenant: string, key: string, now: number): Promise<ResultRow | null> {
    const row = await patiently(this.#patience, () =>
      this.#db
        .selectFrom('results')
        .selectAll()
        .where('tenant', '=', tenant)
        .where('key', '=', key)
        .where('expires_at', '>', now)
        .executeTakeFirst(),
    )
    return row === undefined ? null : { ...row }
  }

  async put(row: ResultRow): Promise<void> {
    const { result, created_at, expires_at } = row
    await patiently(this.#patience, () =>
      this.#db
        .insertInto('results')
        .values({ ...row })
        .onConflict((conflict) => conflict.columns(['tenant', 'key']).doUpdateSet({ result, created_at, expires_at }))
        .execute(),
    )
  }

  async prune(now: number): Promise<number> {
    const { numDeletedRows } = await patiently(this.#patience, () =>
      this.#db.deleteFrom('results').where('expires_at', '<=', now).executeTakeFirstOrThrow(),
    )
    return Number(numDeletedRows)
  }
}
