import { ThawError } from '@thaw/protocol'
import type { Kysely } from 'kysely'
import type { Tables } from '../sqlite/tables.ts'
import type { Migration } from './migration.ts'

/**
 * Brings the database to the newest form, one transaction a step, so that a crash leaves it between two steps and the
 * next start goes on. Refuses a database that a newer thaw has changed: this one would misread it. Returns the names
 * of the steps taken. (Kysely's own Migrator runs SQLite steps outside of any transaction.)
 */
export async function migrate(db: Kysely<Tables>, migrations: readonly Migration[], now: number): Promise<string[]> {
  await db.schema
    .createTable('schema_migrations')
    .ifNotExists()
    .addColumn('number', 'integer', (column) => column.primaryKey())
    .addColumn('name', 'text', (column) => column.notNull())
    .addColumn('applied_at', 'bigint', (column) => column.notNull())
    .execute()
  const newest = migrations.length
  const { applied } = await db
    .selectFrom('schema_migrations')
    .select((table) => table.fn.coalesce(table.fn.max('number'), table.lit(0)).as('applied'))
    .executeTakeFirstOrThrow()
  if (applied > newest) {
    throw new ThawError('database_unavailable', `The database has form ${applied}; this version of thaw knows forms up to ${newest}.`, {
      fix: 'Run the newer version of thaw that wrote it, or restore a backup from before that version.',
    })
  }
  const taken: string[] = []
  for (const { number, name, up } of migrations.slice(applied)) {
    await db.transaction().execute(async (transaction) => {
      // Steps are typed without tables: those types describe the newest form only.
      await up(transaction as unknown as Kysely<unknown>)
      await transaction.insertInto('schema_migrations').values({ number, name, applied_at: now }).execute()
    })
    taken.push(name)
  }
  return taken
}
