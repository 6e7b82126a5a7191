import { createHash } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { newId } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { runCommand } from '../../packages/server/src/drivers/command.ts'
import { DockerDriver } from '../../packages/server/src/drivers/docker/index.ts'
import type { CreateSpec, Prepared } from '../../packages/server/src/drivers/driver.ts'
import { Images } from '../../packages/server/src/images/images.ts'
import { dockerdMissing, startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { eventually } from '../support/eventually.ts'
import { imagesDir } from '../support/images.ts'
import { tempDir } from '../support/temp.ts'

/** What only the docker driver has; its part of the contract is in drivers.test.ts. */
const skip = dockerdMissing()

describe.skipIf(skip !== null)(`driver docker${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  const dir = tempDir()
  const dataDir = join(dir.path, 'data')
  mkdirSync(dataDir, { mode: 0o711 })
  let engine: TestDockerd
  let driver: DockerDriver
  let image: Prepared
  const made = new Set<string>()

  beforeAll(async () => {
    engine = await startDockerd()
    driver = new DockerDriver({ dataDir, host: engine.host })
    const images = await Images.open({ imagesDir: imagesDir() })
    image = await driver.prepare((await images.ensure('python')).source)
  })

  afterAll(async () => {
    for (const id of made) await driver.destroy(id)
    await driver.close()
    await engine[Symbol.asyncDispose]()
    dir[Symbol.dispose]()
  })

  function spec(argv: string[], change: Partial<CreateSpec> = {}): CreateSpec {
    const id = newId('sbx')
    made.add(id)
    return {
      id,
      image,
      argv,
      env: { PATH: '/usr/bin:/bin' },
      cwd: '/',
      mounts: [],
      resources: { memory_mib: 64, cpus: 1, pids: 32, tmp_mib: 8 },
      network: 'none',
      user: 'function',
      root: 'readonly',
      ready: 'started',
      start_timeout_ms: 20_000,
      ...change,
    }
  }

  /** Runs a program to its end. */
  async function run(argv: string[], change: Partial<CreateSpec> = {}) {
    let output = ''
    const sandbox = spec(argv, { onOutput: (_, bytes) => (output += bytes), ...change })
    await driver.create(sandbox)
    const exit = await driver.wait(sandbox.id)
    await driver.destroy(sandbox.id)
    return { output, exit }
  }
  const python = (script: string, change: Partial<CreateSpec> = {}) => run(['python3', '-c', script], change)

  test('probe tries a container, and says what the engine does not protect from', async () => {
    const probe = await driver.probe()
    expect(probe).toMatchObject({ usable: true, missing: [], versions: { docker: expect.stringMatching(/^\d+\./) } })
    expect(probe.warnings.join('\n')).toContain('userns-remap')
    expect(probe.warnings.join('\n')).not.toContain('egress')
  })

  test('without an engine probe says how to get one, nothing is listed, and an unknown sandbox can be destroyed', async () => {
    const none = new DockerDriver({ dataDir: join(dir.path, 'other'), host: `unix://${dir.path}/none.sock` })
    const { usable, missing } = await none.probe()
    expect(usable).toBe(false)
    expect(missing).toEqual([{ what: expect.stringContaining('Docker engine'), fix: expect.stringContaining('apt-get install docker.io') }])
    expect(await none.list()).toEqual([])
    await none.destroy(newId('sbx'))
    await none.close()
    const odd = new DockerDriver({ dataDir, host: 'ssh://somewhere' })
    expect((await odd.probe()).missing[0]?.what).toContain('no address of a Docker engine')
  })

  test('the image host is refused with what to use instead', async () => {
    await expect(driver.prepare({ kind: 'host', digest: 'host' })).rejects.toMatchObject({
      code: 'driver_unavailable',
      fix: expect.stringContaining('python'),
    })
  })

  test('GPUs are refused before anything is made where the engine has none', async () => {
    const sandbox = spec(['true'], { gpus: 1 })
    await expect(driver.create(sandbox)).rejects.toMatchObject({ code: 'gpu_unavailable' })
    expect(await driver.list()).not.toContain(sandbox.id)
    expect(existsSync(join(dataDir, 'docker', sandbox.id))).toBe(false)
  })

  test('too much memory ends a sandbox as out_of_memory', async () => {
    expect((await python('x = bytearray(200_000_000)')).exit).toMatchObject({ code: 137, out_of_memory: true })
  })

  test('limits, powers and the system call filter are those of containers', async () => {
    const { output } = await python(`
import os, resource, ctypes
status = open('/proc/self/status').read()
pick = lambda name: [l.split()[1] for l in status.splitlines() if l.startswith(name + ':')][0]
libc = ctypes.CDLL(None, use_errno=True)
def refused(number, *args):
    return libc.syscall(number, *args) == -1 and ctypes.get_errno() == 1
print(pick('CapEff'), pick('CapBnd'), pick('NoNewPrivs'), pick('Seccomp'))
print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))
print(refused(272, 0x10000000), refused(425, 1, 0), refused(165, 0, 0, 0, 0, 0))
print(os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize)
try:
    open('/new', 'w')
except OSError as error:
    print(error.strerror)
`)
    const none = '0000000000000000'
    expect(output.trim().split('\n')).toEqual([
      `${none} ${none} 1 2`,
      '(1024, 16384) (0, 0)',
      'True True True',
      String(8 * 1024 * 1024),
      'Read-only file system',
    ])
  })

  test('bind changes the limits of a sandbox that runs', async () => {
    const sandbox = spec(['sleep', '300'])
    await driver.create(sandbox)
    for (const memory_mib of [256, 32]) {
      await driver.bind(sandbox.id, { resources: { memory_mib, cpus: 0.5, pids: 20, tmp_mib: 8 } })
      const { HostConfig } = await driver.engine.call<{ HostConfig: object }>('GET', `/containers/${await nameOf(sandbox.id)}/json`)
      const bytes = memory_mib * 1024 * 1024
      expect(HostConfig).toMatchObject({ Memory: bytes, MemorySwap: bytes, PidsLimit: 20, NanoCpus: 500_000_000 })
    }
    const status = await driver.inspect(sandbox.id)
    expect(status).toMatchObject({ state: 'running', processes: 1, pid: expect.any(Number) })
    expect(status?.memory_bytes).toBeGreaterThan(0)
    await driver.destroy(sandbox.id)
  })

  test('with egress a public address is reached; private ones, this host and other sandboxes are not', async () => {
    await using outside = await startOutside()
    const connect = (address: string, port: number) => `
import socket
for address in [${JSON.stringify([address, port])}]:
    try:
        socket.create_connection(tuple(address), timeout=2)
        print('reached')
    except OSError as error:
        print('not reached')
`
    let serving = false
    const neighbour = spec(['python3', '-u', '-m', 'http.server', '8000'], {
      network: 'egress',
      cwd: '/tmp',
      onOutput: (_, bytes) => {
        serving ||= String(bytes).includes('Serving')
      },
    })
    await driver.create(neighbour)
    const { NetworkSettings } = await driver.engine.call<{
      NetworkSettings: { Networks: Record<string, { IPAddress: string; Gateway: string }> }
    }>('GET', `/containers/${await nameOf(neighbour.id)}/json`)
    const [{ IPAddress, Gateway } = { IPAddress: '', Gateway: '' }] = Object.values(NetworkSettings.Networks)
    const tried = async (address: string, port: number, network: CreateSpec['network'] = 'egress') =>
      (await python(connect(address, port), { network })).output.trim()
    expect(await eventually(() => serving)).toBe(true)
    expect(await tried(outside.publicAddress, outside.port)).toBe('reached')
    expect(await tried(outside.privateAddress, outside.port)).toBe('not reached')
    expect(await tried(IPAddress, 8000)).toBe('not reached')
    expect(await tried(Gateway, outside.hostPort)).toBe('not reached')
    expect(await tried(outside.publicAddress, outside.port, 'none')).toBe('not reached')
    await driver.destroy(neighbour.id)
  }, 120_000)

  test('a restart of the engine ends its sandboxes: wait says so, calls fail until it is back and work then (fault 57)', async () => {
    const sandbox = spec(['sleep', '300'])
    await driver.create(sandbox)
    const doomed = spec(['sleep', '300'])
    await driver.create(doomed)
    const exit = driver.wait(sandbox.id)
    await engine.stop()
    await expect(driver.create(spec(['true']))).rejects.toMatchObject({ code: 'driver_failed', retryable: true })
    await expect(driver.inspect(sandbox.id)).rejects.toMatchObject({ code: 'driver_failed', retryable: true })
    await expect(driver.destroy(doomed.id)).rejects.toMatchObject({ code: 'driver_failed', retryable: true })
    await engine.start()
    await exit
    expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'exited' })
    expect(await driver.list()).toContain(sandbox.id)
    expect((await run(['echo', 'again'])).output).toBe('again\n')
    // What could not be destroyed meanwhile is destroyed without being asked again.
    expect(await eventually(async () => (await driver.inspect(doomed.id)) === null)).toBe(true)
    await driver.destroy(sandbox.id)
    expect(await driver.list()).not.toContain(sandbox.id)
  })

  test('an image that somebody removed from the engine is brought there again', async () => {
    const [found] = await driver.engine.call<{ RepoTags: string[] }[]>('GET', '/images/json', {
      query: { filters: '{"reference":["thaw/rootfs"]}' },
    })
    await driver.engine.call('DELETE', `/images/${found?.RepoTags[0]}`, { query: { force: true } })
    expect((await run(['echo', 'back'])).output).toBe('back\n')
  })

  test('close leaves no network, no packet filter and no folder once there is no sandbox', async () => {
    for (const id of await driver.list()) await driver.destroy(id)
    await driver.close()
    const networks = await driver.engine.call<{ Name: string }[]>('GET', '/networks')
    expect(networks.map(({ Name }) => Name).filter((name) => name.startsWith('thaw'))).toEqual([])
    expect((await runCommand('nft', ['list', 'tables'])).stdout).not.toContain(
      `thaw_docker_${createHash('sha256').update(dataDir).digest('hex').slice(0, 10)}`,
    )
    expect(existsSync(join(dataDir, 'docker'))).toBe(false)
    expect(await driver.engine.call('GET', '/containers/json', { query: { all: true } })).toEqual([])
  })

  async function nameOf(id: string): Promise<string> {
    const found = await driver.engine.call<{ Names: string[]; Labels: Record<string, string> }[]>('GET', '/containers/json')
    return found.find(({ Labels }) => Labels['thaw.id'] === id)?.Names[0]?.slice(1) ?? ''
  }
})

/** A host beyond this one, in a network namespace, with a public (RFC 5737) and a private address; and a port of this host. */
async function startOutside() {
  const name = `thawtest${process.pid}`
  const [publicAddress, privateAddress] = ['198.51.100.2', '10.213.7.2']
  await runCommand('ip', ['netns', 'add', name])
  const { createServer } = await import('node:net')
  const server = createServer((socket) => socket.end('hello'))
  const { spawn } = await import('node:child_process')
  const script = `import http.server; http.server.HTTPServer(('0.0.0.0', 8099), http.server.SimpleHTTPRequestHandler).serve_forever()`
  const dispose = async () => {
    server.close()
    outside?.kill('SIGKILL')
    await runCommand('ip', ['link', 'del', `o${process.pid}`]).catch(() => undefined)
    await runCommand('ip', ['netns', 'del', name]).catch(() => undefined)
  }
  let outside: ReturnType<typeof spawn> | undefined
  onTestFinished(dispose)
  await runCommand('ip', ['-batch', '-'], {
    input: `link add o${process.pid} type veth peer name eth0 netns ${name}\naddr add 198.51.100.1/30 dev o${process.pid}\naddr add 10.213.7.1/30 dev o${process.pid}\nlink set o${process.pid} up\n`,
  })
  await runCommand('ip', ['-n', name, '-batch', '-'], {
    input: `addr add ${publicAddress}/30 dev eth0\naddr add ${privateAddress}/30 dev eth0\nlink set lo up\nlink set eth0 up\n`,
  })
  outside = spawn('ip', ['netns', 'exec', name, 'python3', '-c', script], { stdio: 'ignore' })
  await new Promise<void>((resolve) => server.listen(0, '0.0.0.0', resolve))
  const address = server.address()
  const up = await eventually(() =>
    Promise.all(
      [publicAddress, privateAddress].map((host) =>
        runCommand('python3', ['-c', `import socket; socket.create_connection(('${host}', 8099), timeout=2)`]).then(
          () => true,
          () => false,
        ),
      ),
    ).then((all) => all.every(Boolean)),
  )
  if (!up) throw new Error('the host outside does not answer')
  return {
    publicAddress,
    privateAddress,
    port: 8099,
    hostPort: typeof address === 'object' && address !== null ? address.port : 0,
    [Symbol.asyncDispose]: dispose,
  }
}
