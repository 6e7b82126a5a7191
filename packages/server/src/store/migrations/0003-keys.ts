import { sql } from 'kysely'
import type { Migration } from './migration.ts'

/** API keys, tenants (what was there before belongs to `default`), and answers kept by Idempotency-Key. */
export const keys: Migration = {
  number: 3,
  name: 'keys',
  async up(db) {
    await db.schema
      .createTable('api_keys')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('hash', 'text', (column) => column.notNull().unique())
      .addColumn('name', 'text', (column) => column.notNull())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('role', 'text', (column) => column.notNull())
      .addColumn('hint', 'text', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('expires_at', 'bigint')
      .addColumn('revoked_at', 'bigint')
      .execute()
    await db.schema
      .createTable('idempotency')
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('key', 'text', (column) => column.notNull())
      .addColumn('fingerprint', 'text', (column) => column.notNull())
      .addColumn('status', 'integer', (column) => column.notNull())
      .addColumn('headers', 'text', (column) => column.notNull())
      .addColumn('body', 'blob')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addPrimaryKeyConstraint('idempotency_key', ['tenant', 'key'])
      .execute()
    await db.schema.createIndex('idempotency_created').on('idempotency').column('created_at').execute()

    // A unique constraint can only be changed by making the table anew. The versions refer to it, so they are made anew too.
    await db.schema
      .createTable('functions_new')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('name', 'text', (column) => column.notNull())
      .addColumn('active_version_id', 'text')
      .addColumn('next_version', 'integer', (column) => column.notNull())
      .addColumn('creation_token', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('updated_at', 'bigint', (column) => column.notNull())
      .addUniqueConstraint('functions_name', ['tenant', 'name'])
      .execute()
    await db.schema
      .createTable('versions_new')
      .addColumn('id', 'text', (column) => column.primaryKey())
      .addColumn('function_id', 'text', (column) => column.notNull().references('functions_new.id').onDelete('cascade'))
      .addColumn('version', 'integer', (column) => column.notNull())
      .addColumn('state', 'text', (column) => column.notNull())
      .addColumn('error', 'text')
      .addColumn('config', 'text', (column) => column.notNull())
      .addColumn('code_digest', 'text')
      .addColumn('image_digest', 'text')
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addUniqueConstraint('versions_number', ['function_id', 'version'])
      .execute()
    await sql`insert into functions_new (id, tenant, name, active_version_id, next_version, created_at, updated_at)
      select id, 'default', name, active_version_id, next_version, created_at, updated_at from functions`.execute(db)
    await sql`insert into versions_new (id, function_id, version, state, error, config, code_digest, image_digest, created_at)
      select id, function_id, version, state, error, config, code_digest, image_digest, created_at from versions`.execute(db)
    await db.schema.dropTable('versions').execute()
    await db.schema.dropTable('functions').execute()
    await db.schema.alterTable('functions_new').renameTo('functions').execute()
    await db.schema.alterTable('versions_new').renameTo('versions').execute()
    await db.schema.createIndex('versions_state').on('versions').column('state').execute()

    await db.schema
      .createTable('secrets_new')
      .addColumn('tenant', 'text', (column) => column.notNull())
      .addColumn('name', 'text', (column) => column.notNull())
      .addColumn('sealed', 'blob', (column) => column.notNull())
      .addColumn('key_id', 'text', (column) => column.notNull())
      .addColumn('created_at', 'bigint', (column) => column.notNull())
      .addColumn('updated_at', 'bigint', (column) => column.notNull())
      .addPrimaryKeyConstraint('secrets_name', ['tenant', 'name'])
      .execute()
    await sql`insert into secrets_new (tenant, name, sealed, key_id, created_at, updated_at)
      select 'default', name, sealed, key_id, created_at, updated_at from secrets`.execute(db)
    await db.schema.dropTable('secrets').execute()
    await db.schema.alterTable('secrets_new').renameTo('secrets').execute()

    // As many indexes as before: every one costs each record. The one on created_at goes, since ids sort by time.
    for (const index of ['invocations_function', 'invocations_status', 'invocations_created', 'logs_function'])
      await db.schema.dropIndex(index).execute()
    for (const table of ['invocations', 'logs']) {
      await db.schema
        .alterTable(table)
        .addColumn('tenant', 'text', (column) => column.notNull().defaultTo('default'))
        .execute()
    }
    await db.schema.createIndex('invocations_tenant').on('invocations').columns(['tenant', 'id']).execute()
    await db.schema.createIndex('invocations_function').on('invocations').columns(['tenant', 'function', 'id']).execute()
    await db.schema.createIndex('invocations_status').on('invocations').columns(['tenant', 'status', 'id']).execute()
    await db.schema.createIndex('logs_function').on('logs').columns(['tenant', 'function']).execute()
  },
}
