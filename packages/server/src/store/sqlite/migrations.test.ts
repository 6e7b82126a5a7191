import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, test } from 'vitest'
import { migrations } from '../migrations/index.ts'
import { migrate } from '../migrations/migrate.ts'
import { openConnection, openQueries } from './connection.ts'
import { functionRow, invocationRow, logRow, openTestStore, secretRow, tempDir, versionRow } from './store.fixture.ts'

/** A database in the form that the first `steps` steps left. */
async function databaseOf(steps: number): Promise<{ dataDir: string; db: DatabaseSync }> {
  const dataDir = tempDir()
  const path = join(dataDir, 'thaw.db')
  const queries = openQueries(openConnection(path, 'FULL'))
  await migrate(queries, migrations.slice(0, steps), 1)
  await queries.destroy()
  return { dataDir, db: new DatabaseSync(path) }
}

function insert(db: DatabaseSync, table: string, row: object, leftOut: string[] = []): void {
  const entries = Object.entries(row).filter(([name]) => !leftOut.includes(name))
  const values = entries.map(([, value]) =>
    value instanceof Uint8Array || value === null
      ? value
      : typeof value === 'object'
        ? JSON.stringify(value)
        : typeof value === 'boolean'
          ? +value
          : value,
  )
  db.prepare(`INSERT INTO ${table} (${entries.map(([name]) => `"${name}"`)}) VALUES (${entries.map(() => '?')})`).run(...values)
}

test('versions that were made before there were secrets have none', async () => {
  const { dataDir, db } = await databaseOf(1)
  const { tenant: _, creation_token: __, ...row } = functionRow('old')
  const version = { ...versionRow(row.id), version: 1 }
  const { secrets: ___, ...config } = version.config
  insert(db, 'functions', row)
  insert(db, 'versions', { ...version, config })
  db.close()
  const store = await openTestStore({ dataDir })
  expect(await store.functions.version(version.id)).toEqual(version)
  expect(await store.secrets.list('default')).toEqual([])
})

test('what was there before there were tenants belongs to the first one, whole', async () => {
  const { dataDir, db } = await databaseOf(2)
  const row = { ...functionRow('old'), next_version: 2 }
  const version = { ...versionRow(row.id), version: 1 }
  const record = invocationRow({ function: 'old' })
  const log = logRow('line', { function: 'old' })
  insert(db, 'functions', row, ['tenant', 'creation_token'])
  insert(db, 'versions', version)
  insert(db, 'secrets', secretRow('A'), ['tenant'])
  insert(db, 'invocations', record, ['tenant'])
  insert(db, 'logs', log, ['tenant'])
  db.close()
  const store = await openTestStore({ dataDir })
  expect(await store.functions.get('default', 'old')).toEqual(row)
  expect(await store.functions.version(version.id)).toEqual(version)
  expect(await store.secrets.get('default', 'A')).toEqual(secretRow('A'))
  expect(await store.records.listInvocations({ tenant: 'default', function: 'old', limit: 10 })).toEqual([record])
  expect(await store.records.logs({ tenant: 'default', function: 'old', limit: 10 })).toEqual([log])
  expect((await store.functions.addVersion(versionRow(row.id))).version).toBe(2)
  // The versions refer to the functions as they are now.
  expect(await store.functions.delete(row.id)).toBe(true)
  expect(await store.functions.version(version.id)).toBeNull()
})
