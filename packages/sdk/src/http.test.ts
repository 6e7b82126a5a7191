import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { Thaw } from './thaw.ts'

// Real sockets, because what is proved here is what happens when they break; the server beside them is node:http.

let server: Server | undefined

afterEach(async () => {
  server?.closeAllConnections()
  await new Promise<void>((resolve) => (server === undefined ? resolve() : server.close(() => resolve())))
  server = undefined
})

type Answer = (request: IncomingMessage, response: ServerResponse) => void

/** A server that gives one answer after the other, the last one again and again. */
async function serve(...answers: Answer[]): Promise<{ thaw: Thaw; requests: IncomingMessage[] }> {
  const requests: IncomingMessage[] = []
  const started = createServer((request, response) => {
    requests.push(request)
    const answer = answers[Math.min(requests.length, answers.length) - 1]
    request.resume().once('end', () => answer?.(request, response))
  })
  server = started
  await new Promise<void>((resolve) => started.listen(0, '127.0.0.1', resolve))
  const { port } = started.address() as AddressInfo
  return { thaw: new Thaw({ url: `http://127.0.0.1:${port}/`, apiKey: 'secret' }), requests }
}

const cut: Answer = (request) => request.socket.destroy()
const item =
  (value: unknown): Answer =>
  (_request, response) =>
    response.setHeader('content-type', 'application/json').end(JSON.stringify({ item: value }))
const failure =
  (status: number, code: string, headers: Record<string, string> = {}): Answer =>
  (_request, response) =>
    response
      .writeHead(status, { 'content-type': 'application/json', ...headers })
      .end(JSON.stringify({ error: { code, message: 'No.', fix: 'Do.', details: { a: 1 }, request_id: 'req-1' } }))

test('an error of the server comes as its code, message, fix, details and request id', async () => {
  const { thaw } = await serve(failure(404, 'function_not_found'))
  await expect(thaw.functions.get('hello')).rejects.toMatchObject({
    name: 'ThawError',
    code: 'function_not_found',
    message: 'No.',
    fix: 'Do.',
    details: { a: 1 },
    requestId: 'req-1',
  })
})

test('an error code of a newer server becomes internal and keeps its name', async () => {
  const { thaw } = await serve(failure(418, 'teapot'))
  await expect(thaw.functions.get('hello')).rejects.toMatchObject({ code: 'internal', message: 'No. (teapot)' })
})

test('where nothing listens, the error is unreachable and names the address', async () => {
  const { thaw } = await serve()
  await new Promise((resolve) => server?.close(resolve))
  const withoutScheme = new Thaw({ url: thaw.url.replace('http://', '') })
  await expect(withoutScheme.health()).rejects.toMatchObject({
    code: 'unreachable',
    message: expect.stringContaining(`${thaw.url} (ECONNREFUSED)`),
  })
})

test('a port that fetch refuses is unreachable, and said to be so', async () => {
  await expect(new Thaw({ url: '127.0.0.1:1' }).health()).rejects.toMatchObject({
    code: 'unreachable',
    message: expect.stringContaining('refuses'),
  })
})

test('an answer that no thaw server gives is unreachable', async () => {
  const { thaw } = await serve((_request, response) => response.writeHead(404).end('<html>'))
  await expect(thaw.functions.get('hello')).rejects.toMatchObject({ code: 'unreachable', message: expect.stringContaining('404') })
})

test('a GET whose connection breaks is sent again', async () => {
  const { thaw, requests } = await serve(cut, cut, item({ name: 'hello' }))
  await expect(thaw.functions.get('hello')).resolves.toEqual({ name: 'hello' })
  expect(requests).toHaveLength(3)
})

test('an invocation whose connection breaks is never sent again', async () => {
  const { thaw, requests } = await serve(cut)
  await expect(thaw.functions.invoke('hello', { a: 1 })).rejects.toMatchObject({ code: 'unreachable' })
  expect(requests).toHaveLength(1)
})

test('a GET waits as long as Retry-After says, and an invocation that is refused with it is not repeated', async () => {
  const busy = failure(503, 'shutting_down', { 'retry-after': '0' })
  const { thaw, requests } = await serve(busy, item({ name: 'hello' }), failure(429, 'too_many_requests', { 'retry-after': '0' }))
  await expect(thaw.functions.get('hello')).resolves.toEqual({ name: 'hello' })
  await expect(thaw.functions.invoke('hello')).rejects.toMatchObject({ code: 'too_many_requests' })
  expect(requests).toHaveLength(3)
})

test('retries are bounded', async () => {
  const { thaw, requests } = await serve(cut)
  await expect(thaw.functions.get('hello')).rejects.toMatchObject({ code: 'unreachable' })
  expect(requests).toHaveLength(4)
})

test('a DELETE that worked but lost its answer succeeds when it is sent again', async () => {
  const { thaw, requests } = await serve(cut, failure(404, 'function_not_found'))
  await expect(thaw.functions.delete('hello')).resolves.toBeUndefined()
  expect(requests).toHaveLength(2)
})

test('a DELETE of what was never there fails', async () => {
  const { thaw } = await serve(failure(404, 'function_not_found'))
  await expect(thaw.functions.delete('hello')).rejects.toMatchObject({ code: 'function_not_found' })
})

test('an aborted signal ends a call that waits, with the reason of the signal', async () => {
  const abort = new AbortController()
  const { thaw } = await serve(() => abort.abort(new Error('enough')))
  await expect(thaw.functions.invoke('hello', null, { signal: abort.signal })).rejects.toThrow('enough')
})

test('a server that does not answer in time is unreachable, and the error names the option', async () => {
  const { thaw } = await serve(() => undefined)
  const hasty = new Thaw({ url: thaw.url, requestTimeoutMs: 50 })
  await expect(hasty.functions.get('hello')).rejects.toMatchObject({
    code: 'unreachable',
    fix: expect.stringContaining('requestTimeoutMs'),
  })
})

test('the key travels as a bearer token, names are escaped and a slash at the end of the address does no harm', async () => {
  const { thaw, requests } = await serve(item({}))
  await thaw.functions.get('a/b')
  expect(requests[0]).toMatchObject({ url: '/v1/functions/a%2Fb', headers: { authorization: 'Bearer secret' } })
})

test('a payload is named by what it is', async () => {
  const { thaw, requests } = await serve((_request, response) => response.end())
  for (const payload of [undefined, 'text', new Uint8Array([1]), { a: 1 }, null]) await thaw.functions.invoke('hello', payload)
  await thaw.functions.invoke('hello', '[1]', { contentType: 'application/json' })
  expect(requests.map((request) => request.headers['content-type'])).toEqual([
    undefined,
    'text/plain; charset=utf-8',
    'application/octet-stream',
    'application/json',
    'application/json',
    'application/json',
  ])
})

test.each(['text/plain\nx: y', 'json', '', 'text/plain; name=ü'])(
  'the content type %j is refused before anything is sent',
  async (contentType) => {
    const { thaw, requests } = await serve((_request, response) => response.end())
    await expect(thaw.functions.invoke('hello', 'text', { contentType })).rejects.toMatchObject({ code: 'invalid_request' })
    expect(requests).toEqual([])
  },
)
