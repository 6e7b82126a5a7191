import { once } from 'node:events'
import { type IncomingMessage, request as sendRequest } from 'node:http'
import { Readable } from 'node:stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { eventually } from '../support/eventually.ts'
import { sendRaw } from '../support/http.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { webServerFolder } from '../support/web-server.ts'

const mib = 1024 * 1024

interface State {
  connections: number
  hanging: number
  aborted: number
  written: number
  sockets: number
}

/** Functions that are web servers, over each driver. */
for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`web servers over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let made = 0
    const folder = webServerFolder()
    /** Shared by the tests that leave it as it was. */
    let shared: string

    beforeAll(async () => {
      server = await startServer({ driver, limits: { queue_length: 1 } })
      shared = await deploy()
    })
    afterAll(() => server[Symbol.asyncDispose]())

    async function deploy(config: object = {}): Promise<string> {
      const name = `web${++made}`
      await server.thaw.functions.create({
        name,
        runtime: 'node',
        contract: 'http',
        code: { dir: folder },
        scaling: { concurrency: 50, max_instances: 1 },
        ...config,
      } as never)
      return name
    }
    const call = (name: string, path: string, init: RequestInit = {}) => fetch(`${server.url}/fn/${name}${path}`, init)
    const state = async (name: string) => (await (await call(name, '/state')).json()) as State
    const record = (answer: { headers: Headers }) => server.thaw.invocations.get(answer.headers.get('thaw-invocation-id') ?? '')
    const instances = async (name: string) => (await server.thaw.functions.get(name)).instances
    const newest = async (name: string, status = 'failed') => {
      const answer = await fetch(`${server.url}/v1/invocations?function=${name}&status=${status}`)
      return ((await answer.json()) as { items: { id: string; status: string; error: { code: string } | null }[] }).items[0]
    }
    /** A request by node:http, which hands out the answer while it arrives. */
    const open = (name: string, path: string, headers: Record<string, string> = {}): Promise<IncomingMessage> =>
      new Promise((resolve, reject) => {
        sendRequest(`${server.url}/fn/${name}${path}`, { headers }, resolve).on('error', reject).end()
      })
    const dial = (name: string, path = '/ws', options = {}) =>
      new WebSocket(`${server.url.replace('http', 'ws')}/fn/${name}${path}`, options)

    test('requests reach the server with their method, path and query, and answers come back as they are', async () => {
      const answer = await call(shared, '/request?a=1&b=%20', { method: 'DELETE', headers: { 'X-Mine': 'yes' } })
      expect(await answer.json()).toMatchObject({ method: 'DELETE', url: '/request?a=1&b=%20', headers: { 'x-mine': 'yes' } })
      const teapot = await call(shared, '/answer')
      expect(teapot.status).toBe(418)
      expect(await teapot.text()).toBe('teapot')
      expect(teapot.headers.getSetCookie()).toEqual(['a=1', 'b=2'])
      expect(teapot.headers.get('x-twice')).toBe('1, 2')
      const nothing = await fetch(`${server.url}/fn/${shared}`)
      expect(await nothing.text()).toBe('nothing at /')
    })

    test('fault 23: headers of the connection pass neither way, nor does what only the platform says', async () => {
      const { hostname, port } = new URL(server.url)
      const raw = await sendRaw(
        server.url,
        `GET /fn/${shared}/request HTTP/1.1\r\nHost: ${hostname}:${port}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\n` +
          `Forwarded: for=1.2.3.4\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nThaw-Invocation-Id: forged\r\nX-Twice: 1\r\nX-Twice: 2\r\n\r\n`,
      )
      const seen = JSON.parse(raw.body.slice(raw.body.indexOf('{'), raw.body.lastIndexOf('}') + 1)) as {
        headers: Record<string, string>
        raw: string[]
      }
      expect(Object.keys(seen.headers).sort()).toEqual(
        [
          'connection',
          'host',
          'thaw-invocation-id',
          'x-forwarded-for',
          'x-forwarded-host',
          'x-forwarded-prefix',
          'x-forwarded-proto',
          'x-twice',
        ].sort(),
      )
      expect(seen.headers).toMatchObject({
        host: `${hostname}:${port}`,
        'x-forwarded-for': '127.0.0.1',
        'x-forwarded-proto': 'http',
        'x-forwarded-host': `${hostname}:${port}`,
        'x-forwarded-prefix': `/fn/${shared}`,
        'thaw-invocation-id': expect.stringMatching(/^inv-/),
      })
      expect(seen.raw.filter((text) => text === 'X-Twice')).toHaveLength(2)
      const answer = await call(shared, '/answer')
      expect(answer.headers.get('x-secret')).toBeNull()
      expect(answer.headers.get('proxy-authenticate')).toBeNull()
      expect(answer.headers.get('thaw-invocation-id')).toMatch(/^inv-/)
    })

    test('fault 10: requests that could be read in two ways reach no server', async () => {
      const host = new URL(server.url).host
      const smuggled = 'GET /fn/other/ HTTP/1.1\r\nHost: x\r\n\r\n'
      const heads = [
        `Content-Length: 5\r\nTransfer-Encoding: chunked\r\n`,
        `Content-Length: 5\r\nContent-Length: 6\r\n`,
        `Transfer-Encoding: chunked, identity\r\n`,
        `X-Bad: a\rb\r\n`,
        `X-Bad\r\n : folded\r\n`,
      ]
      for (const head of heads) {
        const answer = await sendRaw(server.url, `POST /fn/${shared}/echo HTTP/1.1\r\nHost: ${host}\r\n${head}\r\n0\r\n\r\n${smuggled}`)
        expect([head, answer.status]).toEqual([head, 400])
      }
      // A Connection header cannot take the framing away.
      const answer = await sendRaw(
        server.url,
        `GET /fn/${shared}/request HTTP/1.1\r\nHost: ${host}\r\nConnection: content-length, close\r\nContent-Length: 4\r\n\r\nbody`,
      )
      expect(answer.status).toBe(200)
      expect(answer.body).toContain('"content-length":"4"')
    })

    test('the first request is cold, the next reuses the instance and its connection; each has a record', async () => {
      const name = await deploy()
      const first = await call(name, '/json')
      expect(first.headers.get('thaw-boot-method')).toMatch(/cold|pooled/)
      expect(first.headers.get('server-timing')).toMatch(/^queue;dur=[\d.]+, boot;dur=[\d.]+, init;dur=[\d.]+, run;dur=[\d.]+$/)
      expect(await first.json()).toEqual({ ok: true })
      for (let i = 0; i < 5; i++) expect((await call(name, '/hello')).headers.get('thaw-boot-method')).toBe('reused')
      expect((await state(name)).connections).toBe(1)
      expect(await record(first)).toMatchObject({ status: 'succeeded', trigger: 'http', result: { ok: true }, result_bytes: 11 })
      await call(name, '/echo', { method: 'POST', body: 'x' })
      expect((await state(name)).connections).toBe(2)
    })

    test('an invocation is a POST to / of the server', async () => {
      const answer = await fetch(`${server.url}/v1/functions/${shared}/invoke?x=1`, { method: 'POST', body: 'hi' })
      expect([answer.status, await answer.text()]).toEqual([404, 'nothing at /'])
      expect(await record(answer)).toMatchObject({ trigger: 'invoke', status: 'succeeded', request_bytes: 2 })
    })

    test('20 MiB go up and come down at the same time, and nothing is kept in between', async () => {
      let sent = 0
      const upload = Readable.from(
        (function* () {
          for (; sent < 20 * mib; sent += 64 * 1024) yield Buffer.alloc(64 * 1024, 'thaw')
        })(),
      )
      const before = process.memoryUsage().rss
      const answer = await call(shared, '/echo', { method: 'POST', body: Readable.toWeb(upload) as never, duplex: 'half' } as never)
      let received = 0
      for await (const piece of answer.body as ReadableStream<Uint8Array>) received += piece.length
      expect(received).toBe(20 * mib)
      expect(process.memoryUsage().rss - before).toBeLessThan(200 * mib)
      expect(await record(answer)).toMatchObject({ request_bytes: 20 * mib, result_bytes: 20 * mib, result: null })
    })

    test('server-sent events arrive one by one, as they are sent', async () => {
      const answer = await open(shared, '/events')
      expect(answer.headers['content-type']).toBe('text/event-stream')
      for (const event of ['one', 'two', 'three']) {
        const arrived = once(answer.setEncoding('utf8'), 'data')
        await call(shared, '/event', { headers: { 'x-event': event } })
        expect((await arrived)[0]).toBe(`data: ${event}\n\n`)
      }
      answer.destroy()
    })

    test('a slow reader slows the server down, which goes on when it reads', async () => {
      const name = await deploy()
      const answer = await open(name, '/endless')
      answer.pause()
      let before = -1
      // What the sockets between hold is finite: the server stops by itself.
      expect(
        await eventually(async () => {
          const { written } = await state(name)
          const stopped = written === before
          before = written
          return stopped
        }),
      ).toBe(true)
      expect(before).toBeLessThan(48 * mib)
      answer.resume()
      expect(await eventually(async () => (await state(name)).written > before + 32 * mib)).toBe(true)
      answer.destroy()
    })

    test('fault 18: when the client goes away the request is ended, and the instance serves on', async () => {
      const name = await deploy()
      const gone = new AbortController()
      const answer = call(name, '/hang', { signal: gone.signal }).catch(() => 'aborted')
      expect(await eventually(async () => (await state(name)).hanging === 1)).toBe(true)
      const id = (await newest(name, 'running'))?.id ?? ''
      gone.abort()
      expect(await answer).toBe('aborted')
      expect(await eventually(async () => (await state(name)).aborted === 1)).toBe(true)
      expect((await server.thaw.invocations.get(id)).status).toBe('cancelled')
      expect((await call(name, '/hello')).headers.get('thaw-boot-method')).toBe('reused')
    })

    test('a request that takes too long is 504; a server that answers others goes on, one that hangs is replaced', async () => {
      const name = await deploy({ timeout_ms: 600 })
      await call(name, '/hello')
      const slow = call(name, '/hang')
      expect(await eventually(async () => (await state(name)).hanging === 1)).toBe(true)
      expect((await slow).status).toBe(504)
      expect((await call(name, '/hello')).headers.get('thaw-boot-method')).toBe('reused')
      const spinning = await call(name, '/spin')
      expect(spinning.status).toBe(504)
      expect(await record(spinning)).toMatchObject({ status: 'timed_out', error: { code: 'timed_out' } })
      expect((await call(name, '/hello')).headers.get('thaw-boot-method')).not.toBe('reused')
    })

    test('at its capacity a function queues, then refuses with 429', async () => {
      const name = await deploy({ scaling: { concurrency: 1, max_instances: 1 } })
      const busy = new AbortController()
      await call(name, '/hello')
      const hanging = call(name, '/hang', { signal: busy.signal }).catch(() => null)
      expect(await eventually(async () => (await instances(name)).busy === 1)).toBe(true)
      const queued = call(name, '/hello')
      expect(await eventually(async () => (await call(name, '/hello')).status === 429)).toBe(true)
      busy.abort()
      await hanging
      expect((await queued).status).toBe(200)
    })

    test('fault 16: a body that is too large is 413, announced or not', async () => {
      await using small = await startServer({ driver, limits: { max_payload_bytes: 100_000 } })
      await small.thaw.functions.create({ name: 'small', runtime: 'node', contract: 'http', code: { dir: folder } } as never)
      const send = (body: unknown) => fetch(`${small.url}/fn/small/echo`, { method: 'POST', body, duplex: 'half' } as never)
      expect((await send(Buffer.alloc(100_001))).status).toBe(413)
      const pieces = Readable.from([Buffer.alloc(60_000), Buffer.alloc(60_000)])
      const answer = await send(Readable.toWeb(pieces)).then(
        (given) =>
          given.text().then(
            () => given.status,
            () => 'broken off',
          ),
        () => 'broken off',
      )
      expect([413, 'broken off']).toContain(answer)
      expect((await send(Buffer.alloc(1000))).status).toBe(200)
    })

    test('a server that drops the connection fails the request, not the instance; half an answer is broken off', async () => {
      const answer = await call(shared, '/drop')
      expect(answer.status).toBe(502)
      expect(await answer.json()).toMatchObject({ error: { code: 'function_crashed' } })
      const half = await call(shared, '/half')
      await expect(half.text()).rejects.toThrow()
      expect(await eventually(async () => (await record(half)).status === 'failed')).toBe(true)
      expect((await call(shared, '/hello')).headers.get('thaw-boot-method')).toBe('reused')
    })

    test('the instance ends with its program', async () => {
      const name = await deploy()
      const answer = await call(name, '/exit')
      expect(answer.status).toBe(502)
      expect(await record(answer)).toMatchObject({ status: 'failed', error: { code: 'function_crashed' } })
      expect((await call(name, '/hello')).headers.get('thaw-boot-method')).not.toBe('reused')
      const logs = await (await fetch(`${server.url}/v1/functions/${name}/logs`)).text()
      expect(logs).toContain('node exited with code 3.')
      expect(logs).toContain('listening')
    })

    test('WebSockets: frames pass both ways, and the invocation lasts as long as the socket, beyond its time limit', async () => {
      const name = await deploy({ timeout_ms: 300 })
      const socket = dial(name)
      const messages: string[] = []
      socket.on('message', (data) => messages.push(String(data)))
      await once(socket, 'open')
      expect(await eventually(() => messages.length === 1)).toBe(true)
      const { invocation } = JSON.parse(messages[0] as string) as { invocation: string }
      const running = await server.thaw.invocations.get(invocation)
      expect(running).toMatchObject({ status: 'running', trigger: 'http' })
      socket.send('ping')
      const large = Buffer.alloc(2 * mib, 'x')
      socket.send(large.toString())
      expect(await eventually(() => messages.length === 3)).toBe(true)
      expect(messages[1]).toBe('ping')
      expect(messages[2]).toHaveLength(large.length)
      // Longer than the time limit of the version.
      expect(await eventually(() => Date.now() > Date.parse(running.started_at ?? '') + 600)).toBe(true)
      socket.send('still there')
      expect(await eventually(() => messages.at(-1) === 'still there')).toBe(true)
      socket.close(1000)
      await once(socket, 'close')
      expect(await eventually(async () => (await server.thaw.invocations.get(invocation)).status === 'succeeded')).toBe(true)
      expect((await server.thaw.invocations.get(invocation)).request_bytes).toBeGreaterThan(2 * mib)
      expect((await instances(name)).busy).toBe(0)
    })

    test('a WebSocket that the server refuses gets its answer; other functions and unknown ones refuse by themselves', async () => {
      await server.thaw.functions.create({ name: `handler-${driver}`, runtime: 'python', code: { inline: 'def handler(e, c): return 1' } })
      const refusal = async (name: string, path = '/ws', options = {}) => {
        const [, answer] = (await once(dial(name, path, options), 'unexpected-response')) as [unknown, IncomingMessage]
        answer.resume()
        return answer.statusCode
      }
      expect(await refusal(shared, '/elsewhere')).toBe(404)
      expect(await refusal('nobody')).toBe(404)
      expect(await refusal(`handler-${driver}`)).toBe(400)
    })

    test('fault 19: a WebSocket or a request of a foreign page is 403 and reaches no server', async () => {
      const before = (await state(shared)).sockets
      const socket = dial(shared, '/ws', { headers: { origin: 'http://evil.example' } })
      const [, answer] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
      expect(answer.statusCode).toBe(403)
      expect((await call(shared, '/hello', { headers: { origin: 'http://evil.example' } })).status).toBe(403)
      expect((await state(shared)).sockets).toBe(before)
      const own = dial(shared, '/ws', { headers: { origin: server.url } })
      await once(own, 'open')
      own.terminate()
      await once(own, 'close')
      expect(await eventually(async () => (await state(shared)).sockets === before)).toBe(true)
    })

    test('deleting a function closes its sockets', async () => {
      const name = await deploy()
      const socket = dial(name)
      await once(socket, 'open')
      const closed = once(socket, 'close')
      await server.thaw.functions.delete(name)
      expect((await closed)[0]).toBe(1006)
    })

    test('a program that ends under a WebSocket fails its invocation', async () => {
      const name = await deploy()
      const socket = dial(name)
      await once(socket, 'open')
      const closed = once(socket, 'close')
      socket.send('exit')
      await closed
      expect(await eventually(async () => (await newest(name))?.error?.code === 'function_crashed')).toBe(true)
    })

    test('a silent WebSocket is closed, one that is used is not', async () => {
      await using impatient = await startServer({ driver, limits: { websocket_idle_ms: 400 } })
      await impatient.thaw.functions.create({ name: 'idle', runtime: 'node', contract: 'http', code: { dir: folder } } as never)
      const socket = new WebSocket(`${impatient.url.replace('http', 'ws')}/fn/idle/ws`)
      await once(socket, 'open')
      const begun = performance.now()
      for (let i = 0; i < 4; i++) {
        // The answer of the server, or the next moment: whichever is later.
        socket.send('x')
        await Promise.all([once(socket, 'message'), eventually(() => performance.now() - begun > 200 * (i + 1))])
      }
      expect(socket.readyState).toBe(WebSocket.OPEN)
      await once(socket, 'close')
    })

    test('a server that stops waits for no WebSocket', async () => {
      const stopping = await startServer({ driver, shutdown: { drain_ms: 50_000 } })
      await stopping.thaw.functions.create({ name: 'web', runtime: 'node', contract: 'http', code: { dir: folder } } as never)
      const socket = new WebSocket(`${stopping.url.replace('http', 'ws')}/fn/web/ws`)
      await once(socket, 'open')
      const closed = once(socket, 'close')
      await stopping[Symbol.asyncDispose]()
      await closed
    }, 30_000)

    test('a program that never listens fails the deploy, with what it printed', async () => {
      await using impatient = await startServer({ driver, limits: { start_timeout_ms: 2_000 } })
      const create = (source: string) =>
        impatient.thaw.functions.create({ name: 'deaf', runtime: 'node', contract: 'http', code: { inline: source } } as never)
      await expect(create('console.log("on my way"); setInterval(() => {}, 1e6)')).rejects.toMatchObject({
        code: 'start_failed',
        message: expect.stringMatching(/did not listen.*PORT.*on my way/s),
      })
      await expect(create('console.error("no luck"); process.exit(7)')).rejects.toMatchObject({
        code: 'handler_invalid',
        message: expect.stringContaining('exited with code 7'),
        details: { stack: expect.stringContaining('no luck') },
      })
      await expect(impatient.thaw.functions.get('deaf')).rejects.toMatchObject({ code: 'function_not_found' })
    })

    test('Python serves too, over HTTP/1.0 and without keeping connections', async () => {
      const source = `
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"python at " + self.path.encode())
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(201)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])
ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
`
      await server.thaw.functions.create({ name: `py-${driver}`, runtime: 'python', contract: 'http', code: { inline: source } } as never)
      expect(await (await call(`py-${driver}`, '/a?b')).text()).toBe('python at /a?b')
      const answer = await call(`py-${driver}`, '/', { method: 'POST', body: 'abc' })
      expect([answer.status, await answer.text()]).toEqual([201, 'cba'])
      expect((await call(`py-${driver}`, '/', { method: 'PUT' })).status).toBe(501)
    })

    test('a server may listen on a port of its own choice, said by PORT', async () => {
      const port = driver === 'oci' ? '3000' : String(await freePort())
      const name = await deploy({ env: { PORT: port } })
      expect(await (await call(name, '/hello')).text()).toBe('hello')
    })
  })
}

async function freePort(): Promise<number> {
  const { createServer } = await import('node:net')
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as { port: number }
  probe.close()
  await once(probe, 'close')
  return port
}
