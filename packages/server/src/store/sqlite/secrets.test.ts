import { expect, test } from 'vitest'
import { openTestStore, secretRow } from './store.fixture.ts'

test('a secret is found by its name, and a second one of that name is refused', async () => {
  const { secrets } = await openTestStore()
  const row = secretRow('A')
  await secrets.create(row)
  expect(await secrets.get('default', 'A')).toEqual(row)
  expect(await secrets.get('default', 'a')).toBeNull()
  await expect(secrets.create(secretRow('A', { key_id: 'other' }))).rejects.toMatchObject({ code: 'secret_exists' })
  expect(await secrets.get('default', 'A')).toEqual(row)
})

test('an update changes that secret only, and keeps when it was made', async () => {
  const { secrets } = await openTestStore()
  await secrets.create(secretRow('A'))
  await secrets.create(secretRow('B'))
  const change = { sealed: new Uint8Array([9]), key_id: 'k2', updated_at: 7 }
  expect(await secrets.update('default', 'A', change)).toBe(true)
  expect(await secrets.get('default', 'A')).toEqual({ tenant: 'default', name: 'A', created_at: 1, ...change })
  expect(await secrets.get('default', 'B')).toEqual(secretRow('B'))
  expect(await secrets.update('default', 'C', change)).toBe(false)
})

test('the list is ordered by name and leaves the values where they are', async () => {
  const { secrets } = await openTestStore()
  for (const name of ['c', 'a', 'b']) await secrets.create(secretRow(name))
  const { sealed: _, ...rest } = secretRow('a')
  const listed = await secrets.list('default')
  expect(listed.map((row) => row.name)).toEqual(['a', 'b', 'c'])
  expect(listed[0]).toEqual(rest)
})

test('a deleted secret is gone, and can be made again', async () => {
  const { secrets } = await openTestStore()
  await secrets.create(secretRow('A'))
  expect(await secrets.delete('default', 'A')).toBe(true)
  expect(await secrets.delete('default', 'A')).toBe(false)
  expect(await secrets.get('default', 'A')).toBeNull()
  await secrets.create(secretRow('A', { created_at: 5 }))
})

test('the same name may be used by every tenant, and each has its own', async () => {
  const { secrets } = await openTestStore()
  await secrets.create(secretRow('A'))
  await secrets.create(secretRow('A', { tenant: 'other', key_id: 'k2' }))
  expect(await secrets.delete('default', 'A')).toBe(true)
  expect(await secrets.get('default', 'A')).toBeNull()
  expect(await secrets.list('other')).toMatchObject([{ name: 'A' }])
  expect(await secrets.keyIds()).toEqual([{ key_id: 'k2', count: 1 }])
})
