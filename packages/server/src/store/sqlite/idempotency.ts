import type { Kysely } from 'kysely'
import type { IdempotencyRow, IdempotencyStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

/** Rows removed in one transaction: with bodies of up to 1 MiB, more would hold the event loop up. */
const pruneRows = 20

export class SqliteIdempotency implements IdempotencyStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async get(tenant: string, key: string): Promise<IdempotencyRow | null> {
    const row = await this.#do((db) =>
      db.selectFrom('idempotency').selectAll().where('tenant', '=', tenant).where('key', '=', key).executeTakeFirst(),
    )
    return row === undefined ? null : { ...row, headers: JSON.parse(row.headers) }
  }

  async put(row: IdempotencyRow): Promise<void> {
    const values = { ...row, headers: JSON.stringify(row.headers) }
    await this.#do((db) => db.replaceInto('idempotency').values(values).execute())
  }

  async prune(before: number): Promise<number> {
    for (let removed = 0; ; ) {
      const old = await this.#do((db) =>
        db.selectFrom('idempotency').select(['tenant', 'key']).where('created_at', '<', before).limit(pruneRows).execute(),
      )
      await this.#do((db) =>
        db.transaction().execute(async (transaction) => {
          for (const { tenant, key } of old)
            await transaction
              .deleteFrom('idempotency')
              .where('tenant', '=', tenant)
              .where('key', '=', key)
              .where('created_at', '<', before)
              .execute()
        }),
      )
      removed += old.length
      if (old.length < pruneRows) return removed
    }
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}
