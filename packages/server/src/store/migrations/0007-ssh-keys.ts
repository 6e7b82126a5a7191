import { sql } from 'kysely'
import type { Migration } from './migration.ts'

/** Public keys that log in to sandboxes. */
export const sshKeys: Migration = {
  number: 7,
  name: 'ssh-keys',
  async up(db) {
    await db.schema
      .createTable('ssh_keys')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('name', 'text', (column) => column.notNull())
      .addColumn('type', 'text', (column) => column.notNull())
      .addColumn('fingerprint', 'text', (column) => column.notNull())
      .addColumn('public_key', 'text', (column) => column.notNull())
      .addColumn('sandbox_id', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('rotated_at', 'bigint')
      .addColumn('expires_at', 'bigint')
      .execute()
    // A key that opens several sandboxes, one by one, is there once for each; NULLs would all count as different.
    await sql`CREATE UNIQUE INDEX ssh_keys_once ON ssh_keys (tenant, fingerprint, coalesce(sandbox_id, ''))`.execute(db)
  },
}
