import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { type ClientHttp2Session, type ClientHttp2Stream, connect as connectHttp2 } from 'node:http2'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { Duplex } from 'node:stream'
import { expect, test } from 'vitest'
import { agentProgram, collect, type Json, startAgent } from '../support/agent.ts'
import { eventually } from '../support/eventually.ts'
import { tempDir } from '../support/temp.ts'

/** Answers with the SHA-256 of all that it got, once the other side has ended its direction. */
async function hashServer() {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const hash = createHash('sha256')
    socket.on('data', (data) => hash.update(data)).on('end', () => socket.end(hash.digest('hex')))
    socket.on('error', () => {})
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: async () => void server.close() }
}

const data = Buffer.alloc(8 << 20, 'some bytes ')
const sum = createHash('sha256').update(data).digest('hex')

async function readAll(stream: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

/** Opens a tunnel by hand: what follows the header belongs to the tunnel. */
async function tunnel(socketPath: string, target: string): Promise<{ head: string; socket: Socket }> {
  const socket = connect({ path: socketPath, allowHalfOpen: true })
  socket.write(`GET /tunnel?${target} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n`)
  let head = Buffer.alloc(0)
  while (!head.includes('\r\n\r\n')) {
    await once(socket, 'readable')
    head = Buffer.concat([head, socket.read() ?? Buffer.alloc(0)])
  }
  return { head: head.toString(), socket }
}

test('a tunnel carries bytes both ways, and the end of one direction', async () => {
  await using agent = await startAgent()
  await using target = await hashServer()
  const { head, socket } = await tunnel(agent.socketPath, `port=${target.port}`)
  expect(head).toMatch(/^HTTP\/1\.1 101 /)
  socket.end(data)
  expect(await readAll(socket)).toBe(sum)

  const toSocket = await tunnel(agent.socketPath, `socket=${encodeURIComponent(agent.socketPath)}`)
  toSocket.socket.write('GET /health HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n')
  expect(await readAll(toSocket.socket)).toMatch(/^HTTP\/1\.1 204 /)
})

test('a tunnel to where nobody listens is 502', async () => {
  await using agent = await startAgent()
  const headers = { connection: 'Upgrade', upgrade: 'tcp' }
  const refused = await agent.call('/tunnel?port=1', { headers })
  expect([refused.status, refused.json.message]).toEqual([502, expect.stringContaining('nothing in the sandbox listens on 127.0.0.1:1')])
  expect((await agent.call('/tunnel?port=70000', { headers })).status).toBe(400)
  expect((await agent.call('/tunnel?port=1')).status).toBe(426)
})

function openBridge(socketPath: string): { child: ChildProcess; session: ClientHttp2Session } {
  const child = spawn(agentProgram, ['bridge', '--socket', socketPath], { stdio: ['pipe', 'pipe', 'inherit'] })
  const { stdin, stdout } = child
  if (!stdin || !stdout) throw new Error('no pipes')
  const session = connectHttp2('http://agent', {
    createConnection: () => Duplex.from({ readable: stdout, writable: stdin }),
    settings: { initialWindowSize: 4 << 20 },
    // Node counts what waits to be sent, for all streams together.
    maxSessionMemory: 1000,
  })
  session.on('error', () => {})
  return { child, session }
}

async function dial(session: ClientHttp2Session, authority: string): Promise<{ status: number; stream: ClientHttp2Stream }> {
  const stream = session.request({ ':method': 'CONNECT', ':authority': authority }, { endStream: false })
  const [headers] = (await once(stream, 'response')) as [Json]
  return { status: headers[':status'], stream }
}

test('a bridge carries many connections over the input and output of one process', async () => {
  await using agent = await startAgent()
  await using target = await hashServer()
  const { child, session } = openBridge(agent.socketPath)
  const sums = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const { status, stream } = await dial(session, `127.0.0.1:${target.port}`)
      expect(status).toBe(200)
      stream.end(data)
      return readAll(stream)
    }),
  )
  expect(new Set(sums)).toEqual(new Set([sum]))
  expect((session.remoteSettings as Json).initialWindowSize).toBeGreaterThanOrEqual(4 << 20)

  // One connection that nobody reads does not hold up the others.
  const stuck = await dial(session, 'agent')
  stuck.stream.pause()
  stuck.stream.write('GET /files?path=/proc/self/exe HTTP/1.1\r\nHost: agent\r\n\r\n'.repeat(2))
  for (const authority of ['agent', `unix:${encodeURIComponent(agent.socketPath)}`]) {
    const { stream } = await dial(session, authority)
    stream.write('GET /health HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n')
    expect(await readAll(stream)).toMatch(/^HTTP\/1\.1 204 /)
  }
  expect((await dial(session, '127.0.0.1:1')).status).toBe(502)
  expect((await dial(session, 'nonsense')).status).toBe(400)
  stuck.stream.close()
  const exited = once(child, 'exit')
  session.destroy()
  child.stdin?.end()
  await exited
})

test('in a bridge a connection goes on in one direction after the other has ended', async () => {
  await using agent = await startAgent()
  let received = ''
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.end('first')
    socket.on('data', (data) => {
      received += data
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { child, session } = openBridge(agent.socketPath)
  const { stream } = await dial(session, `127.0.0.1:${(server.address() as AddressInfo).port}`)
  expect(await readAll(stream.iterator({ destroyOnReturn: false }))).toBe('first')
  stream.end('second')
  expect(await eventually(() => received === 'second')).toBe(true)
  const exited = once(child, 'exit')
  session.destroy()
  child.stdin?.end()
  expect((await exited)[0]).toBe(0)
  server.close()
})

test('before a snapshot streams end by name, connections close, and only resume gets in', async () => {
  await using agent = await startAgent()
  const headers = { 'x-access-token': 'old' }
  await agent.call('/init', { method: 'POST', body: JSON.stringify({ accessToken: 'old' }) })
  const running = await agent.stream('process.Process/Start', { process: { cmd: 'cat' }, tag: 'cat' }, headers)
  await running.messages.next()
  const { watcherId } = (await agent.rpc('filesystem.Filesystem/CreateWatcher', { path: agent.folder }, headers)).json
  const idle = connect(agent.socketPath)
  await once(idle, 'connect')
  const idleClosed = once(idle, 'close')

  const prepared = await agent.call('/snapshot/prepare', { method: 'POST', headers })
  expect([prepared.status, prepared.headers.connection]).toEqual([200, 'close'])
  const ended = await collect(running.messages)
  expect(ended.error).toEqual({ code: 'unavailable', message: expect.stringContaining('snapshot') })
  idle.resume()
  await idleClosed
  expect((await agent.call('/health')).status).toBe(503)
  expect((await agent.rpc('process.Process/List', {}, headers)).json.code).toBe('unavailable')

  const resumed = await agent.call('/snapshot/resume', { method: 'POST', headers, body: JSON.stringify({ accessToken: 'new' }) })
  expect(resumed.status).toBe(200)
  expect((await agent.rpc('process.Process/List', {}, headers)).status).toBe(401)
  const now = { 'x-access-token': 'new' }
  expect((await agent.rpc('process.Process/List', {}, now)).json.processes).toHaveLength(1)
  await agent.rpc('process.Process/SendInput', { process: { tag: 'cat' }, input: { stdin: 'aGk=' } }, now)
  await agent.rpc('process.Process/CloseStdin', { process: { tag: 'cat' } }, now)
  const again = await agent.stream('process.Process/Connect', { process: { tag: 'cat' }, offset: { stdout: 0 } }, now)
  expect((await collect(again.messages)).stdout.toString()).toBe('hi')
  await agent.call(`/files?path=${agent.folder}/after`, { method: 'PUT', headers: now, body: '' })
  const arrived = async () => {
    const { json } = await agent.rpc('filesystem.Filesystem/GetWatcherEvents', { watcherId }, now)
    return json.events.some((event: Json) => event.name === 'after')
  }
  expect(await eventually(arrived)).toBe(true)
})

test('hooks run around a snapshot, and a clone whose hook fails takes no calls', async () => {
  // An /etc of its own, with hooks: the second one fails as long as the file is there.
  const script = `cp /etc/passwd /etc/group "$0" && mount -t tmpfs none /etc && cp "$0/passwd" "$0/group" /etc &&
    mkdir -p /etc/thaw/before-snapshot.d /etc/thaw/after-restore.d &&
    printf '#!/bin/sh\\necho before' > /etc/thaw/before-snapshot.d/10-a &&
    printf '#!/bin/sh\\ntest ! -e /etc/broken || { echo no luck; exit 4; }' > /etc/thaw/after-restore.d/10-b &&
    chmod +x /etc/thaw/*/* && touch /etc/broken && exec "$@"`
  using folder = tempDir()
  const namespace = ['unshare', ...(process.getuid?.() === 0 ? [] : ['--map-root-user']), '--mount']
  await using agent = await startAgent({ before: [...namespace, 'sh', '-c', script, folder.path] })
  const post = (path: string, body: object = {}) => agent.call(path, { method: 'POST', body: JSON.stringify(body) })
  // Whoever was snapshotted and goes on is no clone: nothing has to be made anew in it.
  expect((await post('/snapshot/prepare')).status).toBe(200)
  expect((await post('/snapshot/resume')).json).toEqual({ hooks: [] })
  expect((await post('/snapshot/prepare')).json).toEqual({ hooks: [{ name: '10-a', exitCode: 0, output: 'before\n' }] })
  const failed = await post('/snapshot/resume', { restored: true })
  expect([failed.status, failed.json.message]).toEqual([500, expect.stringContaining('no luck')])
  expect((await agent.call('/health')).status).toBe(503)
  expect(
    (await agent.call('/snapshot/resume', { method: 'POST', body: JSON.stringify({ files: [{ path: '/etc/x', contentBase64: '%' }] }) }))
      .status,
  ).toBe(400)
  execFileSync('nsenter', [
    '--target',
    String(agent.child.pid),
    '--mount',
    ...(process.getuid?.() === 0 ? [] : ['--user']),
    'rm',
    '/etc/broken',
  ])
  expect((await post('/snapshot/resume', { restored: true })).json).toEqual({ hooks: [{ name: '10-b', exitCode: 0, output: '' }] })
  expect((await agent.call('/health')).status).toBe(204)
})

test('stats and metrics say what the sandbox uses', async () => {
  await using agent = await startAgent()
  const { json: stats } = await agent.call('/stats')
  for (const name of ['memory_bytes', 'processes', 'disk_bytes', 'disk_total_bytes']) expect(stats[name], name).toBeGreaterThan(0)
  const { json: metrics } = await agent.call('/metrics')
  expect(metrics).toMatchObject({ cpu_count: expect.any(Number), mem_total: expect.any(Number), disk_total: stats.disk_total_bytes })
  expect(metrics.mem_total_mib).toBe(Math.floor(metrics.mem_total / 2 ** 20))
})
