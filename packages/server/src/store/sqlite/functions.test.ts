import { describe, expect, test } from 'vitest'
import { functionRow, openTestStore, tempDir, versionRow } from './store.fixture.ts'

describe('functions', () => {
  test('a function is found by its name, and a second one of that name is refused', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    expect(await functions.get('default', 'hello')).toEqual(row)
    expect(await functions.get('default', 'Hello')).toBeNull()
    await expect(functions.create(functionRow('hello'))).rejects.toMatchObject({ code: 'function_exists' })
  })

  test('the same name may be used by every tenant, and each finds its own', async () => {
    const { functions } = await openTestStore()
    const [one, other] = [functionRow('hello'), functionRow('hello', 'other')]
    await functions.create(one)
    await functions.create(other)
    expect(await functions.get('default', 'hello')).toEqual(one)
    expect(await functions.get('other', 'hello')).toEqual(other)
    expect(await functions.get('third', 'hello')).toBeNull()
  })

  test('pages follow the id', async () => {
    const { functions } = await openTestStore()
    const rows = ['c', 'a', 'b'].map((name) => functionRow(name)).sort((a, b) => (a.id < b.id ? -1 : 1))
    for (const row of rows) await functions.create(row)
    expect(await functions.list({ limit: 2 })).toEqual(rows.slice(0, 2))
    expect(await functions.list({ limit: 2, after: rows[1]?.id })).toEqual(rows.slice(2))
  })

  test('deleting a function deletes its versions', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    const version = await functions.addVersion(versionRow(row.id, { code_digest: 'sha256:a' }))
    expect(await functions.delete(row.id)).toBe(true)
    expect(await functions.delete(row.id)).toBe(false)
    expect(await functions.version(version.id)).toBeNull()
    expect(await functions.codeDigests()).toEqual([])
  })
})

describe('versions', () => {
  test('numbers are never used twice, also when many are added at the same time or deleted', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    const added = await Promise.all(Array.from({ length: 20 }, () => functions.addVersion(versionRow(row.id))))
    expect(added.map((version) => version.version).sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, index) => index + 1))
    for (const version of added) await functions.deleteVersion(version.id)
    expect((await functions.addVersion(versionRow(row.id))).version).toBe(21)
  })

  test('a version comes back as it was put in', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    const error = { code: 'build_failed' as const, message: 'no', details: { log: 'x' } }
    const version = await functions.addVersion(versionRow(row.id, { error, code_digest: 'sha256:a' }))
    expect(await functions.version(version.id)).toEqual(version)
    expect(await functions.versionByNumber(row.id, 1)).toEqual(version)
    expect(await functions.versionByNumber(row.id, 2)).toBeNull()
  })

  test('a version of no function is refused and takes no number', async () => {
    const { functions } = await openTestStore()
    await expect(functions.addVersion(versionRow('fn-none'))).rejects.toMatchObject({ code: 'function_not_found' })
  })

  test('activating marks ready, clears the error and moves the function', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    const first = await functions.addVersion(versionRow(row.id))
    await functions.updateVersion(first.id, { state: 'failed', error: { code: 'build_failed', message: 'no' } })
    expect(await functions.versionsInState('failed')).toHaveLength(1)
    await functions.activate(row.id, first.id, 99)
    expect(await functions.version(first.id)).toMatchObject({ state: 'ready', error: null })
    expect(await functions.get('default', 'hello')).toMatchObject({ active_version_id: first.id, updated_at: 99, next_version: 2 })
    await expect(functions.activate('fn-other', first.id, 99)).rejects.toMatchObject({ code: 'version_not_found' })
  })

  test('versions are listed newest first, and deleting the active one leaves none active', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    const first = await functions.addVersion(versionRow(row.id))
    await functions.addVersion(versionRow(row.id))
    await functions.activate(row.id, first.id, 5)
    expect((await functions.versions(row.id)).map((version) => version.version)).toEqual([2, 1])
    await functions.deleteVersion(first.id)
    expect(await functions.get('default', 'hello')).toMatchObject({ active_version_id: null })
  })

  test('digests of code name each once', async () => {
    const { functions } = await openTestStore()
    const row = functionRow('hello')
    await functions.create(row)
    for (const digest of ['sha256:a', 'sha256:a', 'sha256:b', null]) {
      await functions.addVersion(versionRow(row.id, { code_digest: digest, image_digest: digest }))
    }
    expect((await functions.codeDigests()).sort()).toEqual(['sha256:a', 'sha256:b'])
  })
})

test('what was written is there after closing and opening again', async () => {
  const dataDir = tempDir()
  const before = await openTestStore({ dataDir })
  await before.functions.create(functionRow('hello'))
  await before.close()
  const after = await openTestStore({ dataDir })
  expect(await after.functions.get('default', 'hello')).not.toBeNull()
})
