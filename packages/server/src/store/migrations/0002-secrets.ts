import { sql } from 'kysely'
import type { Migration } from './migration.ts'

export const secrets: Migration = {
  number: 2,
  name: 'secrets',
  async up(db) {
    await db.schema
      .createTable('secrets')
      .addColumn('name', 'text', (column) => column.primaryKey())
      .addColumn('sealed', 'blob', (column) => column.notNull())
      .addColumn('key_id', 'text', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('updated_at', 'bigint', (column) => column.notNull())
      .execute()
    // Configurations are complete: those of versions that came before say now that they have none.
    await sql`update versions set config = json_set(config, '$.secrets', json('[]')) where json_type(config, '$.secrets') is null`.execute(
      db,
    )
  },
}
