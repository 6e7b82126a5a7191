import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { codeOf, sendRaw } from '../support/http.ts'
import { startServer, type TestServer } from '../support/server.ts'

/** Bad requests to the control API. None of them needs a function: nothing may get that far. */

let server: TestServer

beforeAll(async () => {
  server = await startServer({ driver: 'process', limits: { header_timeout_ms: 1000, request_timeout_ms: 2000 } })
})
afterAll(() => server[Symbol.asyncDispose]())

async function post(body: string | Uint8Array<ArrayBuffer>, contentType = 'application/json') {
  const response = await fetch(`${server.url}/v1/functions`, { method: 'POST', headers: { 'content-type': contentType }, body })
  return {
    status: response.status,
    ...((await response.json()) as { error: { code: string; message: string; fix: string; request_id: string } }),
  }
}

const valid = { name: 'f', runtime: 'python', code: { inline: 'eA==' } }

afterAll(async () => {
  // Whatever was sent: nothing was half-made.
  const left = await fetch(`${server.url}/v1/functions`).then((response) => response.json())
  expect(left).toEqual({ items: [], next: null })
})

describe('fault 4: malformed JSON', () => {
  test.each(['{', '{"name": }', 'nope', '{"name":"x"} trailing', "{'name':'x'}", '[1,]'])(
    '%s is 400 invalid_json with a fix',
    async (body) => {
      const answer = await post(body)
      expect(answer).toMatchObject({ status: 400, error: { code: 'invalid_json' } })
      expect(answer.error.fix).not.toBe('')
      expect(answer.error.request_id).toMatch(/^req-/)
    },
  )

  test('invalid UTF-8 is 400', async () => {
    expect(await post(new Uint8Array([0x22, 0xff, 0xfe, 0x22]))).toMatchObject({ status: 400 })
  })
})

describe('fault 5: keys that lie', () => {
  test.each(['{"__proto__":{"x":1},"name":"f"}', '{"name":"a","name":"b"}', '{"env":{"A":"1","A":"2"}}'])('%s is 400', async (body) => {
    expect(await post(body)).toMatchObject({ status: 400, error: { code: 'invalid_json' } })
  })
})

test('fault 6: JSON of depth 10⁴ and 10⁶ is 400', async () => {
  for (const depth of [10_000, 300_000]) {
    expect(await post('['.repeat(depth) + ']'.repeat(depth))).toMatchObject({ status: 400, error: { code: 'invalid_json' } })
  }
})

test('fault 7: another content type is 415', async () => {
  for (const type of ['text/plain', 'application/xml', 'application/x-www-form-urlencoded']) {
    expect(await post(JSON.stringify(valid), type)).toMatchObject({ status: 415, error: { code: 'unsupported_media_type' } })
  }
})

describe('fault 8: names', () => {
  test.each(['../x', 'a/b', 'a\u0000b', 'x'.repeat(300), '', ' ', '-a', 'ünï', 'a b', '.', '..'])('%j is 400 in a body', async (name) => {
    expect(await post(JSON.stringify({ ...valid, name }))).toMatchObject({ status: 400, error: { code: 'invalid_request' } })
  })

  test.each(['..%2Fx', 'a%00b', 'x'.repeat(300), '%ff', 'a%20b'])('%s is 400 in a path, for control and for invoke', async (name) => {
    for (const [method, path] of [
      ['GET', ''],
      ['POST', '/invoke'],
    ] as const) {
      const response = await fetch(`${server.url}/v1/functions/${name}${path}`, { method })
      expect(response.status, `${method} ${path}`).toBe(400)
    }
  })
})

describe('fault 9: limits that make no sense', () => {
  const bad: [string, object][] = [
    ['negative', { resources: { memory_mib: -1 } }],
    ['zero', { timeout_ms: 0 }],
    ['fractional', { resources: { pids: 1.5 } }],
    ['huge', { resources: { memory_mib: 1e15 } }],
    ['text', { timeout_ms: '5' }],
    ['beyond a day', { timeout_ms: 1e12 }],
    ['min above max', { scaling: { min_instances: 5, max_instances: 2 } }],
    ['unknown key', { timeout: 5 }],
    ['two sources of code', { code: { inline: 'eA==', archive: 'eA==' } }],
    ['no source of code', { code: {} }],
    ['a variable with NUL', { env: { A: 'x\u0000y' } }],
    ['a variable with a bad name', { env: { 'A=B': 'x' } }],
    ['not base64', { code: { inline: '%%%' } }],
  ]
  test.each(bad)('%s is 400 and names the field', async (_name, change) => {
    const answer = await post(JSON.stringify({ ...valid, ...change }))
    expect(answer).toMatchObject({ status: 400, error: { code: 'invalid_request' } })
  })

  test('NaN and Infinity are 400', async () => {
    for (const value of ['NaN', 'Infinity', '-Infinity']) {
      expect(await post(`{"name":"f","runtime":"python","code":{"inline":"eA=="},"timeout_ms":${value}}`)).toMatchObject({ status: 400 })
    }
  })

  test('a bad Thaw-Timeout-Ms or Thaw-Mode is 400', async () => {
    const send = (headers: Record<string, string>) =>
      fetch(`${server.url}/v1/functions/f/invoke`, { method: 'POST', headers }).then((r) => r.status)
    for (const value of ['-1', '0', '1.5', 'NaN', '1e9', '99999999999']) expect(await send({ 'thaw-timeout-ms': value }), value).toBe(400)
    expect(await send({ 'thaw-mode': 'never' })).toBe(400)
  })
})

test('fault 10: Content-Length together with Transfer-Encoding is 400, and the connection is closed', async () => {
  const answer = await sendRaw(
    server.url,
    'POST /v1/functions/f/invoke HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  )
  expect(answer).toMatchObject({ status: 400, closed: true })
})

test('fault 11: 17 KiB of headers are 431', async () => {
  const answer = await sendRaw(server.url, `GET /health HTTP/1.1\r\nHost: localhost\r\nX-Big: ${'x'.repeat(17 * 1024)}\r\n\r\n`)
  expect(answer.status).toBe(431)
  expect(codeOf(answer)).toBe('header_fields_too_large')
})

test('fault 12: headers that never end are 408', async () => {
  const answer = await sendRaw(server.url, 'GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ')
  expect(answer.status).toBe(408)
  expect(codeOf(answer)).toBe('request_timeout')
})

describe('fault 13: routes and methods', () => {
  test('an unknown path is 404, under /api/v1 too', async () => {
    for (const path of ['/nothing', '/v1/nothing', '/api/v1/nothing', '/v2/functions']) {
      const response = await fetch(server.url + path)
      expect(response.status).toBe(404)
      expect(await response.json()).toMatchObject({ error: { code: 'route_not_found', fix: expect.any(String) } })
    }
  })

  test.each([
    ['PATCH', '/v1/functions'],
    ['POST', '/health'],
    ['GET', '/v1/functions/x/invoke'],
    ['DELETE', '/v1/invocations/x'],
  ])('%s %s is 405 and says what is allowed', async (method, path) => {
    const response = await fetch(server.url + path, { method })
    expect(response.status).toBe(405)
    expect(response.headers.get('allow')).toMatch(/GET|POST/)
    expect(await response.json()).toMatchObject({ error: { code: 'method_not_allowed' } })
  })

  test('what does not exist is 404 with a code of its own', async () => {
    const codes = []
    for (const path of [
      '/v1/functions/nope',
      '/v1/functions/nope/versions',
      '/v1/invocations/inv-nope',
      '/v1/functions/nope/logs?follow=1',
    ]) {
      const response = await fetch(server.url + path)
      expect(response.status).toBe(404)
      codes.push(((await response.json()) as { error: { code: string } }).error.code)
    }
    expect(codes).toEqual(['function_not_found', 'function_not_found', 'invocation_not_found', 'function_not_found'])
  })
})

describe('a server on loopback is not for web pages', () => {
  const get = (headers: string) => sendRaw(server.url, `GET /v1/functions HTTP/1.1\r\n${headers}\r\n\r\n`)

  test.each(['evil.example', 'evil.example:8080', '10.0.0.1', 'localhost.evil.example', ''])('Host %j is 403', async (host) => {
    expect(codeOf(await get(`Host: ${host}`))).toBe('forbidden_host')
  })

  test.each(['http://evil.example', 'null', 'http://localhost:1', 'https://localhost'])('Origin %s is 403', async (origin) => {
    expect(codeOf(await get(`Host: localhost\r\nOrigin: ${origin}`))).toBe('forbidden_origin')
  })

  test('its own pages may call it', async () => {
    const { host } = new URL(server.url)
    expect((await get(`Host: ${host}\r\nOrigin: http://${host}`)).status).toBe(200)
  })
})

test('the API is described by OpenAPI 3.1 with every path, and /docs shows it', async () => {
  const api = (await fetch(`${server.url}/openapi.json`).then((response) => response.json())) as {
    openapi: string
    paths: Record<string, unknown>
  }
  expect(api.openapi).toBe('3.1.0')
  for (const path of [
    '/v1/functions',
    '/v1/functions/{name}',
    '/v1/functions/{name}/invoke',
    '/v1/invocations/{id}/cancel',
    '/v1/images',
    '/v1/info',
    '/health',
  ]) {
    expect(Object.keys(api.paths)).toContain(path)
  }
  expect(await fetch(`${server.url}/docs`).then((response) => response.text())).toContain('swagger')
})
