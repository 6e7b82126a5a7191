import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  closeSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { version } from 'node:os'
import { join } from 'node:path'
import { newId } from '@thaw/protocol'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { runCommand } from '../../packages/server/src/drivers/command.ts'
import { type CreateSpec, insidePaths, type Prepared, type SnapshotSource } from '../../packages/server/src/drivers/driver.ts'
import { OciDriver } from '../../packages/server/src/drivers/oci/index.ts'
import { Images } from '../../packages/server/src/images/images.ts'
import { agentProgram } from '../support/agent.ts'
import { whyNot } from '../support/engines.ts'
import { imagesDir } from '../support/images.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { tempDir } from '../support/temp.ts'

/** What `counter.py` answers. */
interface Answer {
  count: number
  hostname: string
  kernel: string
  gateways: string[]
  text?: string
  children?: number
  error?: string
  connected?: true | string
}

const dir = tempDir()
const dataDir = join(dir.path, 'data')
const share = join(dir.path, 'share')
const program = join(dir.path, 'agent')
mkdirSync(dataDir, { mode: 0o711 })
for (const folder of [share, program]) mkdirSync(folder, { mode: 0o755 })
copyFileSync(new URL('./fixtures/counter.py', import.meta.url), join(share, 'counter.py'))
copyFileSync(agentProgram, join(program, 'thaw-agent'))
chmodSync(join(share, 'counter.py'), 0o644)
chmodSync(join(program, 'thaw-agent'), 0o755)
const driver = new OciDriver({ dataDir, engine: 'runsc' })
const skip = await whyNot(driver)

describe.skipIf(skip !== null)(`sandboxes of gVisor${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let image: Prepared
  const made = new Set<string>()
  let folders = 0

  beforeAll(async () => {
    const images = await Images.open({ imagesDir: imagesDir() })
    image = await driver.prepare((await images.ensure('host')).source)
  })
  afterEach(async () => {
    for (const id of made) await driver.destroy(id)
    made.clear()
  })
  afterAll(async () => {
    await driver.close()
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    dir[Symbol.dispose]()
  })

  async function start(change: Partial<CreateSpec> = {}): Promise<string> {
    const id = newId('sbx')
    made.add(id)
    await driver.create({
      id,
      image,
      argv: ['python3', '-u', '/function/counter.py', change.ready ?? 'agent'],
      env: { PATH: '/usr/bin:/bin' },
      cwd: '/',
      mounts: [
        { source: share, target: '/function', readonly: true },
        { source: program, target: insidePaths.runtimeDir, readonly: true },
      ],
      resources: { memory_mib: 128, cpus: 1, pids: 64, tmp_mib: 16 },
      network: 'none',
      user: 'root',
      root: 'writable',
      ready: 'agent',
      start_timeout_ms: 20_000,
      ...change,
    })
    return id
  }

  async function ask(id: string, line = 'look', port: 'agent' | 'runtime' = 'agent'): Promise<Answer> {
    const stream = await driver.dial(id, port)
    try {
      let text = ''
      stream.on('data', (bytes: Buffer) => {
        text += bytes
        if (text.includes('\n')) stream.emit('line')
      })
      stream.once('close', () => stream.emit('line'))
      stream.write(`${line}\n`)
      await once(stream, 'line', { signal: AbortSignal.timeout(20_000) })
      return JSON.parse(text) as Answer
    } finally {
      stream.destroy()
    }
  }

  async function snapshot(id: string, options: { stop?: boolean } = {}): Promise<SnapshotSource> {
    const target = join(dir.path, `snapshot-${folders++}`)
    mkdirSync(target, { mode: 0o700 })
    const { state } = await driver.snapshot(id, { dir: target, kind: 'memory', stop: options.stop ?? false })
    return { dir: target, kind: 'memory', state: JSON.parse(JSON.stringify(state)) }
  }

  test('it has a kernel of its own', async () => {
    expect((await ask(await start())).kernel).not.toBe(version())
  })

  test('memory and files go on in every clone by themselves, and in the parent', async () => {
    const parent = await start()
    await ask(parent, 'count')
    await ask(parent, 'write before')
    const source = await snapshot(parent)
    await ask(parent, 'write after')
    const clones = await Promise.all([start({ snapshot: source }), start({ snapshot: source })])
    expect((await ask(clones[0] as string, 'count')).count).toBe(2)
    expect((await ask(clones[0] as string, 'count')).count).toBe(3)
    expect((await ask(clones[1] as string, 'count')).count).toBe(2)
    expect((await ask(parent, 'count')).count).toBe(2)
    await ask(clones[0] as string, 'write clone')
    expect((await ask(clones[0] as string, 'read')).text).toBe('before\nclone\n')
    expect((await ask(clones[1] as string, 'read')).text).toBe('before\n')
    expect((await ask(parent, 'read')).text).toBe('before\nafter\n')
    // A clone of a clone.
    const grandchild = await start({ snapshot: await snapshot(clones[0] as string) })
    expect(await ask(grandchild, 'count')).toMatchObject({ count: 4 })
    for (const id of [parent, ...clones, grandchild]) expect((await ask(id)).hostname).toBe(id)
    expect((await ask(grandchild, 'read')).text).toBe('before\nclone\n')
    // Another server finds them and reaches their agents.
    const next = new OciDriver({ dataDir, engine: 'runsc' })
    expect(await next.list()).toEqual(expect.arrayContaining([parent, ...clones]))
    ;(await next.dial(parent, 'agent')).destroy()
    await next.destroy(parent)
    expect(await next.list()).not.toContain(parent)
    await next.close()
  })

  test('what is paused stays paused while it is kept, and its clone runs', async () => {
    const parent = await start()
    await ask(parent, 'count')
    await driver.pause(parent)
    const source = await snapshot(parent)
    expect(await driver.inspect(parent)).toMatchObject({ state: 'paused' })
    expect((await ask(await start({ snapshot: source }), 'count')).count).toBe(2)
    await driver.resume(parent)
    expect((await ask(parent, 'count')).count).toBe(2)
  })

  test('with stop it ends, and goes on from its snapshot', async () => {
    const parent = await start()
    await ask(parent, 'count')
    const ended = driver.wait(parent)
    const source = await snapshot(parent, { stop: true })
    await ended
    expect(await driver.inspect(parent)).toMatchObject({ state: 'exited' })
    await driver.destroy(parent)
    expect((await ask(await start({ snapshot: source }), 'count')).count).toBe(2)
  })

  test('an image that was cut off, or is of another engine, is an error and leaves nothing', async () => {
    const source = await snapshot(await start())
    await expect(start({ snapshot: { ...source, state: { version: 1, mounts: [] } } })).rejects.toMatchObject({
      code: 'snapshot_incompatible',
    })
    const file = join(source.dir, 'memory', 'checkpoint.img')
    expect(statSync(file).mode & 0o777).toBe(0o600)
    const { size } = statSync(file)
    for (const harm of [() => overwrite(file, size >> 1), () => overwrite(file, 2), () => truncateSync(file, size >> 1)]) {
      harm()
      const before = made.size
      await expect(start({ snapshot: source })).rejects.toMatchObject({ code: 'snapshot_corrupt' })
      expect(await driver.list()).not.toContain([...made][before])
    }
  })

  test('a sandbox whose sockets are the host’s cannot be kept, and goes on', async () => {
    const id = await start({ ready: 'runtime', user: 'function', root: 'readonly' })
    const target = join(dir.path, 'refused')
    mkdirSync(target)
    await expect(driver.snapshot(id, { dir: target, kind: 'memory', stop: false })).rejects.toMatchObject({ code: 'snapshot_unsupported' })
    expect(readdirSync(target)).toEqual([])
    expect((await ask(id, 'count', 'runtime')).count).toBe(1)
  })

  test('more memory than it may have ends it, and says so', async () => {
    const id = await start({ resources: { memory_mib: 64, cpus: 1, pids: 64, tmp_mib: 16 } })
    await ask(id, 'fill 16')
    await Promise.allSettled([ask(id, 'fill 400'), driver.wait(id)])
    expect(await driver.inspect(id)).toMatchObject({ state: 'exited', out_of_memory: true })
  })

  test('processes without end are stopped, and the neighbours go on', async () => {
    const [id, neighbour] = await Promise.all([start(), start()])
    const ended = driver.wait(id as string)
    const answer = await Promise.race([ask(id as string, 'fork').catch(() => null), ended.then(() => null)])
    if (answer !== null) expect(answer.children).toBeLessThan(2000)
    expect((await ask(neighbour as string, 'count')).count).toBe(1)
  })

  test('no network without egress; with it an address of its own, in clones too: the internet and not the host', async () => {
    const toGateway = (answer: Answer) => answer.gateways.filter((address) => address !== '00000000')
    expect(toGateway(await ask(await start()))).toEqual([])
    await using internet = await startInternet()
    const parent = await start({ network: 'egress' })
    const clone = await start({ network: 'egress', snapshot: await snapshot(parent) })
    const gateways = await Promise.all([parent, clone].map(async (id) => toGateway(await ask(id))))
    expect(gateways.map((found) => found.length)).toEqual([1, 1])
    expect(gateways[0]).not.toEqual(gateways[1])
    for (const id of [parent, clone]) {
      expect(await ask(id, `connect ${internet.address} ${internet.port}`)).toMatchObject({ connected: true })
      expect(await ask(id, `connect ${internet.hostAddress} ${internet.hostPort}`)).toMatchObject({ connected: expect.any(String) })
    }
  })

  test('destroy leaves no control socket', async () => {
    const id = await start()
    await driver.destroy(id)
    expect(await driver.list()).toEqual([])
    for (const folder of ['/run', '/run/thaw', '/tmp'])
      if (existsSync(folder)) expect(readdirSync(folder).filter((name) => name.includes(id))).toEqual([])
  })
})

function overwrite(path: string, from: number): void {
  const file = openSync(path, 'r+')
  writeSync(file, Buffer.alloc(64, 0xff), 0, 64, from)
  closeSync(file)
}

/** A public address in a network namespace, and one of this host beside it; something listens on both. */
async function startInternet() {
  const name = `thaw-test-${process.pid}`
  const link = `tt${process.pid}`
  const address = '203.0.113.2'
  const hostAddress = '203.0.113.1'
  await runCommand('ip', ['netns', 'add', name])
  await runCommand('ip', ['-batch', '-'], {
    input: `link add ${link} type veth peer name eth0 netns ${name}\naddr add ${hostAddress}/24 dev ${link}\nlink set ${link} up\n`,
  })
  await runCommand('ip', ['-n', name, '-batch', '-'], { input: `addr add ${address}/24 dev eth0\nlink set lo up\nlink set eth0 up\n` })
  const listen =
    'import socket\ns = socket.socket()\ns.bind(("0.0.0.0", 0))\ns.listen()\nprint(s.getsockname()[1], flush=True)\nwhile True: s.accept()'
  const servers = [spawn('ip', ['netns', 'exec', name, 'python3', '-c', listen]), spawn('python3', ['-c', listen])]
  const [port, hostPort] = await Promise.all(
    servers.map(async ({ stdout }) => {
      const [line] = await once(stdout, 'data')
      return Number(line)
    }),
  )
  return {
    address,
    port,
    hostAddress,
    hostPort,
    [Symbol.asyncDispose]: async () => {
      for (const server of servers) server.kill('SIGKILL')
      await Promise.all(servers.map((server) => (server.exitCode ?? server.signalCode) === null && once(server, 'exit')))
      await runCommand('ip', ['link', 'del', link])
      await runCommand('ip', ['netns', 'del', name])
    },
  }
}
