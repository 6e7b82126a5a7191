import { sql } from 'kysely'
import type { Migration } from './migration.ts'

export const sandboxes: Migration = {
  number: 4,
  name: 'sandboxes',
  async up(db) {
    await db.schema
      .createTable('sandboxes')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('name', 'text')
      .addColumn('state', 'text', (column) => column.notNull())
      .addColumn('driver', 'text', (column) => column.notNull())
      .addColumn('image_digest', 'text')
      .addColumn('spec', 'text', (column) => column.notNull())
      .addColumn('boot_method', 'text')
      .addColumn('access_token', 'text', (column) => column.notNull())
      .addColumn('parent_id', 'text')
      .addColumn('snapshot_id', 'text')
      .addColumn('hibernation_id', 'text')
      .addColumn('error', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('started_at', 'bigint')
      .addColumn('ends_at', 'bigint')
      .addColumn('ended_at', 'bigint')
      .addColumn('used_at', 'bigint', (column) => column.notNull())
      .execute()
    // One that has ended gives its name free.
    await sql`create unique index sandboxes_name on sandboxes (tenant, name) where name is not null and ended_at is null`.execute(db)
    await db.schema.createIndex('sandboxes_tenant').on('sandboxes').columns(['tenant', 'id']).execute()
    await db.schema.createIndex('sandboxes_ended').on('sandboxes').column('ended_at').execute()
    await db.schema
      .createTable('snapshots')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('purpose', 'text', (column) => column.notNull())
      .addColumn('kind', 'text', (column) => column.notNull())
      .addColumn('state', 'text', (column) => column.notNull())
      .addColumn('name', 'text')
      .addColumn('sandbox_id', 'text')
      .addColumn('version_id', 'text')
      .addColumn('driver', 'text', (column) => column.notNull())
      .addColumn('image_digest', 'text', (column) => column.notNull())
      .addColumn('spec', 'text', (column) => column.notNull())
      .addColumn('fingerprint', 'text', (column) => column.notNull())
      .addColumn('driver_state', 'text', (column) => column.notNull())
      .addColumn('manifest_digest', 'text')
      .addColumn('size_bytes', 'bigint', (column) => column.notNull())
      .addColumn('frozen_ms', 'real')
      .addColumn('success_count', 'integer', (column) => column.notNull())
      .addColumn('failure_count', 'integer', (column) => column.notNull())
      .addColumn('failures_in_row', 'integer', (column) => column.notNull())
      .addColumn('error', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('last_used_at', 'bigint')
      .addColumn('archived_at', 'bigint')
      .execute()
    await db.schema.createIndex('snapshots_tenant').on('snapshots').columns(['tenant', 'id']).execute()
    await db.schema.createIndex('snapshots_version').on('snapshots').column('version_id').execute()
  },
}
