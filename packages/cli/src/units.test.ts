import { expect, test } from 'vitest'
import { durationMs, memoryMib } from './units.ts'

test.each([
  ['500ms', 500],
  ['1.5s', 1500],
  ['5m', 300_000],
  ['1h', 3_600_000],
])('the duration %s is %i ms', (text, expected) => {
  expect(durationMs(text)).toBe(expected)
})

test.each([
  ['256', 256],
  ['256MiB', 256],
  ['1GiB', 1024],
  ['0.5g', 512],
])('the memory %s is %i MiB', (text, expected) => {
  expect(memoryMib(text)).toBe(expected)
})

test.each(['', 'ten', '-5', '0s', '5 parsecs', '1e3'])('"%s" is refused with an example of what is meant', (text) => {
  expect(() => durationMs(text)).toThrow('500ms, 30s or 5m')
})

test.each(['5', '1.5', '0'])('the duration %s lacks its unit, and the error has three to choose from', (text) => {
  expect(() => durationMs(text)).toThrow(`${text}s, ${text}ms or ${text}m`)
})
