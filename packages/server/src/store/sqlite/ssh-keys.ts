import type { Kysely } from 'kysely'
import type { SshKeyRow, SshKeyStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { Tables } from './tables.ts'

export class SqliteSshKeys implements SshKeyStore {
  readonly #db: Kysely<Tables>
  readonly #patience: Patience

  constructor(db: Kysely<Tables>, patience: Patience) {
    this.#db = db
    this.#patience = patience
  }

  async create(row: SshKeyRow): Promise<boolean> {
    const { numInsertedOrUpdatedRows } = await this.#do((db) =>
      db
        .insertInto('ssh_keys')
        .values({ ...row })
        .onConflict((conflict) => conflict.doNothing())
        .executeTakeFirstOrThrow(),
    )
    return numInsertedOrUpdatedRows !== 0n
  }

  async replace(id: string, change: Pick<SshKeyRow, 'type' | 'fingerprint' | 'public_key' | 'rotated_at'>): Promise<boolean> {
    const { numUpdatedRows } = await this.#do((db) =>
      db
        .updateTable('ssh_keys')
        .set({ ...change })
        .where('id', '=', id)
        .executeTakeFirstOrThrow(),
    )
    return numUpdatedRows > 0n
  }

  async list(): Promise<SshKeyRow[]> {
    const rows = await this.#do((db) => db.selectFrom('ssh_keys').selectAll().orderBy('id').execute())
    return rows.map((row) => ({ ...row, type: row.type as SshKeyRow['type'] }))
  }

  async delete(id: string): Promise<boolean> {
    const { numDeletedRows } = await this.#do((db) => db.deleteFrom('ssh_keys').where('id', '=', id).executeTakeFirstOrThrow())
    return numDeletedRows > 0n
  }

  #do<Value>(work: (db: Kysely<Tables>) => Promise<Value>): Promise<Value> {
    return patiently(this.#patience, () => work(this.#db))
  }
}
