import { sql } from 'kysely'
import type { Migration } from './migration.ts'

/**
 * Invocations in the order of their ids, without a row number: one tree less for each record. Nearly all of them have
 * succeeded, so only the others are found by their status; those that did are found on the way through all of them.
 */
export const records: Migration = {
  number: 5,
  name: 'records',
  async up(db) {
    const columns =
      'id, tenant, function, version, status, attempt, "trigger", boot_method, sandbox_id, result, error, request_bytes, result_bytes, timing, logs_truncated, created_at, started_at, ended_at'
    await db.schema
      .createTable('invocations_new')
      .addColumn('id', 'text', (column) => column.primaryKey().notNull())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('function', 'text', (column) => column.notNull())
      .addColumn('version', 'integer', (column) => column.notNull())
      .addColumn('status', 'text', (column) => column.notNull())
      .addColumn('attempt', 'integer', (column) => column.notNull())
      .addColumn('trigger', 'text', (column) => column.notNull())
      .addColumn('boot_method', 'text')
      .addColumn('sandbox_id', 'text')
      .addColumn('result', 'text')
      .addColumn('error', 'text')
      .addColumn('request_bytes', 'bigint', (column) => column.notNull())
      .addColumn('result_bytes', 'bigint', (column) => column.notNull())
      .addColumn('timing', 'text')
      .addColumn('logs_truncated', 'integer', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('started_at', 'bigint')
      .addColumn('ended_at', 'bigint')
      .modifyEnd(sql`without rowid`)
      .execute()
    await sql`insert into invocations_new (${sql.raw(columns)}) select ${sql.raw(columns)} from invocations`.execute(db)
    await db.schema.dropTable('invocations').execute()
    await db.schema.alterTable('invocations_new').renameTo('invocations').execute()
    await db.schema.createIndex('invocations_tenant').on('invocations').columns(['tenant', 'id']).execute()
    await db.schema.createIndex('invocations_function').on('invocations').columns(['tenant', 'function', 'id']).execute()
    await sql`create index invocations_status on invocations (tenant, status, id) where status <> 'succeeded'`.execute(db)
  },
}
