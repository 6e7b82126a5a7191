import { ThawError } from '@thaw/protocol'
import { expect, test } from 'vitest'
import { createLogger } from './log.ts'

function capture(pretty = false, level: 'info' | 'silent' = 'info') {
  const lines: string[] = []
  const log = createLogger({ level, pretty, destination: { write: (line) => void lines.push(line) } })
  return { log, lines, parsed: () => lines.map((line) => JSON.parse(line)) }
}

test('a line is JSON with time, level, message and fields, and a child adds its own', () => {
  const { log, parsed } = capture()
  log.child({ request_id: 'req-1' }).info({ function: 'hello' }, 'done')
  log.debug('too quiet')
  expect(parsed()).toEqual([
    { time: expect.stringMatching(/^\d{4}-.*Z$/), level: 'info', request_id: 'req-1', function: 'hello', msg: 'done' },
  ])
})

test('an error carries its code, details and causes', () => {
  const { log, parsed } = capture()
  const err = new ThawError('driver_failed', 'no', { details: { exit: 1 }, cause: new Error('why') })
  log.error({ err }, 'failed')
  expect(parsed()[0].err).toMatchObject({ type: 'ThawError', code: 'driver_failed', details: { exit: 1 }, cause: { message: 'why' } })
})

test.each([false, true])('secrets do not come out (pretty: %s)', (pretty) => {
  const { log, lines } = capture(pretty)
  log.info({ authorization: 'Bearer hunter2', headers: { cookie: 'hunter2' }, config: { config: { env: { A: 'hunter2' } } } }, 'x')
  log.warn({ err: new Error('git clone https://sam:hunter2@host.test/x failed') }, 'from https://hunter2@host.test')
  expect(lines.join('')).not.toContain('hunter2')
  expect(lines.join('')).toContain('://***@host.test')
})

test('on a terminal each entry is one line, which cannot drive it', () => {
  const { log, lines } = capture(true)
  const err = new ThawError('start_failed', 'first\nsecond', { cause: new Error('the \u001b[2Jcause\u0007') })
  log.info({ function: 'hello', message: 'two\nlines' }, 'text \u001b]0;title\u0007 with \u009b31m codes')
  log.warn({ err }, 'failed')
  expect(lines).toHaveLength(2)
  // Colours of our own are the only codes that may be left.
  for (const line of lines) expect(line.slice(0, -1).split('\u001b[').join('')).not.toMatch(/\p{Cc}/u)
  expect(lines.join('')).not.toMatch(/2J|title|31m/)
  expect(lines[1]).toContain('start_failed: first second ← the')
})

test('silent says nothing', () => {
  const { log, lines } = capture(false, 'silent')
  log.fatal('x')
  expect(lines).toEqual([])
})
