import type { Migration } from './migration.ts'

/** Kept results of commands. */
export const results: Migration = {
  number: 6,
  name: 'results',
  async up(db) {
    await db.schema
      .createTable('results')
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('key', 'text', (column) => column.notNull())
      .addColumn('result', 'text', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('expires_at', 'bigint', (column) => column.notNull())
      .addPrimaryKeyConstraint('results_key', ['tenant', 'key'])
      .execute()
    await db.schema.createIndex('results_expires').on('results').column('expires_at').execute()
  },
}
