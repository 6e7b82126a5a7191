import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, test } from 'vitest'
import { functionRow, openTestStore, secretRow, tempDir, versionRow } from './store.fixture.ts'

test('a secret is found by its name, and a second one of that name is refused', async () => {
  const { secrets } = await openTestStore()
  const row = secretRow('A')
  await secrets.create(row)
  expect(await secrets.get('A')).toEqual(row)
  expect(await secrets.get('a')).toBeNull()
  await expect(secrets.create(secretRow('A', { key_id: 'other' }))).rejects.toMatchObject({ code: 'secret_exists' })
  expect(await secrets.get('A')).toEqual(row)
})

test('an update changes that secret only, and keeps when it was made', async () => {
  const { secrets } = await openTestStore()
  await secrets.create(secretRow('A'))
  await secrets.create(secretRow('B'))
  const change = { sealed: new Uint8Array([9]), key_id: 'k2', updated_at: 7 }
  expect(await secrets.update('A', change)).toBe(true)
  expect(await secrets.get('A')).toEqual({ name: 'A', created_at: 1, ...change })
  expect(await secrets.get('B')).toEqual(secretRow('B'))
  expect(await secrets.update('C', change)).toBe(false)
})

test('the list is ordered by name and leaves the values where they are', async () => {
  const { secrets } = await openTestStore()
  for (const name of ['c', 'a', 'b']) await secrets.create(secretRow(name))
  const { sealed: _, ...rest } = secretRow('a')
  const listed = await secrets.list()
  expect(listed.map((row) => row.name)).toEqual(['a', 'b', 'c'])
  expect(listed[0]).toEqual(rest)
})

test('a deleted secret is gone, and can be made again', async () => {
  const { secrets } = await openTestStore()
  await secrets.create(secretRow('A'))
  expect(await secrets.delete('A')).toBe(true)
  expect(await secrets.delete('A')).toBe(false)
  expect(await secrets.get('A')).toBeNull()
  await secrets.create(secretRow('A', { created_at: 5 }))
})

test('versions that were made before there were secrets have none', async () => {
  const dataDir = tempDir()
  const first = await openTestStore({ dataDir })
  const row = functionRow('old')
  await first.functions.create(row)
  const version = await first.functions.addVersion(versionRow(row.id))
  await first.close()
  // The database as the step before left it.
  const db = new DatabaseSync(join(dataDir, 'thaw.db'))
  db.exec(
    "DROP TABLE secrets; DELETE FROM schema_migrations WHERE number >= 2; UPDATE versions SET config = json_remove(config, '$.secrets')",
  )
  db.close()
  const second = await openTestStore({ dataDir })
  expect((await second.functions.version(version.id))?.config).toEqual(version.config)
  expect(await second.secrets.list()).toEqual([])
})
