import type { Kysely } from 'kysely'
import type { ImageRow, ImageStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

export class SqliteImages implements ImageStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async put(row: ImageRow): Promise<void> {
    const { ref, ...rest } = row
    await patiently(this.#patience, () =>
      this.#db
        .insertInto('images')
        .values({ ref, ...rest })
        .onConflict((conflict) => conflict.column('ref').doUpdateSet(rest))
        .execute(),
    )
  }

  async get(ref: string): Promise<ImageRow | null> {
    const row = await patiently(this.#patience, () => this.#db.selectFrom('images').selectAll().where('ref', '=', ref).executeTakeFirst())
    return row === undefined ? null : { ...row, kind: row.kind as ImageRow['kind'] }
  }

  async list(): Promise<ImageRow[]> {
    const rows = await patiently(this.#patience, () => this.#db.selectFrom('images').selectAll().orderBy('ref').execute())
    return rows.map((row) => ({ ...row, kind: row.kind as ImageRow['kind'] }))
  }

  async delete(ref: string): Promise<boolean> {
    const { numDeletedRows } = await patiently(this.#patience, () =>
      this.#db.deleteFrom('images').where('ref', '=', ref).executeTakeFirstOrThrow(),
    )
    return numDeletedRows > 0n
  }
}
