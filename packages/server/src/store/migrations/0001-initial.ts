import type { Migration } from './migration.ts'

export const initial: Migration = {
  number: 1,
  name: 'initial',
  async up(db) {
    await db.schema
      .createTable('functions')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('name', 'text', (column) => column.notNull().unique())
      .addColumn('active_version_id', 'text')
      .addColumn('next_version', 'integer', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('updated_at', 'bigint', (column) => column.notNull())
      .execute()
    await db.schema
      .createTable('versions')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('function_id', 'text', (column) => column.notNull().references('functions.id').onDelete('cascade'))
      .addColumn('version', 'integer', (column) => column.notNull())
      .addColumn('state', 'text', (column) => column.notNull())
      .addColumn('error', 'text')
      .addColumn('config', 'text', (column) => column.notNull())
      .addColumn('code_digest', 'text')
      .addColumn('image_digest', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addUniqueConstraint('versions_number', ['function_id', 'version'])
      .execute()
    await db.schema.createIndex('versions_state').on('versions').column('state').execute()
    // Records name their function and do not refer to it: they are written behind the traffic, when it may be gone.
    await db.schema
      .createTable('invocations')
      .addColumn('id', 'text', (column) => column.primaryKey())
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
      .execute()
    await db.schema.createIndex('invocations_function').on('invocations').columns(['function', 'id']).execute()
    await db.schema.createIndex('invocations_status').on('invocations').columns(['status', 'id']).execute()
    await db.schema.createIndex('invocations_created').on('invocations').column('created_at').execute()

    // Both indexes end in seq by themselves: it is the key of the row. None is on time: pruning walks along seq.
    await db.schema
      .createTable('logs')
      .addColumn('seq', 'integer', (column) => column.primaryKey().autoIncrement())
      .addColumn('function', 'text', (column) => column.notNull())
      .addColumn('version', 'integer', (column) => column.notNull())
      .addColumn('invocation_id', 'text')
      .addColumn('sandbox_id', 'text')
      .addColumn('source', 'text', (column) => column.notNull())
      .addColumn('message', 'text', (column) => column.notNull())
      .addColumn('time', 'bigint', (column) => column.notNull())
      .execute()
    await db.schema.createIndex('logs_function').on('logs').column('function').execute()
    await db.schema.createIndex('logs_invocation').on('logs').column('invocation_id').where('invocation_id', 'is not', null).execute()
  },
}
