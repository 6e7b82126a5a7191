import { expect, test } from 'vitest'
import { isNear, nearestKey } from './nearest.ts'

const known = ['runtime', 'timeout_ms', 'resources', 'resources.memory_mib', 'scaling.max_instances', 'env']

test.each([
  ['timeout', 'timeout_ms'],
  ['memory', 'resources.memory_mib'],
  ['memory_mib', 'resources.memory_mib'],
  ['runtme', 'runtime'],
  ['scaling.max_instance', 'scaling.max_instances'],
  ['colour', null],
])('%s most likely means %s', (word, meant) => {
  expect(nearestKey(word, known)).toBe(meant)
})

test('what shares only two letters is not near', () => {
  expect(isNear('nope', 'once')).toBe(false)
  expect(isNear('quikstart', 'quickstart')).toBe(true)
})
