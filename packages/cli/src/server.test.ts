import { expect, test } from 'vitest'
import { quietLog } from './server.ts'

test('the log is quiet on a terminal only, and only where nobody chose its level', () => {
  expect(quietLog('default', true)).toEqual({ log_level: 'warn' })
  expect(quietLog('default', false)).toEqual({})
  expect(quietLog('environment', true)).toEqual({})
})
