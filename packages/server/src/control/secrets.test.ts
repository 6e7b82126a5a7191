import { randomBytes } from 'node:crypto'
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { LoadMessage } from '@thaw/protocol'
import { expect, test } from 'vitest'
import { openTestStore, tempDir } from '../store/sqlite/store.fixture.ts'
import { Secrets } from './secrets.ts'

const message: LoadMessage = {
  function: 'f',
  version: '1',
  contract: 'handler',
  handler: 'main.handler',
  code_dir: '/code',
  env: { PLAIN: 'p', THAW_FUNCTION_NAME: 'f' },
  timeout_ms: 1,
  memory_mib: 16,
  concurrency: 1,
}

async function opened() {
  const dataDir = tempDir()
  const { secrets: store } = await openTestStore({ dataDir })
  return { dataDir, store, secrets: await Secrets.open(store, dataDir) }
}

test('the load message of a function gets its secrets, beside its variables', async () => {
  const { secrets } = await opened()
  await secrets.create('default', 'a', 'value of a')
  await secrets.create('default', 'b', 'value of b')
  const refs = [
    { name: 'a', env: 'A' },
    { name: 'b', env: 'B' },
    { name: 'a', env: 'A2' },
  ]
  const { env } = await secrets.addTo(message, 'default', refs)
  expect(env).toEqual({ PLAIN: 'p', THAW_FUNCTION_NAME: 'f', A: 'value of a', B: 'value of b', A2: 'value of a' })
  expect(message.env).not.toHaveProperty('A')
  await secrets.set('default', 'a', 'new')
  expect((await secrets.addTo(message, 'default', refs)).env.A).toBe('new')
})

test('what does not exist is not found, when a function is deployed and when it is started', async () => {
  const { secrets } = await opened()
  await secrets.create('default', 'a', 'value')
  const refs = [
    { name: 'a', env: 'A' },
    { name: 'b', env: 'B' },
  ]
  await expect(secrets.check('default', { secrets: refs, env: {} })).rejects.toMatchObject({ code: 'secret_not_found' })
  await expect(secrets.addTo(message, 'default', refs)).rejects.toMatchObject({ code: 'secret_not_found' })
  await expect(secrets.set('default', 'b', 'value')).rejects.toMatchObject({ code: 'secret_not_found' })
  await expect(secrets.check('default', { secrets: [{ name: 'a', env: 'A' }], env: {} })).resolves.toBeUndefined()
})

test('a variable has one value only', async () => {
  const { secrets } = await opened()
  await secrets.create('default', 'a', 'value')
  const both = { secrets: [{ name: 'a', env: 'A' }], env: { A: 'plain' } }
  await expect(secrets.check('default', both)).rejects.toMatchObject({ code: 'invalid_request', message: expect.stringContaining('A') })
})

test('more than the protocol can carry fails the start with its reason', async () => {
  const { secrets } = await opened()
  await secrets.create('default', 'big', '\u0001'.repeat(65_536))
  const refs = Array.from({ length: 3 }, (_, index) => ({ name: 'big', env: `BIG${index}` }))
  await expect(secrets.addTo(message, 'default', refs.slice(0, 2))).resolves.toBeDefined()
  await expect(secrets.addTo(message, 'default', refs)).rejects.toMatchObject({
    code: 'start_failed',
    message: expect.stringContaining('1 MiB'),
  })
})

test('a server with another key, or without its key, does not start, and its own key heals it', async () => {
  const { dataDir, store, secrets } = await opened()
  await secrets.create('default', 'a', 'value')
  const path = join(dataDir, 'secrets.key')
  copyFileSync(path, join(dataDir, 'kept'))
  writeFileSync(path, randomBytes(32))
  await expect(Secrets.open(store, dataDir)).rejects.toMatchObject({ code: 'secret_unreadable', message: expect.stringContaining(path) })
  rmSync(path)
  await expect(Secrets.open(store, dataDir)).rejects.toMatchObject({ code: 'secret_unreadable', message: expect.stringContaining(path) })
  copyFileSync(join(dataDir, 'kept'), path)
  const again = await Secrets.open(store, dataDir)
  expect((await again.addTo(message, 'default', [{ name: 'a', env: 'A' }])).env.A).toBe('value')
})

test('a damaged secret fails what needs it, and is repaired by a new value', async () => {
  const { dataDir, store, secrets } = await opened()
  await secrets.create('default', 'a', 'value')
  const row = await store.get('default', 'a')
  await store.update('default', 'a', { sealed: new Uint8Array(40), key_id: row?.key_id ?? '', updated_at: 1 })
  const again = await Secrets.open(store, dataDir)
  await expect(again.addTo(message, 'default', [{ name: 'a', env: 'A' }])).rejects.toMatchObject({ code: 'secret_unreadable' })
  await again.set('default', 'a', 'repaired')
  expect((await again.addTo(message, 'default', [{ name: 'a', env: 'A' }])).env.A).toBe('repaired')
})

test('a secret opens for its own tenant only, also where its row is moved to another', async () => {
  const { dataDir, store, secrets } = await opened()
  await secrets.create('default', 'a', 'mine')
  await secrets.create('other', 'a', 'theirs')
  const refs = [{ name: 'a', env: 'A' }]
  expect((await secrets.addTo(message, 'default', refs)).env.A).toBe('mine')
  expect((await secrets.addTo(message, 'other', refs)).env.A).toBe('theirs')
  await expect(secrets.addTo(message, 'third', refs)).rejects.toMatchObject({ code: 'secret_not_found' })
  const mine = await store.get('default', 'a')
  if (mine === null) throw new Error('not there')
  await store.update('other', 'a', { sealed: mine.sealed, key_id: mine.key_id, updated_at: 1 })
  await expect((await Secrets.open(store, dataDir)).addTo(message, 'other', refs)).rejects.toMatchObject({ code: 'secret_unreadable' })
})
