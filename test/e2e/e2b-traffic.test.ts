import { once } from 'node:events'
import { request } from 'node:http'
import { AuthenticationError, Sandbox } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { anyKey, type DisposableSandbox, e2bOptions, e2bSandbox, killed } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

/** An HTTP server that says what it was asked, on port 3000. */
const web = `
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", 3000), Handler).serve_forever()
`

/** Accepts one WebSocket on port 3001 and repeats its first message, without any library. */
const socket = `
import base64, hashlib, socket
server = socket.create_server(("127.0.0.1", 3001))
while True:
    connection, _ = server.accept()
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        piece = connection.recv(4096)
        if not piece:
            break
        head += piece
    if not head:
        continue
    key = [line.split(b": ")[1] for line in head.split(b"\\r\\n") if line.lower().startswith(b"sec-websocket-key")][0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    connection.sendall(b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\nSec-WebSocket-Accept: " + accept + b"\\r\\n\\r\\n")
    frame = connection.recv(4096)
    length, mask, data = frame[1] & 127, frame[2:6], frame[6:]
    text = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data[:length]))
    connection.sendall(bytes([0x81, len(text)]) + text)
`

interface Echo {
  path: string
  headers: Record<string, string>
}

/** By a host name, which need not resolve here. */
async function askHost(
  server: { url: string },
  host: string,
  path: string,
  headers: Record<string, string> = {},
  method = 'GET',
  body?: string,
) {
  const sent = request(new URL(path, server.url), { method, headers: { ...headers, host } }).end(body)
  const [answer] = await once(sent, 'response')
  let text = ''
  for await (const piece of answer.setEncoding('utf8')) text += piece
  return { status: answer.statusCode as number, text }
}

describe.skipIf(skip !== null)(`traffic of clients of E2B${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let sandbox: DisposableSandbox
  let ids: Record<string, string>

  beforeAll(async () => {
    server = await startServer({ driver: 'oci' })
    sandbox = await e2bSandbox(server)
    ids = { 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '3000' }
    await serve(sandbox)
  })
  afterAll(() => server[Symbol.asyncDispose]())

  async function serve(inside: Sandbox) {
    await inside.files.writeFiles([
      { path: 'web.py', data: web },
      { path: 'echo.py', data: socket },
    ])
    await inside.commands.run('python3 web.py', { background: true })
    await inside.commands.run('python3 echo.py', { background: true })
    const listens = 'python3 -c "import socket; [socket.create_connection((\'127.0.0.1\', p)).close() for p in (3000, 3001)]"'
    expect(
      await eventually(() =>
        inside.commands.run(listens).then(
          () => true,
          () => false,
        ),
      ),
    ).toBe(true)
  }

  test('a port is reached by the host name that the client names', async () => {
    const host = sandbox.getHost(3000)
    expect(host).toBe(`3000-${sandbox.sandboxId}.localhost:${new URL(server.url).port}`)
    const { status, text } = await askHost(server, host, '/a/b?c=d', { 'x-mine': '1', 'x-api-key': anyKey })
    expect(status).toBe(200)
    const { path, headers } = JSON.parse(text) as Echo
    expect(path).toBe('/a/b?c=d')
    expect(headers).toMatchObject({ host, 'x-mine': '1' })
    expect(headers).not.toHaveProperty('x-api-key')
  })

  test('a port is reached by headers, with any path, and from pages of any origin', async () => {
    for (const path of ['/', '/v1/sandboxes', '/health', '/sandboxes']) {
      const echo = (await (
        await fetch(`${server.url}${path}`, { headers: { ...ids, origin: 'https://elsewhere.example' } })
      ).json()) as Echo
      expect(echo.path).toBe(path)
      expect(Object.keys(echo.headers).filter((name) => name.startsWith('e2b-'))).toEqual([])
    }
    const large = 'x'.repeat(3_000_000)
    expect(await (await fetch(`${server.url}/post`, { method: 'POST', headers: ids, body: large })).text()).toBe(large)
    expect((await fetch(server.url, { headers: { ...ids, 'e2b-sandbox-port': '3999' } })).status).toBe(502)
  })

  test('WebSockets pass', async () => {
    for (const [address, headers] of [
      [server.url, { ...ids, 'e2b-sandbox-port': '3001' }],
      [server.url, { host: sandbox.getHost(3001) }],
    ] as const) {
      const client = new WebSocket(address.replace('http', 'ws'), { headers })
      await once(client, 'open')
      client.send('over and out')
      expect(String((await once(client, 'message'))[0])).toBe('over and out')
      client.terminate()
    }
  })

  test('the agent is reached by its host name, and wants its token', async () => {
    const host = sandbox.getHost(49983)
    expect((await askHost(server, host, '/health')).status).toBe(204)
    expect((await askHost(server, host, '/envs')).status).toBe(401)
    const detail = await (await fetch(`${server.url}/sandboxes/${sandbox.sandboxId}`)).json()
    const token = { 'x-access-token': (detail as { envdAccessToken: string }).envdAccessToken }
    expect((await askHost(server, host, '/envs', token)).status).toBe(200)
    // What is between the agent and the server is not for clients.
    for (const path of ['/init', '/snapshot/prepare', '/tunnel?port=3000', '/stats', '/files/tar?path=/']) {
      expect((await askHost(server, host, path, token, 'POST')).status, path).toBe(404)
    }
  })

  test('a silent command says that it lives, and a message that is none is refused', async () => {
    const { envdAccessToken } = (await (await fetch(`${server.url}/sandboxes/${sandbox.sandboxId}`)).json()) as { envdAccessToken: string }
    const start = (message: Buffer) =>
      fetch(`${server.url}/process.Process/Start`, {
        method: 'POST',
        headers: {
          'e2b-sandbox-id': sandbox.sandboxId,
          'x-access-token': envdAccessToken,
          'content-type': 'application/connect+json',
          'connect-protocol-version': '1',
          'keepalive-ping-interval': '1',
        },
        body: new Uint8Array(message),
      })
    const text = JSON.stringify({ process: { cmd: 'sleep', args: ['600'] } })
    const head = Buffer.alloc(5)
    head.writeUInt32BE(text.length, 1)
    const answer = await start(Buffer.concat([head, Buffer.from(text)]))
    let heard = ''
    for await (const piece of answer.body ?? []) {
      heard += Buffer.from(piece).toString('latin1')
      if (heard.includes('keepalive')) break
    }
    expect(heard).toMatch(/\{"event":\{"start":\{"pid":\d+\}\}\}[\s\S]*\{"event":\{"keepalive":\{\}\}\}/)
    for (const none of [Buffer.from('{}'), Buffer.alloc(0), Buffer.concat([head, Buffer.alloc(text.length, 'x')])])
      expect(await (await start(none)).text()).toContain('invalid_argument')
  })

  test('whoever has no token wakes no sandbox', async () => {
    await using sleeper = await e2bSandbox(server)
    await sleeper.files.write('kept', 'yes')
    const signed = await sleeper.downloadUrl('kept')
    await sleeper.pause()
    const headers = { 'e2b-sandbox-id': sleeper.sandboxId }
    for (const path of ['/envs', '/files?path=kept', '/health']) expect((await fetch(server.url + path, { headers })).status).toBe(502)
    expect((await sleeper.getInfo()).state).toBe('paused')
    expect(await (await fetch(signed, { headers })).text()).toBe('yes')
    expect((await sleeper.getInfo()).state).toBe('running')
  })

  test('a sandbox that is not there is what the proxy of E2B says', async () => {
    for (const port of ['49983', '3000']) {
      const answer = await fetch(`${server.url}/health`, { headers: { 'e2b-sandbox-id': 'sbx-none', 'e2b-sandbox-port': port } })
      expect(answer.status).toBe(502)
      expect(await answer.json()).toEqual({ sandboxId: 'sbx-none', message: 'The sandbox was not found', code: 502 })
    }
    const { status } = await askHost(server, `49983-sbx-none.localhost`, '/health')
    expect(status).toBe(502)
  })

  test('names that were rebound to this machine are refused', async () => {
    expect((await askHost(server, 'evil.example', '/', ids)).status).toBe(403)
    expect((await askHost(server, 'evil.example', '/health', { ...ids, 'e2b-sandbox-port': '49983' })).status).toBe(403)
  })

  test('ports that are not public want a token', async () => {
    await using shut = await e2bSandbox(server, { network: { allowPublicTraffic: false } })
    await serve(shut)
    expect(shut.trafficAccessToken).toBeTypeOf('string')
    expect(sandbox.trafficAccessToken).toBeUndefined()
    const host = shut.getHost(3000)
    expect((await askHost(server, host, '/', { 'e2b-traffic-access-token': shut.trafficAccessToken as string })).status).toBe(200)
    // Without keys, whoever is on this machine may do everything; pages of other origins may not.
    expect((await askHost(server, host, '/', { origin: 'https://elsewhere.example' })).status).toBe(403)
    expect(
      (await askHost(server, host, '/', { origin: 'https://elsewhere.example', 'e2b-traffic-access-token': 'x'.repeat(64) })).status,
    ).toBe(403)
  })

  test('an open sandbox, as older clients make them, wants no token', async () => {
    const created = await fetch(`${server.url}/sandboxes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-api-key': anyKey },
      body: JSON.stringify({ templateID: 'base', secure: false, timeout: 60 }),
    })
    expect(created.status).toBe(201)
    const item = (await created.json()) as { sandboxID: string; envdAccessToken?: string }
    expect(item).not.toHaveProperty('envdAccessToken')
    const open = killed(await Sandbox.connect(item.sandboxID, e2bOptions(server)))
    await using _ = open
    expect((await open.commands.run('echo open')).stdout).toBe('open\n')
    await open.files.write('a', 'b')
    const url = await open.downloadUrl('a')
    expect(url).not.toContain('signature')
    const headers = { 'e2b-sandbox-id': item.sandboxID }
    expect(await (await fetch(url, { headers })).text()).toBe('b')
    // A page elsewhere may send simple requests to this machine: those are refused.
    expect((await fetch(url, { headers: { ...headers, origin: 'https://elsewhere.example' } })).status).toBe(403)
    // The second version of the API knows secure ones alone.
    const second = await fetch(`${server.url}/v2/sandboxes`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ templateID: 'base', secure: false }),
    })
    const secured = (await second.json()) as { sandboxID: string; envdAccessToken?: string }
    expect(secured.envdAccessToken).toBeTypeOf('string')
    await Sandbox.kill(secured.sandboxID, e2bOptions(server))
  })
})

describe.skipIf(skip !== null)(`keys of clients of E2B${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  test('where keys are needed, a client shows its own, and sees what is its tenant’s', async () => {
    await using server = await startServer({ driver: 'oci' })
    const make = async (name: string, tenant: string, key?: string) => {
      const answer = await fetch(`${server.url}/v1/api-keys`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...(key === undefined ? {} : { 'x-api-key': key }) },
        body: JSON.stringify({ name, tenant, ...(key === undefined ? { role: 'admin' } : {}) }),
      })
      return ((await answer.json()) as { item: { key: string } }).item.key
    }
    const admin = await make('admin', 'default')
    const mine = await make('mine', 'one', admin)
    const other = await make('other', 'two', admin)

    await expect(Sandbox.create(e2bOptions(server))).rejects.toThrow(AuthenticationError)
    const refused = await fetch(`${server.url}/v2/sandboxes`, { headers: { 'x-api-key': anyKey } })
    expect(await refused.json()).toMatchObject({ code: 401, error_code: 'unauthorized' })

    const sandbox = killed(await Sandbox.create(e2bOptions(server, mine)))
    await using _ = sandbox
    expect((await sandbox.commands.run('whoami')).stdout).toBe('user\n')
    expect(await Sandbox.kill(sandbox.sandboxId, e2bOptions(server, other))).toBe(false)
    expect(await Sandbox.list(e2bOptions(server, other)).nextItems()).toEqual([])
    await expect(Sandbox.connect(sandbox.sandboxId, e2bOptions(server, other))).rejects.toThrow()
    expect(await Sandbox.list(e2bOptions(server, mine)).nextItems()).toHaveLength(1)

    // Ports are public unless they are not to be.
    expect((await askHost(server, sandbox.getHost(3000), '/')).status).toBe(502)
    await using shut = killed(await Sandbox.create({ ...e2bOptions(server, mine), network: { allowPublicTraffic: false } }))
    expect((await askHost(server, shut.getHost(3000), '/')).status).toBe(401)
    expect((await askHost(server, shut.getHost(3000), '/', { 'x-api-key': other })).status).toBe(404)
    expect((await askHost(server, shut.getHost(3000), '/', { 'x-api-key': mine })).status).toBe(502)
    expect((await askHost(server, shut.getHost(3000), '/', { 'e2b-traffic-access-token': shut.trafficAccessToken as string })).status).toBe(
      502,
    )
  })
})
