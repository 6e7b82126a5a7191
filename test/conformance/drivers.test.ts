import { once } from 'node:events'
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { newId, ThawError } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { DockerDriver } from '../../packages/server/src/drivers/docker/index.ts'
import { type CreateSpec, type Driver, idShift, insidePaths, type Prepared } from '../../packages/server/src/drivers/driver.ts'
import { OciDriver } from '../../packages/server/src/drivers/oci/index.ts'
import { ProcessDriver } from '../../packages/server/src/drivers/process/index.ts'
import { findProcesses, waitUntil } from '../../packages/server/src/drivers/processes.ts'
import { Images } from '../../packages/server/src/images/images.ts'
import { agentProgram } from '../support/agent.ts'
import { dockerdMissing, startDockerd } from '../support/dockerd.ts'
import { whyNot } from '../support/engines.ts'
import { eventually } from '../support/eventually.ts'
import { imagesDir } from '../support/images.ts'
import { tempDir } from '../support/temp.ts'

interface Kind {
  name: string
  open: (dataDir: string) => Driver
  image: string
  /** Why it cannot be tried here, or null. */
  missing: (driver: Driver) => Promise<string | null>
  /** Starts what the driver needs. */
  before?: () => Promise<AsyncDisposable>
  /** Without user namespaces root inside is root of the host, which the probe warns of. */
  rootIsRootOfHost?: boolean
  /** With a kernel of its own between, the host sees that kernel and not the processes inside. */
  ownKernel?: boolean
}

function docker(name: string, sharedFiles: 'auto' | 'never'): Kind {
  const folder = tempDir()
  const dir = join(folder.path, 'engine')
  return {
    name,
    image: 'python',
    open: (dataDir) => new DockerDriver({ dataDir, host: `unix://${dir}/docker.sock`, sharedFiles, agent: agentProgram }),
    missing: async () => dockerdMissing(),
    before: async () => {
      const engine = await startDockerd(dir)
      return {
        [Symbol.asyncDispose]: async () => {
          await engine[Symbol.asyncDispose]()
          folder[Symbol.dispose]()
        },
      }
    },
    rootIsRootOfHost: sharedFiles === 'auto',
  }
}

/** One suite for the contract of drivers, run over each. */
const kinds: Kind[] = [
  { name: 'process', image: 'host', open: (dataDir) => new ProcessDriver({ dataDir }), missing: whyNot },
  { name: 'oci', image: 'host', open: (dataDir) => new OciDriver({ dataDir }), missing: whyNot },
  { name: 'oci (runsc)', image: 'host', open: (dataDir) => new OciDriver({ dataDir, engine: 'runsc' }), missing: whyNot, ownKernel: true },
  docker('docker', 'auto'),
  docker('docker on another machine', 'never'),
]

for (const { name: kind, open, missing, image: imageRef, before, rootIsRootOfHost, ownKernel } of kinds) {
  const dir = tempDir()
  const dataDir = join(dir.path, 'data')
  const share = join(dir.path, 'share')
  const out = join(dir.path, 'out')
  mkdirSync(dataDir, { mode: 0o711 })
  mkdirSync(share, { mode: 0o755 })
  mkdirSync(out)
  copyFileSync(new URL('./fixtures/echo.py', import.meta.url), join(share, 'echo.py'))
  chmodSync(join(share, 'echo.py'), 0o644)
  const driver = open(dataDir)
  const skip = await missing(driver)

  describe.skipIf(skip !== null)(`driver ${kind}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let image: Prepared
    let needs: AsyncDisposable | undefined
    const made = new Set<string>()

    beforeAll(async () => {
      needs = await before?.()
      const images = await Images.open({ imagesDir: imagesDir() })
      image = await driver.prepare((await images.ensure(imageRef)).source)
    })

    afterAll(async () => {
      for (const id of made) await driver.destroy(id)
      await driver.close()
      await needs?.[Symbol.asyncDispose]()
      dir[Symbol.dispose]()
    })

    function spec(change: Partial<CreateSpec> & Pick<CreateSpec, 'argv'>): CreateSpec {
      const id = newId('sbx')
      made.add(id)
      return {
        id,
        image,
        env: { PATH: '/usr/bin:/bin', THAW_RUNTIME_SOCKET: '/thaw/run/runtime.sock' },
        cwd: '/',
        mounts: [{ source: share, target: '/function', readonly: true }],
        resources: { memory_mib: 64, cpus: 1, pids: 32, tmp_mib: 8 },
        network: 'none',
        user: 'function',
        root: 'readonly',
        ready: 'started',
        start_timeout_ms: 10_000,
        ...change,
      }
    }
    const echo = (change: Partial<CreateSpec> = {}) => spec({ argv: ['python3', '-u', '/function/echo.py'], ready: 'runtime', ...change })
    const shell = (script: string, change: Partial<CreateSpec> = {}) => spec({ argv: ['/bin/sh', '-c', script], ...change })

    /** What the host sees of a program in a sandbox, which it knows by an argument of it. */
    const seen = (id: string, mark: string) =>
      ownKernel ? findProcesses((pid) => readQuietly(`/proc/${pid}/cmdline`).includes(id)) : withArgument(mark)

    /** Runs a shell script to its end. */
    async function run(script: string, change: Partial<CreateSpec> = {}) {
      const output = { stdout: '', stderr: '' }
      const sandbox = shell(script, {
        onOutput: (source, bytes) => {
          output[source] += bytes.toString()
        },
        ...change,
      })
      await driver.create(sandbox)
      const exit = await driver.wait(sandbox.id)
      return { ...output, exit, id: sandbox.id }
    }

    test('create resolves when the runtime listens, and dial reaches it', async () => {
      const sandbox = echo()
      const handle = await driver.create(sandbox)
      expect(handle.id).toBe(sandbox.id)
      const stream = await driver.dial(sandbox.id, 'runtime')
      stream.write('there and back')
      const [answer] = await once(stream, 'data')
      expect(String(answer)).toBe('there and back')
      stream.destroy()
      await driver.destroy(sandbox.id)
    })

    test('a program that ends before it listens fails the start and leaves nothing', async () => {
      const sandbox = echo({ argv: ['/bin/sh', '-c', 'exit 3'] })
      await expect(driver.create(sandbox)).rejects.toMatchObject({ code: 'driver_failed' })
      expect(await driver.inspect(sandbox.id)).toBeNull()
      expect(await driver.list()).not.toContain(sandbox.id)
    })

    test('a program that does not exist fails the start and leaves nothing', async () => {
      const sandbox = spec({ argv: ['/no/such/program'], ready: 'runtime' })
      await expect(driver.create(sandbox)).rejects.toBeInstanceOf(ThawError)
      expect(await driver.list()).not.toContain(sandbox.id)
    })

    test('a start that takes too long is given up and leaves nothing', async () => {
      const sandbox = shell('sleep 60', { ready: 'runtime', start_timeout_ms: 300 })
      await expect(driver.create(sandbox)).rejects.toMatchObject({ code: 'driver_failed', message: expect.stringContaining('300 ms') })
      expect(await driver.list()).not.toContain(sandbox.id)
    })

    test('a start that is abandoned rejects with the reason and leaves nothing', async () => {
      const sandbox = shell('sleep 60', { ready: 'runtime' })
      const abandon = new AbortController()
      const created = driver.create(sandbox, abandon.signal)
      abandon.abort(new Error('changed my mind'))
      await expect(created).rejects.toThrow('changed my mind')
      expect(await driver.list()).not.toContain(sandbox.id)
    })

    test('wait tells the exit code, and output comes apart as stdout and stderr', async () => {
      const { stdout, stderr, exit } = await run('echo to stdout; echo to stderr >&2; exit 7')
      expect({ stdout, stderr }).toEqual({ stdout: 'to stdout\n', stderr: 'to stderr\n' })
      expect(exit).toMatchObject({ code: 7, out_of_memory: false })
    })

    test('environment and working directory are those of the spec, and nothing of the server leaks in', async () => {
      process.env.THAW_TEST_SECRET = 'of the server'
      const { stdout } = await run('echo "$COLOUR|$THAW_TEST_SECRET|$(pwd)"', {
        env: { PATH: '/usr/bin:/bin', COLOUR: 'blue' },
        cwd: '/usr',
      })
      expect(stdout.trim()).toBe('blue||/usr')
    })

    test('code does not run as root of the host, also when it is root inside', async () => {
      for (const user of ['function', 'root'] as const) {
        const mark = join(out, user)
        writeFileSync(mark, '')
        chmodSync(mark, 0o666)
        mkdirSync(join(out, `dir-${user}`), { mode: 0o777 })
        chmodSync(join(out, `dir-${user}`), 0o777)
        const { exit, stderr } = await run('touch "$D/made"', {
          user,
          env: { PATH: '/usr/bin:/bin', D: '/data' },
          mounts: [{ source: join(out, `dir-${user}`), target: '/data', readonly: false }],
        })
        expect(stderr.includes('/data/made')).toBe(false)
        expect(exit.code).toBe(0)
        const owner = statSync(join(out, `dir-${user}`, 'made')).uid
        if (rootIsRootOfHost && user === 'root') continue
        expect(owner).not.toBe(0)
        expect(owner).toBeGreaterThanOrEqual(idShift)
      }
    })

    test('a read-only mount cannot be written', async () => {
      const { exit } = await run('echo x > /function/new 2>/dev/null')
      expect(exit.code).not.toBe(0)
      expect(existsSync(join(share, 'new'))).toBe(false)
    })

    test('inspect follows a sandbox from running to exited to gone', async () => {
      const sandbox = echo()
      await driver.create(sandbox)
      expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'running', out_of_memory: false })
      ;(await driver.dial(sandbox.id, 'runtime')).destroy()
      await driver.wait(sandbox.id)
      expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'exited', pid: null })
      expect(await driver.list()).toContain(sandbox.id)
      await driver.destroy(sandbox.id)
      expect(await driver.inspect(sandbox.id)).toBeNull()
    })

    test('destroy is idempotent and takes ids that never existed', async () => {
      const sandbox = echo()
      await driver.create(sandbox)
      await Promise.all([driver.destroy(sandbox.id), driver.destroy(sandbox.id)])
      await driver.destroy(sandbox.id)
      await driver.destroy(newId('sbx'))
    })

    test('destroy ends daemons that left their session', async () => {
      const mark = `daemon-${Date.now()}`
      const sandbox = shell(`setsid sh -c 'exec -a ${mark} sleep 300' & sleep 300`, {
        argv: ['/bin/bash', '-c', `setsid bash -c 'exec -a ${mark} sleep 300' & echo up; sleep 300`],
      })
      let up: () => void = () => {}
      const isUp = new Promise<void>((resolve) => {
        up = resolve
      })
      await driver.create({ ...sandbox, onOutput: () => up() })
      await isUp
      expect(await waitUntil(() => seen(sandbox.id, mark).length > 0, 5_000)).toBe(true)
      await driver.destroy(sandbox.id)
      expect(seen(sandbox.id, mark)).toEqual([])
    })

    test('a driver opened anew on the same folder finds and destroys what the old one made', async () => {
      const mark = `left-${Date.now()}`
      const sandbox = shell('', { argv: ['/bin/bash', '-c', `exec -a ${mark} sleep 300`] })
      await driver.create(sandbox)
      expect(await waitUntil(() => seen(sandbox.id, mark).length > 0, 5_000)).toBe(true)
      const next = open(dataDir)
      expect(await next.list()).toContain(sandbox.id)
      expect(await next.inspect(sandbox.id)).toMatchObject({ state: 'running' })
      await next.destroy(sandbox.id)
      expect(seen(sandbox.id, mark)).toEqual([])
      expect(await next.list()).not.toContain(sandbox.id)
      await driver.destroy(sandbox.id)
    })

    test('close leaves sandboxes running', async () => {
      // Not a runtime: the way to one may end with the driver, and a runtime ends with its connection.
      const sandbox = shell('sleep 600')
      await driver.create(sandbox)
      await driver.close()
      expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'running' })
      await driver.destroy(sandbox.id)
    })

    if (driver.abilities.pause) {
      test('pause stops all processes where they are, resume lets them go on, and both may be said twice', async () => {
        let count = 0
        const sandbox = shell('i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done', {
          onOutput: (_, bytes) => {
            count = Number(String(bytes).trim().split('\n').at(-1))
          },
        })
        await driver.create(sandbox)
        expect(await eventually(() => count > 3)).toBe(true)
        await driver.pause?.(sandbox.id)
        await driver.pause?.(sandbox.id)
        expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'paused' })
        // What was printed before may still be on its way.
        let seen = -1
        for (let tries = 0; tries < 20 && seen !== count; tries++) {
          seen = count
          await eventually(() => count !== seen, 200)
        }
        expect(seen).toBe(count)
        await driver.resume?.(sandbox.id)
        await driver.resume?.(sandbox.id)
        expect(await driver.inspect(sandbox.id)).toMatchObject({ state: 'running' })
        expect(await eventually(() => count > seen)).toBe(true)
        await driver.destroy(sandbox.id)
      })

      test('a paused sandbox can be destroyed', async () => {
        const mark = `paused-${Date.now()}`
        const sandbox = shell('', { argv: ['/bin/bash', '-c', `exec -a ${mark} sleep 300`] })
        await driver.create(sandbox)
        expect(await eventually(() => seen(sandbox.id, mark).length > 0)).toBe(true)
        await driver.pause?.(sandbox.id)
        await driver.destroy(sandbox.id)
        expect(seen(sandbox.id, mark)).toEqual([])
        expect(await driver.list()).not.toContain(sandbox.id)
      })
    }

    if (driver.abilities.snapshot !== 'none') {
      test('a snapshot of files starts another sandbox with what the first one wrote, and the first one goes on', async () => {
        const target = join(out, 'snapshot')
        mkdirSync(target, { mode: 0o700 })
        let ready = false
        const first = shell('echo kept > /written; echo ready; exec sleep 300', {
          user: 'root',
          root: 'writable',
          onOutput: () => {
            ready = true
          },
        })
        await driver.create(first)
        expect(await eventually(() => ready)).toBe(true)
        const taken = await driver.snapshot?.(first.id, { dir: target, kind: 'filesystem', stop: false })
        expect(await driver.inspect(first.id)).toMatchObject({ state: 'running' })
        const snapshot = { dir: target, kind: 'filesystem', state: taken?.state ?? {} } as const
        const second = await run('cat /written; echo more >> /written', { user: 'root', root: 'writable', snapshot })
        expect(second).toMatchObject({ stdout: 'kept\n', exit: { code: 0 } })
        // What a clone writes is its own.
        expect(await run('cat /written', { user: 'root', root: 'writable', snapshot })).toMatchObject({ stdout: 'kept\n' })
        for (const id of [first.id, second.id]) await driver.destroy(id)
        await driver.dropSnapshot?.(snapshot)
        await driver.dropSnapshot?.(snapshot)
      })

      test('a snapshot may end its sandbox, which does nothing more after it', async () => {
        const target = join(out, 'snapshot-stop')
        mkdirSync(target, { mode: 0o700 })
        let printed = ''
        const first = shell('i=0; while :; do i=$((i+1)); echo $i > /count.new; mv /count.new /count; echo $i; sleep 0.01; done', {
          user: 'root',
          root: 'writable',
          onOutput: (_, bytes) => (printed += bytes),
        })
        await driver.create(first)
        expect(await eventually(() => printed.includes('3'))).toBe(true)
        const taken = await driver.snapshot?.(first.id, { dir: target, kind: 'filesystem', stop: true })
        await driver.wait(first.id)
        const snapshot = { dir: target, kind: 'filesystem', state: taken?.state ?? {} } as const
        const { stdout } = await run('cat /count', { user: 'root', root: 'writable', snapshot })
        // A number is written before it is printed: at most one was not printed yet.
        expect(Number(stdout) - Number(printed.trim().split('\n').at(-1))).toBeOneOf([0, 1])
        await driver.destroy(first.id)
        await driver.dropSnapshot?.(snapshot)
      })
    }

    test('a sandbox with an agent is ready when the agent answers', async () => {
      const program = join(out, 'agent')
      mkdirSync(program, { mode: 0o755 })
      copyFileSync(agentProgram, join(program, 'thaw-agent'))
      chmodSync(join(program, 'thaw-agent'), 0o755)
      const sandbox = spec({
        argv: [insidePaths.agent, 'serve', '--socket', insidePaths.agentSocket],
        mounts: [{ source: program, target: insidePaths.runtimeDir, readonly: true }],
        user: 'root',
        root: 'writable',
        ready: 'agent',
      })
      await driver.create(sandbox)
      for (const _ of ['one connection', 'another one']) {
        const stream = await driver.dial(sandbox.id, 'agent')
        stream.write('GET /health HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n')
        const [answer] = await once(stream, 'data')
        expect(String(answer)).toMatch(/^HTTP\/1.1 204 /)
        stream.destroy()
      }
      await driver.destroy(sandbox.id)
    })

    // A driver without an inside of its own has nowhere to show it: its code lies where it lies.
    if (driver.abilities.isolation !== 'none') {
      test('bind shows code in a sandbox that runs already, read-only, and sets its limits', async () => {
        const code = join(out, 'code')
        mkdirSync(join(code, 'deep'), { recursive: true })
        writeFileSync(join(code, 'deep', 'file'), 'bound')
        let output = ''
        const script =
          'while [ ! -e /slot/deep/file ]; do sleep 0.02; done; cat /slot/deep/file; echo x 2>/dev/null > /slot/new || echo " read-only"'
        const sandbox = shell(script, {
          slot: '/function',
          mounts: [],
          argv: ['/bin/sh', '-c', script.replaceAll('/slot', '/function')],
          onOutput: (_, bytes) => (output += bytes),
        })
        await driver.create(sandbox)
        await driver.bind(sandbox.id, { code, resources: { memory_mib: 48, cpus: 0.5, pids: 20, tmp_mib: 8 } })
        await driver.wait(sandbox.id)
        expect(output).toBe('bound read-only\n')
        expect(existsSync(join(code, 'new'))).toBe(false)
        await driver.destroy(sandbox.id)
        expect(readFileSync(join(code, 'deep', 'file'), 'utf8')).toBe('bound')
      })
    }

    test('a socket that was swapped for a link to one of the host is not connected to', async () => {
      const sandbox = shell('ln -s /tmp/some-host-socket "$D/x" ; mv "$D/x" "$D/runtime.sock"; sleep 60', {
        ready: 'started',
        env: { PATH: '/usr/bin:/bin', D: '/thaw/run' },
      })
      await driver.create(sandbox)
      let error: unknown
      await waitUntil(() => findProcesses((pid) => readQuietly(`/proc/${pid}/comm`).trim() === 'sleep').length > 0, 5_000)
      try {
        await driver.dial(sandbox.id, 'runtime')
      } catch (caught) {
        error = caught
      }
      expect(error).toMatchObject({ code: 'driver_failed' })
      await driver.destroy(sandbox.id)
    })
  })
}

function readQuietly(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}

function withArgument(text: string): number[] {
  return findProcesses((pid) => readQuietly(`/proc/${pid}/cmdline`).split('\0').includes(text))
}
