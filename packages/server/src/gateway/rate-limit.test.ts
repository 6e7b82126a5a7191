import { expect, test } from 'vitest'
import { addressOf, RateLimit } from './rate-limit.ts'

test('a bucket holds the burst, and refills by the second; each has its own', () => {
  const limit = new RateLimit({ requestsPerSecond: 10, requestBurst: 3 })
  const taken = (who: string, now: number) => limit.take(who, true, now) === null
  expect([taken('a', 0), taken('a', 0), taken('a', 0), taken('a', 0)]).toEqual([true, true, true, false])
  expect(taken('b', 0)).toBe(true)
  expect([taken('a', 99), taken('a', 100), taken('a', 100)]).toEqual([false, true, false])
  // However long the pause, there is one burst.
  expect([1, 2, 3, 4].map(() => taken('a', 1e9))).toEqual([true, true, true, false])
})

test('who is refused hears when to come again', () => {
  const limit = new RateLimit({ requestsPerSecond: 1, requestBurst: 1 })
  expect(limit.take('a', true, 0)).toBeNull()
  expect(limit.take('a', true, 0)).toMatchObject({ code: 'rate_limited', details: { retry_after_s: 1 } })
})

test('without a setting there is a limit where keys are needed, and none elsewhere', () => {
  const limit = new RateLimit({ requestsPerSecond: null, requestBurst: null })
  const refused = (keyed: boolean) => Array.from({ length: 2001 }, () => limit.take('a', keyed, 0)).filter((error) => error !== null)
  expect(refused(false)).toHaveLength(0)
  expect(refused(true)).toHaveLength(1)
  const none = new RateLimit({ requestsPerSecond: 0, requestBurst: null })
  expect(Array.from({ length: 5000 }, () => none.take('a', true, 0)).every((error) => error === null)).toBe(true)
})

test('however many come, the number of buckets is bounded', () => {
  const limit = new RateLimit({ requestsPerSecond: 1, requestBurst: 1 })
  for (let i = 0; i < 30_000; i++) limit.take(`address ${i}`, true, 0)
  expect(limit.size).toBe(10_000)
})

test.each([
  ['127.0.0.1', '127.0.0.1'],
  ['::ffff:10.0.0.1', '::ffff:10.0.0.1'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
  ['2001:db8:1:2::6', '2001:db8:1:2'],
  ['2001:db8::6', '2001:db8:0:0'],
  ['::1', ':0:0:0'],
  [undefined, 'unknown'],
])('the address %s shares the bucket of %s', (address, bucket) => {
  expect(addressOf(address)).toBe(bucket)
})
