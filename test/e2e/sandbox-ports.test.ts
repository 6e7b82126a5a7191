import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type IncomingMessage, type RequestOptions, request } from 'node:http'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { codeOf, sendRaw } from '../support/http.ts'
import { freePort, insideServer } from '../support/inside-server.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const mib = 1024 * 1024

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`ports of sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let api: Api
    let id: string
    let port: number
    let silent: number
    let base: string
    let host: string

    beforeAll(async () => {
      server = await startServer({
        driver,
        pools: { size: 0 },
        limits: { websocket_max_message_bytes: 256 * 1024, websocket_stall_ms: 500 },
      })
      api = new Api(server.url)
      const web = await webSandbox('web')
      ;({ id, port, silent } = web)
      base = `${server.url}/v1/sandboxes/${id}/ports/${port}`
      host = `${port}-${id}.localhost:${new URL(server.url).port}`
    })
    afterAll(() => server[Symbol.asyncDispose]())

    /** A sandbox whose server listens on `port`; it lists `silent` too, where nobody listens. */
    async function webSandbox(name: string) {
      const [port, silent] = [await freePort(), await freePort()]
      const { id } = await api.sandbox({
        driver,
        name,
        network: 'none',
        ports: [port, silent],
        command: ['python3', '-c', insideServer, String(port)],
      })
      expect(await eventually(async () => (await api.send('GET', `/v1/sandboxes/${id}/ports/${port}/state`)).status === 200)).toBe(true)
      return { id, port, silent }
    }

    const state = async () => (await (await fetch(`${base}/state`)).json()) as Record<string, number>

    /** Under a host name, which nothing here resolves: it is sent as the Host. */
    function hosted(path: string, options: RequestOptions = {}, name = host): Promise<IncomingMessage> {
      const { hostname, port } = new URL(server.url)
      return new Promise((resolve, reject) => {
        request({ host: hostname, port, path, ...options, headers: { host: name, ...options.headers } }, resolve)
          .once('error', reject)
          .end()
      })
    }

    test.each(['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS', 'PROPFIND'])(
      '%s arrives with its path, query, headers and body',
      async (method) => {
        const body = method === 'GET' || method === 'OPTIONS' ? undefined : 'hello'
        const answer = await fetch(`${base}/request?a=%2F&b=1`, {
          method,
          headers: { 'x-own': 'ö'.normalize().charCodeAt(0).toString(), 'thaw-mode': 'async', 'x-forwarded-for': '6.6.6.6' },
          ...(body === undefined ? {} : { body }),
        })
        const seen = (await answer.json()) as { method: string; path: string; headers: [string, string][]; body: string }
        expect(seen).toMatchObject({ method, path: '/request?a=%2F&b=1', body: body ?? '' })
        const headers = Object.fromEntries(seen.headers)
        expect(headers).toMatchObject({
          'x-own': '246',
          'x-forwarded-for': '127.0.0.1',
          'x-forwarded-proto': 'http',
          'x-forwarded-prefix': `/v1/sandboxes/${id}/ports/${port}`,
        })
        expect(headers['thaw-mode']).toBeUndefined()
      },
    )

    test('a name, /v1/instances and /api/v1 lead to the same port', async () => {
      for (const path of [`/v1/sandboxes/web`, `/v1/instances/${id}`, `/api/v1/sandboxes/${id}`]) {
        expect((await fetch(`${server.url}${path}/ports/${port}/state`)).status).toBe(200)
      }
    })

    test('without the slash behind the port, a browser is sent to where relative links work', async () => {
      const answer = await fetch(`${base}?q=1`, { redirect: 'manual' })
      expect(answer.status).toBe(308)
      expect(new URL(answer.headers.get('location') ?? '', base).href).toBe(`${base}/?q=1`)
    })

    test('a page under a path gets an origin of its own, and neither reads nor writes cookies of the API', async () => {
      const answer = await fetch(`${base}/page`, { headers: { cookie: 'session=secret' } })
      expect(answer.headers.get('content-security-policy')).toBe(
        "default-src 'self', sandbox allow-scripts allow-forms allow-popups allow-downloads",
      )
      expect(answer.headers.getSetCookie()).toEqual([])
      expect(answer.headers.get('service-worker-allowed')).toBeNull()
      expect(answer.headers.get('x-kept')).toBe('yes')
      expect(await answer.text()).toBe('<h1>page</h1>')
      const seen = (await (await fetch(`${base}/request`, { headers: { cookie: 'session=secret' } })).json()) as {
        headers: [string, string][]
      }
      expect(seen.headers.map(([name]) => name)).not.toContain('cookie')
    })

    test('fault 23: headers of the connection are not passed on, in neither direction', async () => {
      expect((await fetch(`${base}/page`)).headers.get('x-hop')).toBeNull()
      const raw = await sendRaw(
        server.url,
        `GET ${new URL(base).pathname}/request HTTP/1.1\r\nHost: localhost\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\n\r\n`,
      )
      const names = (JSON.parse(raw.body) as { headers: [string, string][] }).headers.map(([name]) => name)
      for (const name of ['x-mine', 'te', 'proxy-authorization']) expect(names).not.toContain(name)
      const broken = await sendRaw(server.url, `GET ${new URL(base).pathname}/request HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n`)
      expect(broken.status).toBe(400)
    })

    test('by host name every path belongs to the server inside, also those of the API, and cookies pass', async () => {
      for (const path of ['/request', '/request?x=/v1/info']) {
        const answer = await hosted(path, { headers: { cookie: 'session=own' } })
        expect(answer.headers['content-security-policy']).toBeUndefined()
        const seen = JSON.parse(await text(answer)) as { headers: [string, string][]; path: string }
        expect(Object.fromEntries(seen.headers)).toMatchObject({ host, cookie: 'session=own', 'x-forwarded-host': host })
        expect(seen.path).toBe(path)
      }
      for (const path of ['/health', '/v1/info', '/api/v1/info', '/fn/x']) {
        const answer = await hosted(path)
        expect([answer.statusCode, await text(answer)]).toEqual([404, 'nothing here'])
      }
      expect((await hosted('/page')).headers['set-cookie']).toEqual(['a=1', 'b=2'])
      expect((await hosted('/state', {}, host.replace(id, 'web').toUpperCase())).statusCode).toBe(200)
    })

    test('fault 19: a foreign Origin is refused, that of the host name itself is not', async () => {
      expect(codeOf({ body: await (await fetch(`${base}/state`, { headers: { origin: 'http://evil.example' } })).text() })).toBe(
        'forbidden_origin',
      )
      const foreign = await hosted('/state', { headers: { origin: server.url } })
      expect([foreign.statusCode, codeOf({ body: await text(foreign) })]).toEqual([403, 'forbidden_origin'])
      expect((await hosted('/state', { headers: { origin: `http://${host}` } })).statusCode).toBe(200)
      const socket = new WebSocket(`${base.replace('http', 'ws')}/ws`, { origin: 'http://evil.example' })
      const [, answer] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
      expect(answer.statusCode).toBe(403)
    })

    test('fault 22: a port that is not listed is refused, by path, by host name and as a WebSocket', async () => {
      const other = await freePort()
      const byPath = await api.send('GET', `/v1/sandboxes/${id}/ports/${other}/`)
      expect([byPath.status, byPath.body.error.code]).toEqual([403, 'port_not_listed'])
      const byHost = await hosted('/', {}, host.replace(String(port), String(other)))
      expect([byHost.statusCode, codeOf({ body: await text(byHost) })]).toEqual([403, 'port_not_listed'])
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/v1/sandboxes/${id}/ports/${other}/ws`)
      const [, answer] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
      expect(answer.statusCode).toBe(403)
      await api.send('PATCH', `/v1/sandboxes/${id}`, { ports: [port, silent, other] })
      expect((await api.send('GET', `/v1/sandboxes/${id}/ports/${other}/`)).body.error.code).toBe('port_unreachable')
      await api.send('PATCH', `/v1/sandboxes/${id}`, { ports: 'all' })
      expect((await api.send('GET', `/v1/sandboxes/${id}/ports/${port}/state`)).status).toBe(200)
      await api.send('PATCH', `/v1/sandboxes/${id}`, { ports: [port, silent] })
    })

    test.each([
      ['0', 400, 'invalid_request'],
      ['65536', 400, 'invalid_request'],
      ['-1', 400, 'invalid_request'],
      ['080', 400, 'invalid_request'],
      ['http', 400, 'invalid_request'],
    ])('port %s is no port', async (wrong, status, code) => {
      const answer = await api.send('GET', `/v1/sandboxes/${id}/ports/${wrong}/`)
      expect([answer.status, answer.body.error.code]).toEqual([status, code])
    })

    test('nobody listens: 502, also for a host name and a WebSocket; no such sandbox: 404', async () => {
      const answer = await api.send('POST', `/v1/sandboxes/${id}/ports/${silent}/x`, { a: 1 })
      expect([answer.status, answer.body.error.code]).toEqual([502, 'port_unreachable'])
      expect((await hosted('/', {}, host.replace(String(port), String(silent)))).statusCode).toBe(502)
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/v1/sandboxes/${id}/ports/${silent}/ws`)
      const [, refused] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
      expect(refused.statusCode).toBe(502)
      expect((await api.send('GET', `/v1/sandboxes/sbx-none/ports/${port}/`)).body.error.code).toBe('sandbox_not_found')
      expect((await hosted('/', {}, `${port}-none.localhost`)).statusCode).toBe(404)
    })

    test('connections to the server inside are kept between requests', async () => {
      const before = (await state()).connections as number
      for (let i = 0; i < 10; i++) await state()
      expect((await state()).connections).toBe(before)
    })

    test('bodies stream both ways: what was sent is back before the rest is sent', async () => {
      const { hostname, port: own } = new URL(server.url)
      const sending = request({ host: hostname, port: own, method: 'POST', path: `${new URL(base).pathname}/echo` })
      sending.write('first')
      const [answer] = (await once(sending, 'response')) as [IncomingMessage]
      expect(String((await once(answer, 'data'))[0])).toBe('first')
      sending.write('second')
      expect(String((await once(answer, 'data'))[0])).toBe('second')
      sending.end()
      await once(answer.resume(), 'end')
    })

    test('an upload of 32 MiB arrives whole', async () => {
      const bytes = randomBytes(32 * mib)
      const answer = await fetch(`${base}/upload`, { method: 'PUT', body: bytes })
      expect(await answer.json()).toEqual({ size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') })
    })

    test('Server-Sent Events arrive one by one, and their end is that of the client', async () => {
      const gone = new AbortController()
      const answer = await fetch(`${base}/events`, { signal: gone.signal })
      expect(answer.headers.get('content-type')).toBe('text/event-stream')
      const reader = (answer.body as ReadableStream<Uint8Array>).getReader()
      let seen = ''
      while (!seen.includes('data: 3\n')) seen += new TextDecoder().decode((await reader.read()).value)
      expect(await state()).toMatchObject({ streaming: 1 })
      gone.abort()
      await reader.read().catch(() => undefined)
      expect(await eventually(async () => (await state()).streaming === 0)).toBe(true)
    })

    test('fault 18: a client that goes before the answer ends the request inside', async () => {
      const gone = new AbortController()
      const hanging = fetch(`${base}/hang`, { signal: gone.signal }).catch((error: Error) => error.name)
      expect(await eventually(async () => (await state()).hanging === 1)).toBe(true)
      gone.abort()
      expect(await hanging).toBe('AbortError')
      expect(await eventually(async () => (await state()).hanging === 0)).toBe(true)
    })

    test('a client that does not read makes the server inside wait', async () => {
      const { hostname, port: own } = new URL(server.url)
      const asking = request({ host: hostname, port: own, path: `${new URL(base).pathname}/flood` }).end()
      const [answer] = (await once(asking, 'response')) as [IncomingMessage]
      await once(answer, 'readable')
      let last = -1
      // It has stopped when two looks in a row find the same.
      expect(
        await eventually(async () => {
          const { written = 0 } = await state()
          const stopped = written === last
          last = written
          return stopped
        }),
      ).toBe(true)
      expect(last).toBeLessThan(64 * mib)
      answer.destroy()
    })

    test('an answer that breaks off breaks off for the client too', async () => {
      const answer = await fetch(`${base}/half`)
      await expect(answer.text()).rejects.toThrow()
    })

    test('what is not HTTP is told as such', async () => {
      const answer = await api.send('GET', `/v1/sandboxes/${id}/ports/${port}/nonsense`)
      expect([answer.status, answer.body.error.code]).toEqual([502, 'port_unreachable'])
    })

    test('a WebSocket passes, by path and by host name', async () => {
      for (const open of [
        () => new WebSocket(`${base.replace('http', 'ws')}/ws`),
        () => new WebSocket(`${server.url.replace('http', 'ws')}/ws`, { headers: { host } }),
      ]) {
        const socket = open()
        await once(socket, 'open')
        socket.send('hello')
        const [data, binary] = (await once(socket, 'message')) as [Buffer, boolean]
        expect([data.toString(), binary]).toEqual(['hello', false])
        socket.send(Buffer.alloc(200_000, 7))
        expect(((await once(socket, 'message'))[0] as Buffer).equals(Buffer.alloc(200_000, 7))).toBe(true)
        socket.close(4001, 'done')
        expect((await once(socket, 'close'))[0]).toBe(4001)
      }
      expect(await eventually(async () => (await state()).sockets === 0)).toBe(true)
    })

    test('fault 20: a WebSocket message over the limit closes with 1009', async () => {
      const socket = new WebSocket(`${base.replace('http', 'ws')}/ws`)
      await once(socket, 'open')
      socket.send(Buffer.alloc(256 * 1024 + 1))
      expect((await once(socket, 'close'))[0]).toBe(1009)
    })

    test('fault 21: a WebSocket client that reads nothing is closed, and so is the server inside', async () => {
      const socket = new WebSocket(`${base.replace('http', 'ws')}/ws`)
      await once(socket, 'open')
      socket.send('flood')
      await once(socket, 'message')
      socket.pause()
      expect(await eventually(async () => (await state()).sockets === 0)).toBe(true)
      socket.terminate()
    })

    test('another protocol passes both ways', async () => {
      const { hostname, port: own } = new URL(server.url)
      const asking = request({
        host: hostname,
        port: own,
        path: `${new URL(base).pathname}/raw`,
        headers: { connection: 'upgrade', upgrade: 'shout' },
      }).end()
      const [answer, socket] = (await once(asking, 'upgrade')) as [IncomingMessage, import('node:net').Socket]
      expect(answer.headers.upgrade).toBe('shout')
      socket.write('hello\n')
      expect(String((await once(socket, 'data'))[0])).toBe('HELLO\n')
      socket.destroy()
    })

    test('a request wakes a paused sandbox', async () => {
      expect((await api.send('POST', `/v1/sandboxes/${id}/pause`)).body.item.state).toBe('paused')
      expect((await api.send('GET', `/v1/sandboxes/${id}/ports/${await freePort()}/`)).status).toBe(403)
      expect((await api.item(id)).state).toBe('paused')
      expect((await fetch(`${base}/state`)).status).toBe(200)
      expect((await api.item(id)).state).toBe('running')
    })

    test('the server inside dies in the middle of a request: 502', async () => {
      const mortal = await webSandbox('mortal')
      const answer = await api.send('GET', `/v1/sandboxes/${mortal.id}/ports/${mortal.port}/die`)
      expect([answer.status, answer.body.error.code]).toEqual([502, 'port_unreachable'])
      await api.send('DELETE', `/v1/sandboxes/${mortal.id}`)
    })

    test('the sandbox is deleted in the middle: whoever waits is told, whoever reads is cut off, and WebSockets end', async () => {
      const doomed = await webSandbox('doomed')
      const path = `/v1/sandboxes/${doomed.id}/ports/${doomed.port}`
      const hanging = api.send('GET', `${path}/hang`)
      const streaming = await fetch(`${server.url}${path}/events`)
      const reader = (streaming.body as ReadableStream<Uint8Array>).getReader()
      await reader.read()
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}${path}/ws`)
      await once(socket, 'open')
      const stateThere = async () => (await (await fetch(`${server.url}${path}/state`)).json()) as Record<string, number>
      expect(await eventually(async () => (await stateThere()).hanging === 1)).toBe(true)
      const closed = once(socket, 'close')
      expect((await api.send('DELETE', `/v1/sandboxes/${doomed.id}`)).status).toBe(204)
      const answer = await hanging
      expect([answer.status, answer.body.error.code]).toEqual([503, 'sandbox_unavailable'])
      await expect(
        (async () => {
          while (!(await reader.read()).done);
        })(),
      ).rejects.toThrow()
      expect((await closed)[0]).toBe(1006)
      expect((await api.send('GET', `${path}/state`)).status).toBe(404)
    })
  })
}

test('with API keys a port needs one too, and the server inside never sees it', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 } })
  const port = await freePort()
  const { id } = await new Api(server.url).sandbox({ ports: [port], command: ['python3', '-c', insideServer, String(port)] })
  const url = `${server.url}/v1/sandboxes/${id}/ports/${port}`
  expect(await eventually(async () => (await fetch(`${url}/state`)).status === 200)).toBe(true)
  const { key } = await server.thaw.keys.create({ name: 'first' })
  for (const path of [url, `${url}/request`]) expect((await fetch(path)).status).toBe(401)
  const { hostname, port: own } = new URL(server.url)
  const hosted = request({ host: hostname, port: own, path: '/health', headers: { host: `${port}-${id}.localhost` } }).end()
  expect(((await once(hosted, 'response')) as [IncomingMessage])[0].statusCode).toBe(401)
  const socket = new WebSocket(`${url.replace('http', 'ws')}/ws`)
  expect(((await once(socket, 'unexpected-response')) as [unknown, IncomingMessage])[1].statusCode).toBe(401)
  for (const headers of [{ authorization: `Bearer ${key}` }, { 'x-api-key': key }]) {
    const answer = await fetch(`${url}/request`, { headers: { ...headers, 'x-other': 'kept' } as Record<string, string> })
    const seen = JSON.stringify(await answer.json())
    expect(seen).toContain('x-other')
    expect(seen).not.toContain(key)
  }
  await fetch(`${server.url}/v1/sandboxes/${id}`, { method: 'DELETE', headers: { 'x-api-key': key } })
})

test('a domain of the operator leads to ports, and to nothing else', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 }, 'sandboxes.domain': 'apps.example' })
  const { hostname, port: own } = new URL(server.url)
  const ask = async (host: string) => {
    const [answer] = (await once(request({ host: hostname, port: own, path: '/health', headers: { host } }).end(), 'response')) as [
      IncomingMessage,
    ]
    return JSON.parse(await text(answer)).error?.code
  }
  expect(await ask('3000-nobody.apps.example:8080')).toBe('sandbox_not_found')
  for (const host of ['apps.example', 'x.apps.example', '3000-nobody.apps.example.evil.example']) {
    expect(await ask(host)).toBe('forbidden_host')
  }
})
