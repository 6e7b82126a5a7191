import { setImmediate } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { Pool, type Poolable, type PoolKey } from './pool.ts'

const key: PoolKey = { driver: 'oci', imageDigest: 'sha256:0', imageRef: 'python', folder: 'python', network: 'none', tmp_mib: 64 }

/** A pool of sandboxes that take until `finish` is called to end. */
function slowlyEnding() {
  let finish = () => {}
  const ended = new Promise<void>((resolve) => {
    finish = resolve
  })
  let lose = () => {}
  const start = async (): Promise<Poolable> => ({
    id: 'sbx-1',
    lost: new Promise((resolve) => {
      lose = () => resolve(undefined)
    }),
    destroy: () => ended,
  })
  const pool = new Pool(key, { start, reserve: () => true, release: () => {}, filled: () => {} })
  return { pool, finish, lose: () => lose() }
}

const isSettled = async (promise: Promise<unknown>) => {
  let settled = false
  void promise.then(() => {
    settled = true
  })
  await setImmediate()
  return settled
}

test('who empties a pool waits also for what another caller is ending', async () => {
  const { pool, finish } = slowlyEnding()
  await pool.resize(1)
  await setImmediate()
  expect(pool.ready).toBe(1)
  const first = pool.resize(0)
  const second = pool.resize(0)
  expect(await isSettled(second)).toBe(false)
  finish()
  await Promise.all([first, second])
})

test('who empties a pool waits for what was lost and is being removed', async () => {
  const { pool, finish, lose } = slowlyEnding()
  await pool.resize(1)
  await setImmediate()
  lose()
  await setImmediate()
  const emptied = pool.resize(0)
  expect(await isSettled(emptied)).toBe(false)
  finish()
  await emptied
})
