import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type ClientRequest, type IncomingMessage, request } from 'node:http'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { type ChildServer, startChildServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'
import { tempDir } from '../support/temp.ts'

// Commands that write without end, for clients that read nothing: the server must not keep what nobody takes.

const mib = 1024 * 1024

/** Asks for a command whose output comes at its end. */
function ask(url: string, id: string, command: string | string[], rest: object = {}): ClientRequest {
  const sent = request(`${url}/v1/sandboxes/${id}/exec`, { method: 'POST', headers: { 'content-type': 'application/json' } })
  // Breaks off where it is destroyed.
  sent.on('error', () => undefined)
  sent.end(JSON.stringify({ command, ...rest }))
  return sent
}

/** Of an answer nothing more is taken than its head, and what came with that. Resolves with the length of the rest. */
async function headOf(sent: ClientRequest): Promise<number> {
  const [answer] = (await once(sent, 'response')) as [IncomingMessage]
  answer.pause().on('error', () => undefined)
  return Number(answer.headers['content-length'])
}

const zeros = (count: number) => ['head', '-c', String(count * mib), '/dev/zero']

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`floods over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    const dir = tempDir()
    let server: ChildServer
    let api: Api
    let flooded: string
    let neighbour: string
    let folder: string

    beforeAll(async () => {
      server = await startChildServer(join(dir.path, 'data'), { driver, scope: 'suite' })
      api = new Api(server.url)
      flooded = (await api.sandbox({ resources: { memory_mib: 256 } })).id
      neighbour = (await api.sandbox()).id
      folder = (await api.stdout(flooded, 'mktemp -d')).trim()
      // What the server needs for a flood that is read, it needs once.
      using client = await StreamClient.open(server.url, flooded, '?encoding=base64')
      client.send({ type: 'exec', id: 'warm', command: `head -c ${64 * mib} /dev/zero` })
      await client.event('exit', { id: 'warm', exit_code: 0 })
    }, 120_000)
    afterAll(async () => {
      await api.exec(flooded, `rm -rf ${folder}`)
      const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
      for (const { id } of items) await api.send('DELETE', `/v1/sandboxes/${id}`)
      await server[Symbol.asyncDispose]()
      dir[Symbol.dispose]()
    })

    const memory = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${server.process.pid}/status`, 'latin1'))?.[1]) * 1024
    /** Writes without end, and says in a file how many MiB it has written. */
    const endless = (name: string) => `i=0; while head -c ${mib} /dev/zero; do i=$((i+1)); echo $i > ${folder}/${name}; done`
    const written = async (name: string) => Number(await api.stdout(flooded, `cat ${folder}/${name} 2>/dev/null || echo 0`))

    /** Anything of the group of a process. */
    const isThere = async (pid: number | null | undefined) => (await api.exec(flooded, `kill -0 -${pid}`)).exit_code === 0

    /** The most memory that the server has while another sandbox is used for a few seconds; each call is answered. */
    async function used(): Promise<number> {
      let most = memory()
      for (const end = performance.now() + 3000; performance.now() < end; ) {
        expect(await api.stdout(neighbour, 'echo well')).toBe('well\n')
        most = Math.max(most, memory())
      }
      return most
    }

    test.each([
      { killed: true, name: 'is ended with it where it was to be' },
      { killed: false, name: 'goes on without it' },
    ])(
      'a client of a stream reads nothing: the command waits, and $name when the client leaves',
      async ({ killed }) => {
        const name = `stream-${killed}`
        const client = await StreamClient.open(server.url, flooded, '?encoding=base64')
        const before = memory()
        client.send({ type: 'exec', id: 'a', command: endless(name), kill_on_close: killed })
        const { pid } = await client.event('started', { id: 'a' })
        await client.event('stdout', { id: 'a' })
        client.socket.pause()
        expect((await used()) - before).toBeLessThan(64 * mib)
        const held = await written(name)
        expect(held).toBeLessThan(64)
        client.socket.terminate()
        if (killed) expect(await eventually(async () => !(await isThere(pid)))).toBe(true)
        else {
          expect(await eventually(async () => (await written(name)) > held + 64)).toBe(true)
          expect((await used()) - before).toBeLessThan(64 * mib)
          await api.exec(flooded, `kill -9 -${pid}`)
        }
      },
      60_000,
    )

    test('a client of exec leaves while its command writes without end: the command is ended, and what it wrote is not kept', async () => {
      using watcher = await StreamClient.open(server.url, flooded)
      const asked = ask(server.url, flooded, endless('left'), { timeout_ms: 600_000 })
      const { pid } = (await watcher.event('process_event', { event: 'started' })) as { pid?: number }
      expect(await eventually(async () => (await written('left')) > 128)).toBe(true)
      expect(await api.stdout(neighbour, 'echo well')).toBe('well\n')
      asked.destroy()
      await watcher.event('process_event', { event: 'ended', pid })
      expect(await eventually(async () => !(await isThere(pid)))).toBe(true)
    }, 60_000)

    // Processes without a container have no /proc of their own to look in.
    if (driver === 'oci')
      test('a client of E2B reads nothing of the stream of a process: the process waits', async () => {
        const { sandboxID: id, envdAccessToken: token } = (await api.send('POST', '/sandboxes', { templateID: 'base', secure: true })).body
        const headers = { 'connect-protocol-version': '1', 'e2b-sandbox-id': id, 'x-access-token': token }
        const message = Buffer.from(JSON.stringify({ process: { cmd: '/bin/cat', args: ['/dev/zero'], envs: {} } }))
        const head = Buffer.alloc(5)
        head.writeUInt32BE(message.length, 1)
        const before = memory()
        const sent = request(`${server.url}/process.Process/Start`, {
          method: 'POST',
          headers: { ...headers, 'content-type': 'application/connect+json' },
        })
        sent.on('error', () => undefined)
        sent.end(Buffer.concat([head, message]))
        const [answer] = (await once(sent, 'response')) as [IncomingMessage]
        expect(answer.statusCode).toBe(200)
        await once(answer, 'readable')
        expect((await used()) - before).toBeLessThan(64 * mib)
        sent.destroy()
        // To E2B a process lives on without whoever started it.
        expect(await api.stdout(id, `cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o '/bin/cat /dev/zer[o]'`)).toBe(
          '/bin/cat /dev/zero\n',
        )
        expect((await used()) - before).toBeLessThan(64 * mib)
        await api.send('DELETE', `/v1/sandboxes/${id}`)
      }, 60_000)

    // Last: what it takes of the memory would hide what others take.
    test('outputs that nobody takes are kept up to a limit of all together, and are gone with their clients', async () => {
      const before = memory()
      const asked = Array.from({ length: 8 }, () => ask(server.url, flooded, zeros(70), { encoding: 'base64' }))
      const lengths = await Promise.all(asked.map(headOf))
      // Each has its mebibyte, and all together have what is promised.
      for (const length of lengths) expect(length).toBeGreaterThan(mib)
      const promised = (128 + lengths.length) * mib * (4 / 3)
      expect(lengths.reduce((sum, length) => sum + length, 0)).toBeLessThan(promised + lengths.length * 1024)
      const whole = async () => !(await api.exec(neighbour, zeros(8))).truncated
      expect(await whole()).toBe(false)
      expect((await used()) - before).toBeLessThan(768 * mib)
      for (const sent of asked) sent.destroy()
      expect(await eventually(whole)).toBe(true)
    }, 60_000)
  })
}

test('a client that takes nothing of its answer for too long loses its connection, and what was kept for it is let go', async () => {
  using dir = tempDir()
  const env = { THAW_LIMITS__WEBSOCKET_STALL_MS: '1000' }
  await using server = await startChildServer(join(dir.path, 'data'), { driver: 'process', env })
  const api = new Api(server.url)
  const { id } = await api.sandbox()
  const asked = [70, 70, 70].map((count) => ask(server.url, id, zeros(count)))
  await Promise.all(asked.map(headOf))
  expect(await eventually(async () => !(await api.exec(id, zeros(8))).truncated, 60_000)).toBe(true)
  for (const sent of asked) sent.destroy()
  await api.send('DELETE', `/v1/sandboxes/${id}`)
}, 120_000)
