import { Sandbox, SandboxError, SandboxNotFoundError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { e2bOptions, e2bSandbox, killed } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

/** Counts in memory alone, and tells on a port. */
const counter = `
import http.server
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        body = str(count).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
`

describe.skipIf(skip !== null)(`snapshots and forks, with the client e2b${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let options: ReturnType<typeof e2bOptions>

  beforeAll(async () => {
    server = await startServer({ driver: 'oci' })
    options = e2bOptions(server)
  })
  afterAll(() => server[Symbol.asyncDispose]())

  const ask = async ({ sandboxId }: Sandbox) => {
    const answer = await fetch(server.url, { headers: { 'e2b-sandbox-id': sandboxId, 'e2b-sandbox-port': '8000' } })
    return answer.ok ? Number(await answer.text()) : null
  }
  const counting = async (sandbox: Sandbox) => {
    await sandbox.files.write('counter.py', counter)
    await sandbox.commands.run('exec python3 counter.py > /dev/null 2>&1', { background: true })
    expect(await eventually(async () => (await ask(sandbox)) !== null)).toBe(true)
  }

  test('forks go on from the memory of their parent, each by itself', async () => {
    await using parent = await e2bSandbox(server, { metadata: { family: 'one' }, envs: { KEPT: 'yes' } })
    await counting(parent)
    const before = (await ask(parent)) ?? 0
    const forks = (await parent.fork({ count: 2, timeoutMs: 120_000 })).map((fork) => {
      if (fork instanceof Error) throw fork
      return killed(fork)
    })
    await using _first = forks[0] as (typeof forks)[0]
    await using _second = forks[1] as (typeof forks)[0]
    expect(new Set([parent.sandboxId, ...forks.map((fork) => fork.sandboxId)]).size).toBe(3)
    for (const one of [parent, ...forks]) {
      expect(await ask(one)).toBe(before + 1)
      expect(await one.files.exists('counter.py')).toBe(true)
      expect((await one.commands.run('whoami; echo $KEPT; hostname')).stdout).toBe(`user\nyes\n${one.sandboxId}\n`)
    }
    expect(await ask(forks[0] as Sandbox)).toBe(before + 2)
    expect(await ask(parent)).toBe(before + 2)
    const [info] = await Promise.all(forks.map((fork) => fork.getInfo()))
    expect(info?.metadata).toEqual({ family: 'one' })
    expect(info?.endAt.getTime()).toBeLessThan(Date.now() + 121_000)
    // The token of one opens no other.
    const { envdAccessToken } = (await (await fetch(`${server.url}/sandboxes/${parent.sandboxId}`)).json()) as { envdAccessToken: string }
    const headers = { 'e2b-sandbox-id': forks[0]?.sandboxId ?? '', 'x-access-token': envdAccessToken }
    expect((await fetch(`${server.url}/envs`, { headers })).status).toBe(401)
  })

  test('a snapshot is a template: by id, by name, listed, and deleted', async () => {
    await using sandbox = await e2bSandbox(server)
    await counting(sandbox)
    const before = (await ask(sandbox)) ?? 0
    const snapshot = await sandbox.createSnapshot({ name: 'counter' })
    expect(snapshot.names).toEqual(['counter'])
    expect(await ask(sandbox)).toBe(before + 1)

    await using byId = killed(await Sandbox.create(snapshot.snapshotId, { ...options, metadata: { from: 'id' }, envs: { NEW: 'one' } }))
    expect(await ask(byId)).toBe(before + 1)
    expect((await byId.commands.run('echo $NEW')).stdout).toBe('one\n')
    expect(await byId.getInfo()).toMatchObject({ templateId: snapshot.snapshotId, metadata: { from: 'id' } })
    await using byName = killed(await Sandbox.create('counter', options))
    expect(await ask(byName)).toBe(before + 1)

    // The newest of a name is what the name means.
    await byId.files.write('newer', 'yes')
    const newer = await byId.createSnapshot({ name: 'counter' })
    await using again = killed(await Sandbox.create('counter:default', options))
    expect(await again.files.read('newer')).toBe('yes')

    const all = await Sandbox.listSnapshots(options).nextItems()
    expect(all.map((item) => item.snapshotId)).toEqual([newer.snapshotId, snapshot.snapshotId])
    expect(await sandbox.listSnapshots().nextItems()).toEqual([snapshot])
    expect(await Sandbox.listSnapshots({ ...options, name: 'other' }).nextItems()).toEqual([])
    const pages = Sandbox.listSnapshots({ ...options, limit: 1 })
    expect((await pages.nextItems()).map((item) => item.snapshotId)).toEqual([newer.snapshotId])
    expect(pages.hasNext).toBe(true)
    expect((await pages.nextItems()).map((item) => item.snapshotId)).toEqual([snapshot.snapshotId])
    expect(pages.hasNext).toBe(false)

    expect(await Sandbox.deleteSnapshot(snapshot.snapshotId, options)).toBe(true)
    expect(await Sandbox.deleteSnapshot(snapshot.snapshotId, options)).toBe(false)
    await expect(Sandbox.create(snapshot.snapshotId, options)).rejects.toThrow(/no template/)
    expect(await Sandbox.deleteSnapshot(newer.snapshotId, options)).toBe(true)
  })

  test('a snapshot of files alone starts anew', async () => {
    await using sandbox = await e2bSandbox(server)
    await counting(sandbox)
    const answer = await fetch(`${server.url}/sandboxes/${sandbox.sandboxId}/snapshots`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"memory":false}',
    })
    expect(answer.status).toBe(201)
    const { snapshotID } = (await answer.json()) as { snapshotID: string }
    await using fresh = killed(await Sandbox.create(snapshotID, { ...options, allowInternetAccess: false }))
    expect(await fresh.files.exists('counter.py')).toBe(true)
    expect(await ask(fresh)).toBe(null)
    expect((await fresh.commands.run('whoami; pwd')).stdout).toBe('user\n/home/user\n')
    expect((await fresh.getInfo()).allowInternetAccess).toBe(false)
    await Sandbox.deleteSnapshot(snapshotID, options)
  })

  test('whoever follows a command loses nothing while its sandbox is kept and forked', async () => {
    await using sandbox = await e2bSandbox(server)
    const heard: string[] = []
    const counting = await sandbox.commands.run('for i in $(seq 400); do echo $i; sleep 0.01; done; exit 5', {
      background: true,
      onStdout: (text) => void heard.push(text),
    })
    expect(await eventually(() => heard.length > 3)).toBe(true)
    await sandbox.createSnapshot()
    const [fork] = await sandbox.fork()
    if (!(fork instanceof Sandbox)) throw fork
    await using _ = killed(fork)
    await expect(counting.wait()).rejects.toMatchObject({ exitCode: 5 })
    expect(heard.join('')).toBe(Array.from({ length: 400 }, (_item, i) => `${i + 1}\n`).join(''))
  })

  test('what has ended cannot be forked or kept', async () => {
    const sandbox = await e2bSandbox(server)
    await sandbox.kill()
    await expect(sandbox.fork()).rejects.toThrow(SandboxNotFoundError)
    await expect(sandbox.createSnapshot()).rejects.toThrow(SandboxNotFoundError)
  })

  test('a driver that keeps nothing says so', async () => {
    await using other = await startServer({ driver: 'process' })
    await using sandbox = await e2bSandbox(other)
    await expect(sandbox.fork()).rejects.toThrow(SandboxError)
    await expect(sandbox.fork()).rejects.toThrow(/takes no snapshots/)
    await expect(sandbox.createSnapshot()).rejects.toThrow(/takes no snapshots/)
    expect(await sandbox.isRunning()).toBe(true)
  })
})
