import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { type ErrorCode, type ErrorSpec, errorTable, isErrorCode, ThawError, toThawError } from './errors.ts'

const codes = Object.keys(errorTable) as ErrorCode[]
const page = readFileSync(new URL('../../../docs/errors.md', import.meta.url), 'utf8')

/** The rows of the page's tables: code, status, retry, when, what to do; and the blame of their section. */
function documented() {
  return page.split(/^## Blame: /m).flatMap((section, index) => {
    const blame = index === 0 ? '' : (section.split('\n', 1)[0] ?? '')
    return [...section.matchAll(/^\| `([a-z_]+)` *\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$/gm)].map(([, code = '', ...cells]) => {
      const [status = '', retry = '', when = '', what = ''] = cells.map((cell) => cell.trim())
      return { code, status, retry, when, what, blame }
    })
  })
}

describe('docs/errors.md', () => {
  test('documents every code once, and none that does not exist', () => {
    const names = documented().map((row) => row.code)
    expect([...names].sort()).toEqual([...codes].sort())
  })

  test.each(documented())('says of $code what the table says', (row) => {
    const spec: ErrorSpec | undefined = isErrorCode(row.code) ? errorTable[row.code] : undefined
    expect({ status: row.status, retry: row.retry, blame: row.blame }).toEqual({
      status: String(spec?.status),
      retry: spec?.retryable === true ? 'yes' : 'no',
      blame: spec?.blame,
    })
    expect(row.when).toMatch(/\w{3}.*\.$/)
    expect(row.what).toMatch(/\w{3}.*\.$/)
  })
})

describe('the table', () => {
  test.each(codes)('%s has a code that fits HTTP, a message and a fix', (code) => {
    const spec: ErrorSpec = errorTable[code]
    expect(code).toMatch(/^[a-z]+(_[a-z]+)*$/)
    expect(spec.status).toBeGreaterThanOrEqual(400)
    expect(spec.status).toBeLessThan(600)
    expect(spec.message).toMatch(/\.$/)
    expect(spec.fix).toMatch(/\.$/)
    // Who is to blame shows in the status, except for user code, which fails on both sides.
    if (spec.blame === 'caller') expect(spec.status).toBeLessThan(500)
    if (spec.blame === 'platform') expect(spec.status).toBeGreaterThanOrEqual(500)
  })
})

describe('ThawError', () => {
  test('takes message and fix from the table unless it is given better ones', () => {
    expect(new ThawError('internal').toBody()).toEqual({
      error: { code: 'internal', message: errorTable.internal.message, fix: errorTable.internal.fix },
    })
    expect(new ThawError('internal', 'm', { fix: 'f', details: { a: 1 } }).toBody('req-1')).toEqual({
      error: { code: 'internal', message: 'm', fix: 'f', details: { a: 1 }, request_id: 'req-1' },
    })
  })

  test('anything thrown becomes one, with the original as its cause and nothing of it in the message', () => {
    const original = new Error('secret of the implementation')
    const error = toThawError(original)
    expect(error).toMatchObject({ code: 'internal', status: 500, retryable: false, cause: original })
    expect(error.message).not.toContain('secret')
    expect(toThawError(error)).toBe(error)
    expect(toThawError('text', 'driver_failed').message).toContain('text')
    expect(toThawError(Object.assign(new Error('x'), { code: 'ENOSPC' })).code).toBe('disk_full')
  })

  test('only codes of the table are codes, not what every object has', () => {
    for (const value of ['toString', '__proto__', 'constructor', '', 3, null]) expect(isErrorCode(value)).toBe(false)
    expect(codes.every(isErrorCode)).toBe(true)
  })
})
