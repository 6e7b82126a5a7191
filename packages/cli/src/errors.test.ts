import { ThawError } from '@thaw/sdk'
import { afterEach, expect, test, vi } from 'vitest'
import { reportError, UsageError } from './errors.ts'
import { Output } from './output.ts'
import { ownName } from './own-name.ts'

afterEach(() => vi.restoreAllMocks())

function reported(error: unknown, about: Output['about'] = {}, json = false): string {
  const written = vi.spyOn(process.stderr, 'write').mockReturnValue(true)
  const output = new Output({ json })
  Object.assign(output.about, about)
  reportError(output, error)
  const text = written.mock.calls.map(([part]) => String(part)).join('')
  written.mockRestore()
  return text
}

test('a fix names the function and the command as it is typed here, and points at the stack that is shown', () => {
  const error = new ThawError('function_failed', 'It raised.', { details: { type: 'E', message: 'm', stack: 'E: m\n  at main.py' } })
  const text = reported(error, { function: 'hello' })
  expect(text).toContain('  at main.py')
  expect(text).toContain(`\`${ownName} logs hello\``)
  expect(text).toContain('the stack above')
  expect(text).not.toContain('details')
})

test('the end of a build log is shown, and the fix points at it', () => {
  const text = reported(new ThawError('build_failed', undefined, { details: { log: 'no such package' } }))
  expect(text).toContain('  no such package')
  expect(text).toContain('the log above')
})

test('what an engine said is shown', () => {
  expect(reported(new ThawError('driver_failed', undefined, { details: { stderr: 'runc: no' } }))).toContain('  runc: no')
})

test('what the message says already is not said again, and places have one form', () => {
  const message = 'The request does not fit the schema. resources.memory_mib: too small'
  const one = reported(
    new ThawError('invalid_request', message, { details: { issues: [{ path: '/resources/memory_mib', message: 'too small' }] } }),
  )
  expect(one.match(/too small/g)).toHaveLength(1)
  const other = { path: '/scaling/concurrency', message: 'too large' }
  expect(reported(new ThawError('invalid_request', message, { details: { issues: [other] } }))).toContain(
    '  scaling.concurrency: too large',
  )
  expect(reported(new ThawError('invalid_request', 'No.', { details: { issues: [{ path: '', message: 'Unrecognized key' }] } }))).toContain(
    '  Unrecognized key\n',
  )
})

test('an error of usage leads to the help of its command, also in JSON', () => {
  expect(reported(new UsageError('No.'), { command: 'image ls' })).toContain(`${ownName} image ls --help`)
  expect(JSON.parse(reported(new UsageError('No.'), {}, true))).toMatchObject({
    error: { fix: expect.stringContaining(`${ownName} help`) },
  })
})

test('the address of the API documentation is that of the server', () => {
  expect(reported(new ThawError('invalid_request'), { url: 'http://127.0.0.1:9000' })).toContain('http://127.0.0.1:9000/docs')
})

test('control characters of foreign code do not reach the terminal', () => {
  expect(reported(new ThawError('function_failed', 'bad \u001b[31m'))).toContain('\\x1b[31m')
})
