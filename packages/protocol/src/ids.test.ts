import { expect, test } from 'vitest'
import { idPattern, idPrefixes, newId } from './ids.ts'

test.each(idPrefixes)('an id of %s has the pattern and fits a DNS label', (prefix) => {
  const id = newId(prefix)
  expect(id).toMatch(idPattern)
  expect(id.startsWith(`${prefix}-`)).toBe(true)
  // RFC 1123: at most 63 letters, digits and hyphens, neither first nor last a hyphen.
  expect(id).toMatch(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])$/)
})

test('ids sort by the time at which they were made', () => {
  const times = [0, 1, 31, 32, 1023, 1024, 1_700_000_000_000, 1_700_000_000_001, 2 ** 47, 2 ** 48 - 1]
  const ids = times.map((time) => newId('inv', time))
  expect([...ids].sort()).toEqual(ids)
})

test('the time can be read back from an id', () => {
  const alphabet = '0123456789abcdefghjkmnpqrstvwxyz'
  const time = 1_763_692_800_123
  const letters = newId('fn', time).slice(3, 13)
  expect([...letters].reduce((sum, letter) => sum * 32 + alphabet.indexOf(letter), 0)).toBe(time)
})

test('ids of the same moment differ, in every letter of their random part', () => {
  const ids = Array.from({ length: 50_000 }, () => newId('inv', 1))
  expect(new Set(ids).size).toBe(ids.length)
  const random = ids.map((id) => id.slice(-16))
  for (let position = 0; position < 16; position++) expect(new Set(random.map((part) => part[position])).size).toBe(32)
})
