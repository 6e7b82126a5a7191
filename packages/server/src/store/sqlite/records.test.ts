import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { newId } from '@thaw/protocol'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { Store } from '../store.ts'
import { functionRow, invocationRow, LogSpy, logRow, openTestStore, tempDir } from './store.fixture.ts'

/** The same rows buffered, half written, and written: what is read must not differ. */
const stages: [string, (store: Store) => Promise<void>][] = [
  ['buffered', async () => {}],
  ['written', (store) => store.records.flush()],
]

describe.each(stages)('records that are %s', (_, settle) => {
  test('an invocation comes back as it was put in', async () => {
    const store = await openTestStore()
    const row = invocationRow({ error: { code: 'function_failed', message: 'no', details: { stack: 'at' } }, logs_truncated: true })
    store.records.invocation(row)
    await settle(store)
    expect(await store.records.getInvocation(row.id)).toEqual(row)
    expect(await store.records.getInvocation('inv-none')).toBeNull()
  })

  test('the same id again replaces, in lists too', async () => {
    const store = await openTestStore()
    const row = invocationRow({ status: 'running' })
    store.records.invocation(row)
    await settle(store)
    store.records.invocation({ ...row, status: 'failed' })
    expect(await store.records.getInvocation(row.id)).toMatchObject({ status: 'failed' })
    expect(await store.records.listInvocations({ tenant: 'default', status: 'running', limit: 10 })).toEqual([])
    expect(await store.records.listInvocations({ tenant: 'default', status: 'failed', limit: 10 })).toHaveLength(1)
    await settle(store)
    expect(await store.records.listInvocations({ tenant: 'default', limit: 10 })).toHaveLength(1)
  })

  test('pages of invocations are newest first and complete, whatever part of them is still buffered', async () => {
    const store = await openTestStore()
    const ids = Array.from({ length: 30 }, (_, index) => newId('inv', 1000 + index))
    for (const [index, id] of ids.entries()) {
      store.records.invocation(invocationRow({ id, function: index % 3 === 0 ? 'other' : 'hello' }))
      if (index === 15) await settle(store)
    }
    const seen: string[] = []
    for (let before: string | undefined; ; before = seen.at(-1)) {
      const page = await store.records.listInvocations({ tenant: 'default', function: 'hello', before, limit: 7 })
      seen.push(...page.map((row) => row.id))
      if (page.length < 7) break
    }
    expect(seen).toEqual(ids.filter((_, index) => index % 3 !== 0).reverse())
  })

  test('logs are the newest, oldest first, by function and by invocation', async () => {
    const store = await openTestStore()
    for (let index = 0; index < 10; index++) {
      store.records.log(
        logRow(`line ${index}`, { invocation_id: index % 2 === 0 ? 'inv-even' : null, function: index < 8 ? 'hello' : 'other' }),
      )
      if (index === 5) await settle(store)
    }
    const messages = async (filter: Parameters<Store['records']['logs']>[0]) =>
      (await store.records.logs(filter)).map((row) => row.message.slice(5)).join('')
    expect(await messages({ limit: 100 })).toBe('0123456789')
    expect(await messages({ function: 'hello', limit: 3 })).toBe('567')
    expect(await messages({ invocation_id: 'inv-even', limit: 4 })).toBe('2468')
    expect(await messages({ function: 'other', invocation_id: 'inv-even', limit: 4 })).toBe('8')
  })

  test('a tenant sees its own records only', async () => {
    const store = await openTestStore()
    store.records.invocation(invocationRow())
    const other = invocationRow({ tenant: 'other' })
    store.records.invocation(other)
    store.records.log(logRow('mine'))
    store.records.log(logRow('theirs', { tenant: 'other' }))
    await settle(store)
    expect(await store.records.listInvocations({ tenant: 'other', limit: 10 })).toEqual([other])
    expect(await store.records.listInvocations({ tenant: 'other', function: 'hello', limit: 10 })).toEqual([other])
    expect((await store.records.logs({ tenant: 'other', function: 'hello', limit: 10 })).map((row) => row.message)).toEqual(['theirs'])
    await store.records.deleteOfFunction('default', 'hello')
    expect(await store.records.listInvocations({ tenant: 'default', limit: 10 })).toEqual([])
    expect(await store.records.getInvocation(other.id)).toEqual(other)
  })

  test('records of a deleted function go with it', async () => {
    const store = await openTestStore()
    const row = invocationRow()
    store.records.invocation(row)
    store.records.log(logRow('x'))
    await settle(store)
    await store.records.deleteOfFunction('default', 'hello')
    await store.records.flush()
    expect(await store.records.getInvocation(row.id)).toBeNull()
    expect(await store.records.logs({ limit: 10 })).toEqual([])
  })
})

test('records are written within 100 ms by themselves', async () => {
  const dataDir = tempDir()
  const store = await openTestStore({ dataDir })
  store.records.log(logRow('x'))
  const reader = new DatabaseSync(join(dataDir, 'thaw.db'), { readOnly: true })
  onTestFinished(() => reader.close())
  await vi.waitFor(() => expect(reader.prepare('SELECT count(*) AS n FROM logs').get()).toEqual({ n: 1 }), { timeout: 1000, interval: 5 })
})

test('a record that the database refuses is dropped, and those written with it are kept once', async () => {
  const log = new LogSpy()
  const store = await openTestStore({ log })
  const refused = { message: {} as string }
  const messages = Array.from({ length: 20 }, (_, index) => `line ${index}`)
  for (const [index, message] of messages.entries()) {
    store.records.log(logRow(message))
    if (index === 3 || index === 19) store.records.log({ ...logRow(''), ...refused })
  }
  await store.records.flush()
  expect((await store.records.logs({ limit: 100 })).map((row) => row.message)).toEqual(messages)
  expect(log.warnings).toHaveLength(2)
})

test('hostile text is carried as it is', async () => {
  const store = await openTestStore()
  const message = "'; DROP TABLE logs; -- \u001b[31m \u2028 \ud83d\ude00 \u0000 after NUL"
  store.records.log(logRow(message))
  await store.records.flush()
  expect((await store.records.logs({ limit: 1 }))[0]?.message).toBe(message)
})

test('pruning removes what is older and what belongs to no function, and says how many', async () => {
  const store = await openTestStore()
  await store.functions.create(functionRow('hello'))
  for (let index = 0; index < 1200; index++) {
    store.records.invocation(invocationRow({ id: newId('inv', index), created_at: index < 1100 ? 1 : 100 }))
    store.records.log(logRow('x', { time: index < 1100 ? 1 : 100 }))
  }
  store.records.invocation(invocationRow({ tenant: 'other' }))
  store.records.log(logRow('x', { function: 'gone too' }))
  await store.records.flush()
  expect(await store.records.prune({ invocations: 50, logs: 50 })).toBe(2202)
  expect(await store.records.listInvocations({ tenant: 'default', limit: 1000 })).toHaveLength(100)
  expect(await store.records.logs({ limit: 1000 })).toHaveLength(100)
})

test.each([
  ['many small ones', 20_000, 200],
  ['a few large ones', 450, 130_000],
])('writing gives the event loop back in between: %s', async (_, count, size) => {
  const store = await openTestStore()
  for (let index = 0; index < count; index++) store.records.log(logRow('x'.repeat(size)))
  let turns = 0
  const watch = setInterval(() => turns++, 0)
  onTestFinished(() => clearInterval(watch))
  await store.records.flush()
  // Not how long each turn took, which depends on the machine: in one go there would be one turn.
  expect(turns).toBeGreaterThan(5)
})

describe('while the database takes no writes', () => {
  test('records stay in memory, can be read, and are written as soon as it does again', async () => {
    const dataDir = tempDir()
    const log = new LogSpy()
    const store = await openTestStore({ dataDir, log, busyMs: 50 })
    const other = new DatabaseSync(join(dataDir, 'thaw.db'))
    onTestFinished(() => other.close())
    other.exec('BEGIN IMMEDIATE')
    const row = invocationRow()
    store.records.invocation(row)
    await vi.waitFor(() => expect(log.warnings).toMatchObject([{ fields: { code: 'database_unavailable' } }]))
    expect(await store.records.getInvocation(row.id)).toEqual(row)
    await expect(store.records.flush()).rejects.toMatchObject({ code: 'database_unavailable' })
    await expect(store.functions.create(functionRow('hello'))).rejects.toMatchObject({ code: 'database_unavailable' })
    other.exec('ROLLBACK')
    await vi.waitFor(() => expect(other.prepare('SELECT count(*) AS n FROM invocations').get()).toEqual({ n: 1 }), { timeout: 5000 })
    await store.functions.create(functionRow('hello'))
  })

  test('a lock that is given back in time is not noticed', async () => {
    const dataDir = tempDir()
    const store = await openTestStore({ dataDir })
    const other = new DatabaseSync(join(dataDir, 'thaw.db'))
    onTestFinished(() => other.close())
    other.exec('BEGIN IMMEDIATE')
    const created = store.functions.create(functionRow('hello'))
    setTimeout(() => other.exec('ROLLBACK'), 100)
    await created
  })

  test('the buffer is bounded: the oldest are dropped, logs first, counted and warned of', async () => {
    const dataDir = tempDir()
    const log = new LogSpy()
    let dropped = 0
    const options = { buffer: { rows: 100, bytes: 1e6 }, onRecordsDropped: (rows: number) => (dropped += rows) }
    const store = await openTestStore({ dataDir, log, busyMs: 50, ...options })
    const other = new DatabaseSync(join(dataDir, 'thaw.db'))
    onTestFinished(() => other.close())
    other.exec('BEGIN IMMEDIATE')
    const first = invocationRow()
    store.records.invocation(first)
    for (let index = 0; index < 1000; index++) store.records.log(logRow(`line ${index}`))
    const kept = await store.records.logs({ limit: 1000 })
    expect(kept.length).toBeLessThanOrEqual(99)
    expect(kept.at(-1)?.message).toBe('line 999')
    expect(kept.length + dropped).toBe(1000)
    expect(await store.records.getInvocation(first.id)).toEqual(first)
    for (let index = 0; index < 10; index++) store.records.log(logRow('x'.repeat(400_000)))
    expect((await store.records.logs({ limit: 1000 })).length).toBeLessThanOrEqual(3)
    expect(log.warnings.filter((warning) => warning.message.includes('dropped'))).toHaveLength(1)
    other.exec('ROLLBACK')
  })
})
