import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type IncomingMessage, request as sendRequest } from 'node:http'
import { join } from 'node:path'
import { Thaw } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { startChildServer, startServer, type TestServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

/** Requests that come again with their Idempotency-Key. A function answers something else each time it runs. */

const source = `
import { randomUUID } from 'node:crypto'
export async function handler(event) {
  const { size, sleep_ms, fail } = event ?? {}
  if (sleep_ms) await new Promise((resolve) => setTimeout(resolve, sleep_ms))
  if (fail) throw new Error(randomUUID())
  return { id: randomUUID(), filler: 'x'.repeat(size ?? 0) }
}
export async function* pieces(event) {
  yield randomUUID()
  for (let sent = 0; sent < event.size; sent += 1000) yield 'x'.repeat(1000)
}
`
const runs = { name: 'runs', runtime: 'node', code: { inline: source } } as const

let server: TestServer

beforeAll(async () => {
  server = await startServer({ driver: 'process', pools: { size: 0 } })
  await server.thaw.functions.create(runs)
  await server.thaw.functions.create({ ...runs, name: 'pieces', handler: 'main.pieces' })
})
afterAll(() => server[Symbol.asyncDispose]())

async function post(url: string, key: string | null, body: string, headers: Record<string, string> = {}) {
  const answer = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...(key === null ? {} : { 'idempotency-key': key }), ...headers },
    body,
  })
  const text = await answer.text()
  return {
    status: answer.status,
    text,
    id: answer.headers.get('thaw-invocation-id'),
    type: answer.headers.get('content-type'),
    replayed: answer.headers.get('idempotent-replayed'),
    retryAfter: answer.headers.get('retry-after'),
    code: answer.ok ? null : (JSON.parse(text) as { error: { code: string } }).error.code,
  }
}

const invoke = (key: string | null, event: object, name = 'runs', headers = {}) =>
  post(`${server.url}/v1/functions/${name}/invoke`, key, JSON.stringify(event), headers)
const countOf = async (name: string) => (await server.thaw.invocations.list({ function: name }).all()).length

describe('an invocation that comes again', () => {
  test('gets the answer of the first one, marked as such, and does not run', async () => {
    const first = await invoke('one', { n: 1 })
    expect(first).toMatchObject({ status: 200, replayed: null })
    const before = await countOf('runs')
    for (let i = 0; i < 3; i++) expect(await invoke('one', { n: 1 })).toEqual({ ...first, replayed: 'true' })
    expect(await countOf('runs')).toBe(before)
    expect((await invoke(null, { n: 1 })).text).not.toBe(first.text)
    expect((await invoke('another', { n: 1 })).text).not.toBe(first.text)
  })

  test('gets a failure of the code again, too', async () => {
    const first = await invoke('failing', { fail: true })
    expect(first).toMatchObject({ status: 500, code: 'function_failed', replayed: null })
    expect(await invoke('failing', { fail: true })).toEqual({ ...first, replayed: 'true' })
  })

  test('that was refused before anything ran is not kept', async () => {
    expect(await invoke('refused', {}, 'not-there')).toMatchObject({ status: 404, replayed: null })
    expect(await invoke('refused', {})).toMatchObject({ status: 200, replayed: null })
  })

  test('keeps a streamed answer whole; what is too large to be kept goes out once, and is 409 from then on', async () => {
    const small = await invoke('pieces', { size: 5000 }, 'pieces')
    expect(small).toMatchObject({ status: 200, replayed: null })
    expect(await invoke('pieces', { size: 5000 }, 'pieces')).toEqual({ ...small, replayed: 'true' })
    for (const [name, event] of [
      ['runs', { size: 2_000_000 }],
      ['pieces', { size: 3_000_000 }],
    ] as const) {
      const large = await invoke(`large ${name}`.replace(' ', '-'), event, name)
      expect(large.status).toBe(200)
      expect(large.text.length).toBeGreaterThan(event.size)
      expect(await invoke(`large-${name}`, event, name)).toMatchObject({ status: 409, code: 'idempotency_answer_too_large' })
    }
  })

  test('is kept although the client of the first one went away', async () => {
    const before = await countOf('runs')
    const gone = new AbortController()
    const body = JSON.stringify({ sleep_ms: 300 })
    const headers = { 'idempotency-key': 'gone', 'content-type': 'application/json' }
    const first = fetch(`${server.url}/v1/functions/runs/invoke`, { method: 'POST', headers, body, signal: gone.signal }).catch(() => null)
    expect(await eventually(async () => (await server.thaw.functions.get('runs')).instances.busy === 1)).toBe(true)
    gone.abort()
    await first
    expect(await eventually(async () => (await invoke('gone', { sleep_ms: 300 })).replayed === 'true')).toBe(true)
    expect(await countOf('runs')).toBe(before + 1)
  })

  test('another tenant has its own keys', async () => {
    await using keyed = await startServer({ driver: 'process', pools: { size: 0 } })
    const { key } = await keyed.thaw.keys.create({ name: 'a' })
    const admin = new Thaw({ url: keyed.url, apiKey: key })
    const other = new Thaw({ url: keyed.url, apiKey: (await admin.keys.create({ name: 'b', tenant: 'other' })).key })
    const answers = []
    for (const thaw of [admin, other, admin, other]) {
      await thaw.functions.create(runs).catch(() => undefined)
      answers.push(JSON.stringify((await thaw.functions.invoke('runs', {}, { idempotencyKey: 'same' })).value))
    }
    expect(answers[0]).toBe(answers[2])
    expect(answers[1]).toBe(answers[3])
    expect(answers[0]).not.toBe(answers[1])
  })

  test('is forgotten after the retention, and runs again', async () => {
    await using brief = await startServer({ driver: 'process', pools: { size: 0 }, retention: { idempotency_ms: 1 } })
    await brief.thaw.functions.create(runs)
    const url = `${brief.url}/v1/functions/runs/invoke`
    const first = await post(url, 'k', '{}')
    expect(await eventually(async () => (await post(url, 'k', '{}')).text !== first.text)).toBe(true)
  })
})

describe('fault 15: a key that does not fit', () => {
  test('with another body, content type or function is 422', async () => {
    await invoke('mismatch', { n: 1 })
    for (const answer of [
      await invoke('mismatch', { n: 2 }),
      await invoke('mismatch', { n: 1 }, 'pieces'),
      await invoke('mismatch', { n: 1 }, 'runs', { 'content-type': 'text/plain' }),
      await post(`${server.url}/v1/functions`, 'mismatch', JSON.stringify({ name: 'x', runtime: 'node', code: { inline: 'eA==' } })),
    ]) {
      expect(answer).toMatchObject({ status: 422, code: 'idempotency_mismatch', replayed: null })
    }
  })

  test('while the first one runs is 409 with Retry-After, whatever the body', async () => {
    const first = invoke('flight', { sleep_ms: 500 })
    expect(await eventually(async () => (await server.thaw.functions.get('runs')).instances.busy === 1)).toBe(true)
    expect(await invoke('flight', { sleep_ms: 500 })).toMatchObject({ status: 409, code: 'idempotency_in_flight', retryAfter: '1' })
    expect((await first).status).toBe(200)
    expect(await invoke('flight', { sleep_ms: 500 })).toMatchObject({ status: 200, replayed: 'true' })
  })

  test('many at once: one runs, the others are told to wait', async () => {
    const before = await countOf('runs')
    const answers = await Promise.all(Array.from({ length: 20 }, () => invoke('many', { sleep_ms: 200 })))
    const ran = answers.filter((answer) => answer.status === 200)
    expect(ran).toHaveLength(1)
    expect(answers.filter((answer) => answer.code === 'idempotency_in_flight')).toHaveLength(19)
    expect(await countOf('runs')).toBe(before + 1)
  })

  test.each(['', 'a b', 'x'.repeat(256)])('the key %j is 400', async (key) => {
    expect(await invoke(key, {})).toMatchObject({ status: 400, code: 'invalid_request' })
  })

  test('a streaming call and a huge body are refused, and the key stays free', async () => {
    expect(await invoke('free', {}, 'runs', { 'thaw-mode': 'stream' })).toMatchObject({ status: 400 })
    expect(await invoke('free', { filler: 'x'.repeat(9 * 1024 * 1024) })).toMatchObject({ status: 413 })
    expect(await invoke('free', {})).toMatchObject({ status: 200, replayed: null })
  })
})

describe('a deploy that comes again', () => {
  test('gets the answer of the first one, as JSON and as an upload', async () => {
    const created = await server.thaw.functions.create({ ...runs, name: 'twice' }, { idempotencyKey: 'deploy' })
    expect(await server.thaw.functions.create({ ...runs, name: 'twice' }, { idempotencyKey: 'deploy' })).toEqual(created)
    const changed = server.thaw.functions.create({ ...runs, name: 'twice', env: { A: '1' } }, { idempotencyKey: 'deploy' })
    await expect(changed).rejects.toMatchObject({ code: 'idempotency_mismatch' })
    await expect(server.thaw.functions.create({ ...runs, name: 'twice' })).rejects.toMatchObject({ code: 'function_exists' })
    using dir = tempDir()
    writeFileSync(join(dir.path, 'main.mjs'), source)
    const upload = { name: 'uploaded', runtime: 'node', code: { dir: dir.path } } as const
    const item = await server.thaw.functions.create(upload, { idempotencyKey: 'upload' })
    expect(await server.thaw.functions.create(upload, { idempotencyKey: 'upload' })).toEqual(item)
  })

  test('that failed is made anew', async () => {
    const broken = { name: 'broken', runtime: 'node', code: { inline: 'export const nothing = 1' } } as const
    for (let i = 0; i < 2; i++) {
      await expect(server.thaw.functions.create(broken, { idempotencyKey: 'broken' })).rejects.toMatchObject({ code: 'handler_invalid' })
    }
  })
})

describe('kill -9', () => {
  test('fault 49: between the commit and the reply: the retry gets the answer, and nothing runs twice', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    for (let round = 0; round < 3; round++) {
      const first = await startChildServer(dataDir, { driver: 'process' })
      if (round === 0) await first.thaw.functions.create(runs)
      const headers = { 'content-type': 'application/json', 'idempotency-key': `round-${round}` }
      const request = sendRequest(`${first.url}/v1/functions/runs/invoke`, { method: 'POST', headers }).end('{}')
      request.on('error', () => undefined)
      // The first bytes of the reply are on their way: from here on it must be on disk.
      const [answer] = (await once(request, 'response')) as [IncomingMessage]
      first.process.kill('SIGKILL')
      answer.on('error', () => undefined).resume()
      await first.kill()
      await using second = await startChildServer(dataDir, { driver: 'process' })
      const again = await post(`${second.url}/v1/functions/runs/invoke`, `round-${round}`, '{}')
      expect(again).toMatchObject({ status: 200, replayed: 'true', id: answer.headers['thaw-invocation-id'] })
    }
  }, 180_000)

  test('fault 48: before the commit: there was no answer, and the retry makes one', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'process' })
    await first.thaw.functions.create(runs)
    const cut = post(`${first.url}/v1/functions/runs/invoke`, 'cut', '{"sleep_ms":2000}').catch(() => null)
    expect(await eventually(async () => (await first.thaw.functions.get('runs')).instances.busy === 1)).toBe(true)
    await first.kill()
    expect(await cut).toBeNull()
    await using second = await startChildServer(dataDir, { driver: 'process' })
    const url = `${second.url}/v1/functions/runs/invoke`
    expect(await post(url, 'cut', '{"sleep_ms":2000}')).toMatchObject({ status: 200, replayed: null })
    expect(await post(url, 'cut', '{"sleep_ms":2000}')).toMatchObject({ status: 200, replayed: 'true' })
  })

  test('fault 49: a function that was committed when the server died is the answer to the retry', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'process' })
    const slow = { ...runs, name: 'slow', code: { inline: `await new Promise((resolve) => setTimeout(resolve, 1500));${source}` } }
    const cut = first.thaw.functions.create(slow, { idempotencyKey: 'slow' }).catch((error: { code: string }) => error.code)
    expect(await eventually(async () => (await first.thaw.functions.list().all()).length === 1)).toBe(true)
    const [made] = await first.thaw.functions.list().all()
    await first.kill()
    expect(await cut).toBe('unreachable')
    await using second = await startChildServer(dataDir, { driver: 'process' })
    const item = await second.thaw.functions.create(slow, { idempotencyKey: 'slow' })
    expect(item).toMatchObject({ id: made?.id, state: 'ready', version: 1 })
    expect(await second.thaw.functions.create(slow, { idempotencyKey: 'slow' })).toEqual(item)
    await expect(second.thaw.functions.create(slow, { idempotencyKey: 'other' })).rejects.toMatchObject({ code: 'function_exists' })
  })
})
