import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { sendRaw } from '../support/http.ts'
import { startServer, type TestServer } from '../support/server.ts'

/** Code and payloads that are wrong: a clear error, nothing half-made. */

let server: TestServer

beforeAll(async () => {
  server = await startServer({
    driver: 'process',
    limits: { max_payload_bytes: 2 * 1024 * 1024, max_archive_bytes: 1024 * 1024, max_log_bytes_per_invocation: 10_000 },
  })
  await server.thaw.functions.create({
    name: 'echo',
    runtime: 'python',
    code: { inline: 'def handler(event, context):\n    return event' },
  })
})
afterAll(() => server[Symbol.asyncDispose]())

const files = (folder: string) =>
  readdirSync(join(server.dataDir, folder), { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile()).length

describe('fault 29: a handler that is not there', () => {
  const cases: [string, string, string | undefined, RegExp][] = [
    ['no such function', 'x = 1', undefined, /handler/],
    ['no such file', 'def handler(e, c): pass', 'other.handler', /other/],
    ['not a function', 'handler = 5', undefined, /handler|callable/],
    ['a syntax error', 'def handler(:', undefined, /syntax/i],
    ['an error while it is loaded', 'raise RuntimeError("at load")', undefined, /at load/],
    ['an import that is missing', 'import nowhere\ndef handler(e, c): pass', undefined, /nowhere/],
    ['an exit while it is loaded', 'import os\nos._exit(1)', undefined, /./],
  ]
  test.each(cases)('%s: 422, with what was wrong, and no function', async (_name, source, handler, message) => {
    const before = { code: files('code'), blobs: files('blobs') }
    const failed = server.thaw.functions.create({
      name: 'broken',
      runtime: 'python',
      code: { inline: source },
      ...(handler === undefined ? {} : { handler }),
    })
    await expect(failed).rejects.toMatchObject({ code: 'handler_invalid', status: 422, message: expect.stringMatching(message) })
    await expect(server.thaw.functions.get('broken')).rejects.toMatchObject({ code: 'function_not_found' })
    expect({ code: files('code'), blobs: files('blobs') }).toEqual(before)
  })

  test('without waiting, the version is failed, never ready, and says why', async () => {
    const response = await fetch(`${server.url}/v1/functions?wait=false`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ name: 'later', runtime: 'python', code: { inline: Buffer.from('x = 1').toString('base64') } }),
    })
    expect(response.status).toBe(201)
    expect(await response.json()).toMatchObject({ item: { state: 'building' } })
    const log = await fetch(`${server.url}/v1/functions/later/versions/1/build-log?follow=1`).then((answer) => answer.text())
    expect(log).toContain('failed')
    const { item } = (await fetch(`${server.url}/v1/functions/later`).then((answer) => answer.json())) as { item: object }
    expect(item).toMatchObject({ state: 'failed', error: { code: 'handler_invalid' } })
    const invoked = await fetch(`${server.url}/v1/functions/later/invoke`, { method: 'POST' })
    expect(invoked.status).toBe(409)
    await server.thaw.functions.delete('later')
  })
})

describe('fault 16: payloads that are too large, or lie about their length', () => {
  const invokePath = '/v1/functions/echo/invoke'

  test('an announced length above the limit is 413 before a byte of the body is read', async () => {
    const answer = await sendRaw(server.url, `POST ${invokePath} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n`)
    expect(answer).toMatchObject({ status: 413, closed: true })
  })

  test('a chunked body that grows above the limit is 413', async () => {
    const body = new ReadableStream({
      async start(controller) {
        for (let i = 0; i < 40; i++) controller.enqueue(new Uint8Array(128 * 1024))
        controller.close()
      },
    })
    const response = await fetch(server.url + invokePath, {
      method: 'POST',
      body,
      duplex: 'half',
      headers: { 'content-type': 'application/octet-stream' },
    } as RequestInit).catch((error: Error) => error)
    // A client that still writes when the answer comes may see the reset first.
    if (response instanceof Response) expect(response.status).toBe(413)
    expect((await server.thaw.functions.invoke('echo', 1)).value).toBe(1)
  })

  test('a body that ends before its announced length starts nothing', async () => {
    await sendRaw(server.url, `POST ${invokePath} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nshort`, { end: true }).catch(
      () => undefined,
    )
    const { items } = (await fetch(`${server.url}/v1/invocations?function=echo&status=running`).then((answer) => answer.json())) as {
      items: unknown[]
    }
    expect(items).toEqual([])
  })

  test('a compressed body is refused, not unpacked (fault 17)', async () => {
    const response = await fetch(server.url + invokePath, {
      method: 'POST',
      headers: { 'content-encoding': 'gzip' },
      body: new Uint8Array(10),
    })
    expect(response.status).toBe(415)
  })

  test('an answer that is too large is cut off with result_too_large', async () => {
    await server.thaw.functions.create({
      name: 'flood',
      runtime: 'python',
      code: { inline: 'def handler(e, c):\n    return b"x" * (8 << 20)' },
    })
    const answer = await fetch(`${server.url}/v1/functions/flood/invoke`, { method: 'POST' })
      .then(
        (response) => response.text(),
        () => 'broken off',
      )
      .catch(() => 'broken off')
    expect(answer).toBe('broken off')
    const { items } = (await fetch(`${server.url}/v1/invocations?function=flood`).then((response) => response.json())) as {
      items: object[]
    }
    expect(items[0]).toMatchObject({ status: 'failed', error: { code: 'result_too_large' } })
    await server.thaw.functions.delete('flood')
  })

  test('an archive above the limit is 413 and leaves nothing', async () => {
    const before = files('blobs')
    const failed = server.thaw.functions.create({ name: 'big', runtime: 'python', code: { archive: new Uint8Array(1_200_000) } })
    await expect(failed).rejects.toMatchObject({ status: 413 })
    expect(files('blobs')).toBe(before)
  })
})

test('fault 42: a flood of log lines is cut off and flagged', async () => {
  await server.thaw.functions.create({
    name: 'chatty',
    runtime: 'python',
    code: { inline: 'def handler(e, c):\n    for i in range(20000): print("line", i)\n    return "done"' },
  })
  const { invocation_id, value } = await server.thaw.functions.invoke<string>('chatty')
  expect(value).toBe('done')
  expect(await server.thaw.invocations.get(invocation_id)).toMatchObject({ status: 'succeeded', logs_truncated: true })
  const { items } = (await fetch(`${server.url}/v1/invocations/${invocation_id}/logs?limit=10000`).then((answer) => answer.json())) as {
    items: { message: string }[]
  }
  expect(items.reduce((sum, item) => sum + item.message.length, 0)).toBeLessThan(11_000)
  expect(items.at(-1)?.message).toContain('truncated')
})

test('fault 43: invalid UTF-8 and escape codes in logs and answers are carried safely', async () => {
  await server.thaw.functions.create({
    name: 'bytes',
    runtime: 'python',
    code: {
      inline:
        'import os\ndef handler(e, c):\n    os.write(1, b"raw \\xff\\xfe \\x1b[31mred\\n")\n    print("\\x1b[2J")\n    return b"\\xff\\xfe\\x00"',
    },
  })
  const answer = await fetch(`${server.url}/v1/functions/bytes/invoke`, { method: 'POST' })
  expect(answer.headers.get('content-type')).toBe('application/octet-stream')
  expect([...new Uint8Array(await answer.arrayBuffer())]).toEqual([0xff, 0xfe, 0])
  const logs = await fetch(`${server.url}/v1/functions/bytes/logs`)
  expect(logs.status).toBe(200)
  expect(JSON.stringify(await logs.json())).toContain('\\u001b[2J')
})

test('images, contracts and drivers that do not fit are refused with a fix', async () => {
  const create = (change: object) =>
    server.thaw.functions
      .create({ name: 'misfit', runtime: 'python', code: { inline: 'def handler(e, c): pass' }, ...change } as never)
      .then(
        () => 'created',
        (error: { code: string; fix: string }) => (error.fix === '' ? 'no fix' : error.code),
      )
  expect(await create({ image: 'python' })).toBe('driver_unavailable')
  expect(await create({ driver: 'docker' })).toBe('driver_unavailable')
  expect(await create({ runtime: 'custom', contract: 'handler' })).toBe('invalid_request')
  expect(await create({ contract: 'custom', scaling: { concurrency: 2 } })).toBe('invalid_request')
  expect(await create({ contract: 'http', env: { PORT: 'eighty' } })).toBe('invalid_request')
  expect(await create({ command: ['x'] })).toBe('invalid_request')
  expect(await create({ snapshot: true })).toBe('invalid_request')
  await expect(server.thaw.functions.get('misfit')).rejects.toMatchObject({ code: 'function_not_found' })
})

test('the database holds what was acknowledged and no one else may read it', () => {
  expect(statSync(join(server.dataDir, 'thaw.db')).mode & 0o777).toBe(0o600)
})
