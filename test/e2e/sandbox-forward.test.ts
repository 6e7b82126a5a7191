import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { buffer, text } from 'node:stream/consumers'
import type { ThawError } from '@thaw/protocol'
import type { Sandbox } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { eventually } from '../support/eventually.ts'
import { freePort } from '../support/inside-server.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const mib = 1024 * 1024

/** The first line of a connection says what is to be done with it. */
const inside = String.raw`
import hashlib, socket, sys, threading
def echo(c):
    while data := c.recv(65536): c.sendall(data)
def digest(c):
    h = hashlib.sha256()
    while data := c.recv(65536): h.update(data)
    c.sendall(h.hexdigest().encode())
ended = sent = 0
def flood(c):
    global sent
    for _ in range(64):
        c.sendall(bytes(1024 * 1024))
        sent += 1
def hold(c):
    global ended
    try:
        while c.recv(65536): pass
    except OSError: pass
    ended += 1
def count(c): c.sendall(f'{ended} {sent}'.encode())
def first(c):
    c.sendall(b'bye'); c.shutdown(socket.SHUT_WR); c.recv(1)
def serve(c):
    line = b''
    try:
        while not line.endswith(b'\n'): line += c.recv(1) or b'none\n'
        globals().get(line.strip().decode(), socket.socket.close)(c)
    except OSError: pass
    c.close()
server = socket.create_server(('127.0.0.1', int(sys.argv[1])))
while True: threading.Thread(target=serve, args=[server.accept()[0]], daemon=True).start()
`

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`forwards to sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let sandbox: Sandbox
    let port: number
    let silent: number

    beforeAll(async () => {
      server = await startServer({ driver, pools: { size: 0 } })
      port = await freePort()
      silent = await freePort()
      const command = ['python3', '-c', inside, String(port)]
      sandbox = await server.thaw.sandboxes.create({ driver, network: 'none', ports: [port, silent], command })
      await using forward = await sandbox.forward(port)
      expect(await eventually(async () => (await ask(forward.port, 'echo', 'up').catch(() => '')) === 'up')).toBe(true)
    })
    afterAll(() => server?.[Symbol.asyncDispose]())

    /** One connection: says what is to be done, sends, ends, and gives all that comes back. */
    async function ask(at: number, what: string, data: string | Buffer): Promise<string> {
      const socket = connect(at, '127.0.0.1')
      socket.write(`${what}\n`)
      socket.end(data)
      return text(socket)
    }
    /** However it ends. */
    const closed = (socket: Socket) => new Promise((resolve) => (socket.closed ? resolve(null) : socket.once('close', resolve)))
    async function opened(at: number, what: string): Promise<Socket> {
      const socket = connect(at, '127.0.0.1')
      socket.on('error', () => undefined)
      await once(socket, 'connect')
      socket.write(`${what}\n`)
      return socket
    }

    test('what ends its sending first still hears the whole answer', async () => {
      await using forward = await sandbox.forward(port)
      const bytes = randomBytes(16 * mib)
      expect(await ask(forward.port, 'digest', bytes)).toBe(createHash('sha256').update(bytes).digest('hex'))
      expect(await ask(forward.port, 'first', '')).toBe('bye')
    })

    test('bytes go both ways at the same time, whole and in order, on many connections', async () => {
      await using forward = await sandbox.forward(port)
      await Promise.all(
        [1, 2, 3, 4].map(async () => {
          const bytes = randomBytes(4 * mib)
          const socket = await opened(forward.port, 'echo')
          socket.end(bytes)
          expect((await buffer(socket)).equals(bytes)).toBe(true)
        }),
      )
    })

    test('who does not read makes the sender inside wait, and gets everything once it reads', async () => {
      await using forward = await sandbox.forward(port)
      const socket = await opened(forward.port, 'flood')
      await once(socket, 'readable')
      let last = ''
      // It has stopped when two looks in a row find the same; and others are served meanwhile.
      expect(
        await eventually(async () => {
          const before = last
          last = await ask(forward.port, 'count', '')
          return last === before
        }),
      ).toBe(true)
      expect(Number(last.split(' ')[1])).toBeLessThan(48)
      expect((await buffer(socket)).length).toBe(64 * mib)
    })

    test('who goes away ends the connection inside, and so does the end of the forward', async () => {
      const forward = await sandbox.forward(port)
      const socket = await opened(forward.port, 'hold')
      socket.resetAndDestroy()
      expect(await eventually(async () => (await ask(forward.port, 'count', '')).startsWith('1 '))).toBe(true)
      const held = await opened(forward.port, 'echo')
      held.write('x')
      await once(held, 'data')
      await forward.close()
      await closed(held)
      const refused = connect(forward.port, '127.0.0.1')
      expect(((await once(refused, 'error')) as [NodeJS.ErrnoException])[0].code).toBe('ECONNREFUSED')
    })

    test('a signal ends it', async () => {
      const over = new AbortController()
      const forward = await sandbox.forward(port, { signal: over.signal })
      expect(await ask(forward.port, 'echo', 'hello')).toBe('hello')
      over.abort()
      const refused = connect(forward.port, '127.0.0.1')
      expect(((await once(refused, 'error')) as [NodeJS.ErrnoException])[0].code).toBe('ECONNREFUSED')
    })

    test('why a connection came to nothing is told: nobody listens, or the port is not listed', async () => {
      for (const [target, code] of [
        [silent, 'port_unreachable'],
        [await freePort(), 'port_not_listed'],
      ] as const) {
        const errors: ThawError[] = []
        await using forward = await sandbox.forward(target, { onError: (error) => errors.push(error) })
        const socket = await opened(forward.port, 'echo')
        await closed(socket)
        expect(errors.map((error) => error.code)).toEqual([code])
      }
    })

    test('a local port that is taken is refused', async () => {
      await using forward = await sandbox.forward(port)
      await expect(sandbox.forward(port, { localPort: forward.port })).rejects.toMatchObject({ code: 'invalid_request' })
    })

    test.each(['0', '65536', 'http'])('%s is no port', async (wrong) => {
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/v1/sandboxes/${sandbox.id}/tunnel/${wrong}`)
      const [, answer] = await once(socket, 'unexpected-response')
      expect(answer.statusCode).toBe(400)
    })

    test('what is no WebSocket is told so, and a message that is none of the protocol ends the tunnel', async () => {
      const path = `/v1/sandboxes/${sandbox.id}/tunnel/${port}`
      const answer = (await (await fetch(server.url + path)).json()) as { error: { code: string } }
      expect(answer.error.code).toBe('invalid_request')
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/api${path}`)
      await once(socket, 'open')
      socket.send('hello')
      expect((await once(socket, 'close'))[0]).toBe(1008)
    })

    // Those of the process driver do not sleep.
    if (driver !== 'process')
      test('a sandbox that sleeps is woken by a connection, and does not fall asleep while it is open', async () => {
        await sandbox.update({ idle_ms: 1000 })
        await sandbox.pause()
        await using forward = await sandbox.forward(port)
        const socket = await opened(forward.port, 'echo')
        socket.write('hello')
        expect(String((await once(socket, 'data'))[0])).toBe('hello')
        expect((await sandbox.refresh()).state).toBe('running')
        // Idle for longer than idle_ms: what counts is that somebody is connected.
        expect(await eventually(async () => (await sandbox.refresh()).state !== 'running', 2500)).toBe(false)
        socket.end()
        await closed(socket)
        expect(await eventually(async () => (await sandbox.refresh()).state === 'paused')).toBe(true)
        await sandbox.update({ idle_ms: null })
      })

    test('the end of the sandbox breaks off what is open', async () => {
      await using forward = await sandbox.forward(port)
      const socket = await opened(forward.port, 'echo')
      socket.write('hello')
      await once(socket, 'data')
      await sandbox.stop()
      await closed(socket)
    })
  })
}
