import { execFile, spawn } from 'node:child_process'
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { readdir, readFile } from 'node:fs/promises'
import { type IncomingMessage, request } from 'node:http'
import { connect } from 'node:net'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'
import { json, text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { Thaw } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { image, type Lab, openLab, ports } from '../../examples/remote-dev/main.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const run = promisify(execFile)
const skip = await whyNoDriver('oci')
const mib = 1024 * 1024

describe.skipIf(skip !== null)(`the example remote-dev${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let lab: Lab

  // The first time on a machine, its image is built.
  beforeAll(async () => {
    server = await startServer({ driver: 'oci', pools: { size: 0 } })
    lab = await openLab(server.thaw)
  }, 600_000)
  afterAll(async () => {
    await lab?.[Symbol.asyncDispose]()
    await server?.[Symbol.asyncDispose]()
  })

  const psql = async (...args: string[]) => {
    const where = ['-h', lab.postgresql.host, '-p', String(lab.postgresql.port), '-U', 'postgres']
    const env = { ...process.env, PGPASSWORD: lab.password }
    return (await run('psql', [...where, '-XAt', '-v', 'ON_ERROR_STOP=1', ...args], { env, maxBuffer: 64 * mib })).stdout
  }
  const redis = async (...args: string[]) => {
    const where = ['-h', lab.redis.host, '-p', String(lab.redis.port)]
    const env = { ...process.env, REDISCLI_AUTH: lab.password }
    return (await run('redis-cli', [...where, ...args], { env, maxBuffer: 64 * mib })).stdout.trim()
  }

  /** Host names below localhost, which nothing here resolves: the connection is to the server, the name is its Host. */
  const hostOf = (port: number) => `${port}-${lab.sandbox.id}.localhost:${new URL(server.url).port}`
  const hosted = (port: number, path: string, method = 'GET') =>
    new Promise<IncomingMessage>((resolve, reject) => {
      const { hostname, port: own } = new URL(server.url)
      const headers = { host: hostOf(port), authorization: `token ${lab.password}` }
      request({ host: hostname, port: own, path, method, headers }, resolve).once('error', reject).end()
    })
  const hostedSocket = (port: number, path: string) =>
    new WebSocket(`${server.url.replace('http', 'ws')}${path}`, {
      headers: { host: hostOf(port), authorization: `token ${lab.password}` },
      origin: `http://${hostOf(port)}`,
    })
  const pathSocket = (port: number, path: string) =>
    new WebSocket(`${lab.sandbox.url(port).replace('http', 'ws')}${path.slice(1)}`, { headers: { authorization: `token ${lab.password}` } })

  /** Runs code in a kernel, as notebooks do (Jupyter messaging protocol 5.3 over WebSocket), and gives what it printed. */
  async function execute(socket: WebSocket, code: string): Promise<string> {
    const id = randomUUID()
    const header = { msg_id: id, msg_type: 'execute_request', session: id, username: '', version: '5.3', date: new Date().toISOString() }
    const content = { code, silent: false, store_history: true, user_expressions: {}, allow_stdin: false, stop_on_error: true }
    let printed = ''
    const done = new Promise<string>((resolve, reject) => {
      socket.on('close', (code) => reject(new Error(`closed with ${code}`)))
      socket.on('message', (data) => {
        const message = JSON.parse(String(data))
        if (message.parent_header?.msg_id !== id) return
        if (message.msg_type === 'stream') printed += message.content.text
        if (message.msg_type === 'error') reject(new Error(message.content.evalue))
        if (message.msg_type === 'status' && message.content.execution_state === 'idle') resolve(printed)
      })
    })
    socket.send(JSON.stringify({ header, parent_header: {}, metadata: {}, content, channel: 'shell', buffers: [] }))
    return done
  }

  test('a notebook kernel executes cells over its WebSocket, by host name and by path, and keeps its state', async () => {
    const page = await hosted(ports.notebook, '/tree')
    expect([page.statusCode, (await text(page)).includes('<title>Home Page')]).toEqual([200, true])
    const { id } = (await json(await hosted(ports.notebook, '/api/kernels', 'POST'))) as { id: string }
    const first = hostedSocket(ports.notebook, `/api/kernels/${id}/channels`)
    await once(first, 'open')
    expect(await execute(first, 'import os\nx = 6 * 7\nprint(x, os.environ["THAW_SANDBOX_ID"])')).toBe(`42 ${lab.sandbox.id}\n`)
    await expect(execute(first, '1 / 0')).rejects.toThrow('division by zero')
    first.close()
    const second = pathSocket(ports.notebook, `/api/kernels/${id}/channels`)
    await once(second, 'open')
    expect(await execute(second, 'print(x + 1)')).toBe('43\n')
    second.close()
  })

  test('a stranger gets no kernel: the token is asked for', async () => {
    const answer = await fetch(`${lab.sandbox.url(ports.notebook)}api/kernels`)
    expect(answer.status).toBe(403)
  })

  test('psql runs queries, several at a time and over large results', async () => {
    expect(await psql('-c', 'create table words (id int, word text)')).toBe('CREATE TABLE\n')
    await psql('-c', 'insert into words select i, md5(i::text) from generate_series(1, 100000) i; analyze words')
    const rows = await Promise.all([1, 2, 3, 4].map(() => psql('-c', 'select * from words order by id')))
    const words = Array.from(
      { length: 100_000 },
      (_, i) =>
        `${i + 1}|${createHash('md5')
          .update(String(i + 1))
          .digest('hex')}\n`,
    ).join('')
    for (const row of rows) expect(row === words).toBe(true)
    await expect(psql('-c', 'select * from nowhere')).rejects.toThrow('relation "nowhere" does not exist')
    await expect(
      run('psql', ['-h', lab.postgresql.host, '-p', String(lab.postgresql.port), '-U', 'postgres', '-w', '-c', 'select 1']),
    ).rejects.toThrow('no password supplied')
  })

  test('redis-cli sets and gets, and a value of many megabytes comes back whole', async () => {
    expect(await redis('PING')).toBe('PONG')
    expect(await redis('SET', 'greeting', 'hello')).toBe('OK')
    expect(await redis('GET', 'greeting')).toBe('hello')
    // More than fits into the buffers on the way, so that somebody has to wait.
    const value = randomBytes(12 * mib).toString('hex')
    const sending = execFile('redis-cli', ['-h', lab.redis.host, '-p', String(lab.redis.port), '-x', 'SET', 'large'], {
      env: { ...process.env, REDISCLI_AUTH: lab.password },
    })
    sending.stdin?.end(value)
    expect((await text(sending.stdout as Readable)).trim()).toBe('OK')
    expect((await redis('GET', 'large')) === value).toBe(true)
  })

  test('the web terminal echoes over its WebSocket, and its page comes with its scripts', async () => {
    expect(await text(await hosted(ports.terminal, '/'))).toContain('xterm/xterm.js')
    expect((await hosted(ports.terminal, '/xterm/xterm.js')).statusCode).toBe(200)
    for (const open of [hostedSocket, pathSocket]) {
      const socket = open(ports.terminal, '/socket')
      let screen = ''
      socket.on('message', (data) => {
        const [kind, output] = JSON.parse(String(data))
        if (kind === 'stdout') screen += output
      })
      await once(socket, 'open')
      socket.send(JSON.stringify(['set_size', 33, 111]))
      socket.send(JSON.stringify(['stdin', 'echo $((6 * 7)) $(stty size) $THAW_SANDBOX_ID\r']))
      // What was typed comes back, and then what it gave.
      expect(await eventually(() => screen.includes(`42 33 111 ${lab.sandbox.id}`))).toBe(true)
      expect(screen).toContain('echo $((6 * 7))')
      socket.close()
    }
  })

  test('thaw sandbox forward leads clients to the sandbox until Ctrl-C', async () => {
    const main = new URL('../../packages/cli/bin/thaw.mjs', import.meta.url).pathname
    const child = spawn(process.execPath, [main, 'sandbox', 'forward', 'lab', `0:${ports.redis}`, `0:${ports.postgresql}`, '--json'], {
      env: { ...process.env, THAW_URL: server.url },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const exited = once(child, 'exit')
    const [line] = (await Promise.race([once(createInterface(child.stdout), 'line'), exited.then(() => ['{"forwards":[]}'])])) as [string]
    const { forwards } = JSON.parse(line) as { forwards: { local: string; port: number }[] }
    expect(forwards.map(({ port }) => port)).toEqual([ports.redis, ports.postgresql])
    const [host = '', port = ''] = (forwards[0]?.local ?? '').split(':')
    const { stdout } = await run('redis-cli', ['-h', host, '-p', port, 'PING'], { env: { ...process.env, REDISCLI_AUTH: lab.password } })
    expect(stdout).toBe('PONG\n')
    child.kill('SIGINT')
    expect((await exited)[0]).toBe(0)
    await expect(run('redis-cli', ['-h', host, '-p', port, 'PING'])).rejects.toThrow('Connection refused')
  })

  test('thaw knows nothing of an image of packages until an admin builds it, and what is built may be used by everyone', async () => {
    // A server with keys asks for them from then on.
    await using keyed = await startServer({ driver: 'oci', pools: { size: 0 } })
    const admin = new Thaw({ url: keyed.url, apiKey: (await keyed.thaw.keys.create({ name: 'admin' })).key })
    const { key } = await admin.keys.create({ name: 'member', role: 'member', tenant: 'team' })
    const member = new Thaw({ url: keyed.url, apiKey: key })
    const refused = { code: 'image_unresolvable', message: expect.stringContaining('was not built') }
    await expect(member.images.create('apt:never-built')).rejects.toMatchObject(refused)
    await expect(admin.sandboxes.create({ image: 'apt:never-built' })).rejects.toMatchObject(refused)
    await expect(admin.sandboxes.create({ image: 'apt:x;y' })).rejects.toMatchObject({ code: 'image_unresolvable' })
    // The order of the names makes no other image.
    const packages = image.slice('apt:'.length).split(',').reverse()
    await using sandbox = await member.sandboxes.create({ image: `apt:${packages.join(',')}`, network: 'none' })
    expect((await sandbox.exec(['psql', '--version'])).stdout).toContain('PostgreSQL')
  })

  test('the services stop with the sandbox', async () => {
    const names = ['postgres', 'redis-server', 'jupyter-notebook', 'ipykernel', 'terminal.py']
    expect((await commandsIn(lab.sandbox.id)).map((line) => names.find((name) => line.includes(name)))).toEqual(
      expect.arrayContaining(names),
    )
    const session = connect(lab.redis.port, lab.redis.host)
    session.on('error', () => undefined)
    await once(session, 'connect')
    session.write('PING\r\n')
    await once(session, 'data')
    await lab.sandbox.stop()
    expect(await commandsIn(lab.sandbox.id)).toEqual([])
    // Clients hear it.
    await new Promise((resolve) => (session.closed ? resolve(null) : session.once('close', resolve)))
    await expect(redis('PING')).rejects.toThrow()
  })
})

/** Command lines of the processes of this machine that belong to a sandbox. */
async function commandsIn(sandboxId: string): Promise<string[]> {
  const lines = await Promise.all(
    (await readdir('/proc'))
      .filter((name) => /^\d+$/.test(name))
      .map(async (pid) => {
        try {
          const groups = await readFile(`/proc/${pid}/cgroup`, 'latin1')
          return groups.includes(`/${sandboxId}`) ? await readFile(`/proc/${pid}/cmdline`, 'latin1') : ''
        } catch {
          // It ended meanwhile.
          return ''
        }
      }),
  )
  return lines.filter((line) => line !== '').map((line) => line.replaceAll('\0', ' '))
}
