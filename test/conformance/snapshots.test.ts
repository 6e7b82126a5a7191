import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { newId } from '@thaw/protocol'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { runCommand } from '../../packages/server/src/drivers/command.ts'
import type { CreateSpec, Prepared, SnapshotKind, SnapshotSource } from '../../packages/server/src/drivers/driver.ts'
import { OciDriver } from '../../packages/server/src/drivers/oci/index.ts'
import { findProcesses, waitUntil } from '../../packages/server/src/drivers/processes.ts'
import { Images } from '../../packages/server/src/images/images.ts'
import { whyNot } from '../support/engines.ts'
import { eventually } from '../support/eventually.ts'
import { imagesDir } from '../support/images.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { tempDir } from '../support/temp.ts'

/** What `alive.py` tells of itself. */
interface Alive {
  hostname: string
  count: number
  ticks: number
  alarms: number
  address: string | null
  [more: string]: unknown
}

const dir = tempDir()
const dataDir = join(dir.path, 'data')
const share = join(dir.path, 'share')
mkdirSync(dataDir, { mode: 0o711 })
mkdirSync(share, { mode: 0o755 })
copyFileSync(new URL('./fixtures/alive.py', import.meta.url), join(share, 'alive.py'))
chmodSync(join(share, 'alive.py'), 0o644)
const driver = new OciDriver({ dataDir })
const skip = (await whyNot(driver)) ?? (driver.abilities.snapshot === 'memory' ? null : 'oci: CRIU 4 is missing (scripts/bootstrap.mjs)')
if (skip !== null && process.env.CI) throw new Error(skip)

describe.skipIf(skip !== null)(`snapshots over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let image: Prepared
  const made = new Set<string>()
  let snapshots = 0

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

  function spec(change: Partial<CreateSpec> = {}, ...words: string[]): CreateSpec {
    const id = newId('sbx')
    made.add(id)
    const ready = change.ready ?? 'agent'
    return {
      id,
      image,
      argv: ['python3', '-u', '/function/alive.py', ready, words.find((word) => Number(word) > 0) ?? '4', ...words],
      env: { PATH: '/usr/bin:/bin', STORE: change.root === 'readonly' ? '/tmp' : '/' },
      cwd: '/',
      mounts: [{ source: share, target: '/function', readonly: true }],
      resources: { memory_mib: 256, cpus: 1, pids: 64, tmp_mib: 16 },
      network: 'none',
      user: 'root',
      root: 'writable',
      ready,
      start_timeout_ms: 20_000,
      ...change,
    }
  }
  async function start(change: Partial<CreateSpec> = {}, ...words: string[]): Promise<string> {
    const sandbox = spec(change, ...words)
    await driver.create(sandbox)
    return sandbox.id
  }
  const clone = (snapshot: SnapshotSource, change: Partial<CreateSpec> = {}) => start({ ...change, snapshot })

  async function ask<T = Alive>(id: string, line = 'look', port: 'agent' | 'runtime' = 'agent'): Promise<T> {
    const stream = await driver.dial(id, port)
    try {
      let text = ''
      stream.on('data', (bytes: Buffer) => {
        text += bytes.toString()
        if (text.includes('\n')) stream.emit('line')
      })
      stream.write(`${line}\n`)
      await once(stream, 'line', { signal: AbortSignal.timeout(10_000) })
      return JSON.parse(text) as T
    } finally {
      stream.destroy()
      await once(stream, 'close')
    }
  }

  function folder(): string {
    const path = join(dir.path, `snapshot-${snapshots++}`)
    mkdirSync(path, { mode: 0o700 })
    return path
  }
  async function snapshot(id: string, options: { kind?: SnapshotKind; stop?: boolean; dir?: string; signal?: AbortSignal } = {}) {
    const target = { dir: options.dir ?? folder(), kind: options.kind ?? 'memory', stop: options.stop ?? false }
    const result = await driver.snapshot(id, { ...target, ...(options.signal ? { signal: options.signal } : {}) })
    const source: SnapshotSource = { dir: target.dir, kind: target.kind, state: JSON.parse(JSON.stringify(result.state)) }
    return { ...result, source }
  }

  test('memory, threads, timers, children, pipes, terminals, locks and files go on where they were', async () => {
    const parent = await start()
    await ask(parent, 'count')
    const before = await ask(parent)
    const { source, frozen_ms, fingerprint } = await snapshot(parent)
    expect(frozen_ms).toBeGreaterThan(0)
    expect(fingerprint).toMatchObject({
      kernel: expect.stringMatching(/^\d/),
      criu: expect.stringMatching(/^\d/),
      cpu: expect.stringMatching(/^[0-9a-f]{16}$/),
    })
    const id = await clone(source)
    const after = await ask(id)
    const kept = [
      'count',
      'next_line',
      'deleted',
      'locked',
      'shm',
      'child',
      'tcp',
      'pair',
      'terminal',
      'watched',
      'ballast',
      'pid',
      'uid',
      'low_port',
    ]
    expect(kept.map((name) => [name, after[name]])).toEqual(kept.map((name) => [name, before[name]]))
    expect(after).toMatchObject({
      count: 1,
      deleted: 'still here',
      locked: true,
      child: 42,
      tcp: 'there',
      pair: 'round',
      terminal: 'round',
      watched: true,
    })
    expect(after.hostname).toBe(id)
    expect(
      await eventually(async () => {
        const now = await ask(id)
        return now.ticks > after.ticks && now.alarms > after.alarms
      }),
    ).toBe(true)
    // The parent went on, and its connection with it; that of the clone was not kept.
    expect(await ask(parent)).toMatchObject({ hostname: parent, old_connection: 'x', child: 42, locked: true })
    expect(after.old_connection).toBe('closed')
  })

  test('clones of one snapshot count on by themselves, and are sandboxes like any other', async () => {
    const parent = await start()
    await ask(parent, 'count')
    const { source } = await snapshot(parent)
    const clones = await Promise.all([clone(source), clone(source), clone(source)])
    await ask(clones[0] as string, 'count')
    await ask(clones[0] as string, 'count')
    const counts = await Promise.all([...clones, parent].map(async (id) => (await ask(id, 'count')).count))
    expect(counts).toEqual([4, 2, 2, 2])
    expect(new Set(await Promise.all(clones.map(async (id) => (await ask(id)).hostname)))).toEqual(new Set(clones))
    for (const id of clones) {
      expect(await driver.inspect(id)).toMatchObject({ state: 'running', out_of_memory: false })
      await driver.pause(id)
      expect(await driver.inspect(id)).toMatchObject({ state: 'paused' })
      await driver.resume(id)
    }
    // Another server finds them.
    const next = new OciDriver({ dataDir })
    expect(await next.list()).toEqual(expect.arrayContaining(clones))
    expect(await next.inspect(clones[1] as string)).toMatchObject({ state: 'running' })
    await next.destroy(clones[1] as string)
    expect(await next.list()).not.toContain(clones[1])
    // The end of the program is seen.
    const ended = driver.wait(clones[2] as string)
    ;(await driver.dial(clones[2] as string, 'agent')).end('exit\n')
    expect(await ended).toMatchObject({ out_of_memory: false })
    expect(await driver.inspect(clones[2] as string)).toMatchObject({ state: 'exited' })
  })

  test('a restore goes where a shell waits for it, and does without when that was killed', async () => {
    const { source } = await snapshot(await start())
    const first = await clone(source)
    await ask(first, 'count')
    const tag = createHash('sha256').update(dataDir).digest('hex').slice(0, 12)
    const base = join('/sys/fs/cgroup/memory/thaw', tag)
    const stages = () => (existsSync(base) ? readdirSync(base).filter((name) => name.startsWith('stage-')) : [])
    const shells = () =>
      stages().flatMap((name) =>
        quietly(join(base, name, 'cgroup.procs'))
          .split('\n')
          .filter(Boolean)
          .map(Number),
      )
    // Groups of version 2 keep their names, so nothing waits there.
    if (!existsSync('/sys/fs/cgroup/memory')) return
    expect(await eventually(() => stages().length === 2 && shells().length === 2)).toBe(true)
    const waiting = stages()
    await ask(await clone(source), 'count')
    expect(stages().filter((name) => waiting.includes(name))).toHaveLength(1)
    for (const pid of shells()) process.kill(pid, 'SIGKILL')
    await ask(await clone(source), 'count')
    expect(await eventually(() => stages().length === 2 && shells().length === 2)).toBe(true)
    // They are nobody's sandboxes.
    expect((await driver.list()).filter((id) => id.startsWith('stage-'))).toEqual([])
  })

  test('limits hold for clones', async () => {
    const { source } = await snapshot(await start())
    const id = await clone(source, { resources: { memory_mib: 64, cpus: 0.5, pids: 17, tmp_mib: 16 } })
    expect(limitsOf(id)).toEqual({ memory: String(64 * 1024 * 1024), pids: '17' })
  })

  test('files are those of the moment, in the clone of a clone too, and nobody writes into a snapshot', async () => {
    const parent = await start()
    await ask(parent, 'write kept before')
    await ask(parent, 'remove /etc/hostname')
    const first = await snapshot(parent)
    await ask(parent, 'write kept after')
    const listing = () => runCommand('find', [first.source.dir, '-type', 'f', '-exec', 'sha256sum', '{}', '+']).then((done) => done.stdout)
    const contents = await listing()
    const child = await clone(first.source)
    expect(await ask(child, 'read kept')).toEqual({ text: 'before' })
    expect(await ask(child, 'read /etc/hostname')).toEqual({ text: null })
    await ask(child, 'count')
    await ask(child, 'write mine child')
    const second = await snapshot(child)
    await driver.destroy(child)
    await driver.destroy(parent)
    const grandchild = await clone(second.source)
    expect(await ask(grandchild, 'read mine')).toEqual({ text: 'child' })
    expect(await ask(grandchild, 'read kept')).toEqual({ text: 'before' })
    expect(await ask(grandchild, 'count')).toEqual({ count: 2 })
    expect((await ask(grandchild)).hostname).toBe(grandchild)
    expect(await listing()).toBe(contents)
  })

  test('under write load memory and files belong together', async () => {
    const parent = await start({}, 'log')
    for (let round = 0; round < 3; round++) {
      const id = await clone((await snapshot(parent)).source)
      for (const sandbox of [id, parent]) {
        const { before, lines, after } = await ask<{ before: number; lines: number; after: number }>(sandbox, 'logged')
        expect(lines).toBeGreaterThanOrEqual(before)
        expect(lines).toBeLessThanOrEqual(after + 1)
      }
      await driver.destroy(id)
    }
  })

  test('a sandbox that starts programs all the time', async () => {
    const parent = await start({}, 'spawn')
    for (let round = 1; round <= 8; round++) {
      const { source } = await snapshot(parent, { signal: AbortSignal.timeout(4_000) })
      expect(await ask(parent, 'count')).toEqual({ count: round })
      if (round % 4 === 0) expect(await ask(await clone(source), 'count')).toEqual({ count: round })
    }
  })

  test('a sandbox without an agent: its output arrives again, and its end is seen', async () => {
    const change = { ready: 'runtime', root: 'readonly', user: 'function' } as const
    const parent = await start(change)
    const { source } = await snapshot(parent)
    let output = ''
    const id = await clone(source, { ...change, onOutput: (from, bytes) => (output += `${from} ${bytes}`) })
    await ask(id, 'print hello', 'runtime')
    expect(await eventually(() => output === 'stdout hello\n')).toBe(true)
    const second = await snapshot(id)
    const next = await clone(second.source, { ...change, onOutput: (from, bytes) => (output += `${from} ${bytes}`) })
    await ask(next, 'print again', 'runtime')
    expect(await eventually(() => output === 'stdout hello\nstdout again\n')).toBe(true)
    const ended = driver.wait(next)
    ;(await driver.dial(next, 'runtime')).end('exit\n')
    await ended
    expect(await driver.inspect(next)).toMatchObject({ state: 'exited' })
  })

  test('a clone with a network has an address of its own', async () => {
    const parent = await start({ network: 'egress' })
    const { source } = await snapshot(parent)
    const clones = await Promise.all([clone(source, { network: 'egress' }), clone(source, { network: 'egress' }), clone(source)])
    const addresses = await Promise.all([parent, ...clones].map(async (id) => (await ask(id)).address))
    expect(addresses[3]).toBeNull()
    expect(addresses.slice(0, 3)).toEqual(Array(3).fill(expect.stringMatching(/^100\./)))
    expect(new Set(addresses).size).toBe(4)
  })

  test('what is paused stays paused, and its clone runs', async () => {
    const parent = await start()
    await driver.pause(parent)
    const { source } = await snapshot(parent)
    expect(await driver.inspect(parent)).toMatchObject({ state: 'paused' })
    expect(await ask(await clone(source), 'count')).toEqual({ count: 1 })
    await driver.resume(parent)
    expect(await ask(parent, 'count')).toEqual({ count: 1 })
  })

  test('with stop it ends at the moment of the snapshot, and goes on from there', async () => {
    const parent = await start()
    await ask(parent, 'count')
    const ended = driver.wait(parent)
    const { source } = await snapshot(parent, { stop: true })
    await ended
    expect(await driver.inspect(parent)).toMatchObject({ state: 'exited' })
    await driver.destroy(parent)
    expect(await ask(await clone(source), 'count')).toEqual({ count: 2 })
  })

  test('kind filesystem keeps the files alone', async () => {
    const parent = await start()
    await ask(parent, 'count')
    await ask(parent, 'write kept before')
    const { source } = await snapshot(parent, { kind: 'filesystem' })
    await ask(parent, 'write kept after')
    const id = await clone(source)
    expect(await ask(id, 'read kept')).toEqual({ text: 'before' })
    expect(await ask(id, 'count')).toEqual({ count: 1 })
    await expect(
      snapshot(await start({ root: 'readonly', ready: 'runtime', user: 'function' }), { kind: 'filesystem' }),
    ).rejects.toMatchObject({
      code: 'snapshot_unsupported',
    })
  })

  test('snapshots at once, of one sandbox and of two', async () => {
    const parents = [await start(), await start()] as const
    const taken = await Promise.all([snapshot(parents[0]), snapshot(parents[1]), snapshot(parents[0])])
    for (const { source } of taken) expect(await ask(await clone(source), 'count')).toEqual({ count: 1 })
    for (const parent of parents) expect(await ask(parent, 'count')).toEqual({ count: 1 })
  })

  test('a sandbox that is deleted while it is restored leaves nothing', async () => {
    const { source } = await snapshot(await start())
    for (const when of ['sh', 'criu'] as const) {
      const sandbox = spec({ snapshot: source })
      const created = driver.create(sandbox).catch((error: unknown) => error)
      expect(await promptly(() => processesOf(sandbox.id).some((line) => line.includes(when)))).toBe(true)
      await driver.destroy(sandbox.id)
      expect(await created).toBeInstanceOf(Error)
      await driver.destroy(sandbox.id)
      expect(await driver.list()).not.toContain(sandbox.id)
      expect(processesOf(sandbox.id)).toEqual([])
    }
  })

  test('a restore that is abandoned rejects with the reason and leaves nothing', async () => {
    const { source } = await snapshot(await start())
    const sandbox = spec({ snapshot: source })
    const abandon = new AbortController()
    const created = driver.create(sandbox, abandon.signal)
    expect(await promptly(() => processesOf(sandbox.id).length > 0)).toBe(true)
    abandon.abort(new Error('changed my mind'))
    await expect(created).rejects.toThrow('changed my mind')
    expect(await driver.list()).not.toContain(sandbox.id)
    expect(processesOf(sandbox.id)).toEqual([])
  })

  test('files that were cut, changed or lost are an error and no hang, and leave nothing', async () => {
    const parent = await start()
    const damage: [string, (path: string) => void][] = [
      ['pages-1.img', (path) => truncateSync(path, 4096)],
      ['core-1.img', (path) => overwrite(path, 40)],
      ['mm-1.img', (path) => overwrite(path, 12)],
      ['pagemap-1.img', (path) => overwrite(path, 9)],
      ['files.img', (path) => truncateSync(path, 0)],
    ]
    for (const [name, harm] of damage) {
      const { source } = await snapshot(parent)
      harm(join(source.dir, 'memory', name))
      const sandbox = spec({ snapshot: source })
      const signal = AbortSignal.timeout(5_000)
      const error = await driver.create(sandbox, signal).catch((reason: unknown) => reason)
      expect({ name, code: (error as { code?: string }).code }).toEqual({ name, code: 'snapshot_corrupt' })
      expect(await driver.list()).not.toContain(sandbox.id)
      expect(processesOf(sandbox.id)).toEqual([])
    }
  })

  test('a sandbox without a mount that the snapshot has is refused, and so is a state of another version', async () => {
    const { source } = await snapshot(await start())
    await expect(clone(source, { mounts: [] })).rejects.toMatchObject({ code: 'snapshot_incompatible' })
    await expect(clone({ ...source, state: { version: 7 } })).rejects.toMatchObject({ code: 'snapshot_incompatible' })
  })

  test('CRIU killed while it works: the sandbox lives on, or the error says that it does not; nothing half-made stays', async () => {
    let lived = 0
    for (const moment of ['starting', 'reading memory', 'starting', 'reading memory', 'starting', 'reading memory']) {
      const parent = await start({}, '100')
      const target = folder()
      const taken = snapshot(parent, { dir: target }).catch((error: unknown) => error)
      // The image is first written where only CRIU sees it.
      const size = (pid: number) => statSync(`/proc/${pid}/root${target}/stage/pages-1.img`, { throwIfNoEntry: false })?.size ?? 0
      expect(await promptly(() => criuAt(target).some((pid) => moment === 'starting' || size(pid) > 0))).toBe(true)
      for (const pid of criuAt(target)) killQuietly(pid)
      const error = (await taken) as { code?: string; details?: { ended?: boolean } }
      expect(error.code).toBe('snapshot_failed')
      expect(readdirSync(target)).toEqual([])
      if (error.details?.ended) expect(await driver.inspect(parent)).toMatchObject({ state: 'exited' })
      else {
        lived++
        expect(await ask(parent, 'count')).toEqual({ count: 1 })
        expect(await ask(await clone((await snapshot(parent)).source), 'count')).toEqual({ count: 2 })
      }
      await driver.destroy(parent)
    }
    // It dies when a process is hit that CRIU is just putting its own code into, or taking it out again: that is rare.
    expect(lived).toBeGreaterThan(0)
  })

  test('a snapshot that is abandoned leaves the sandbox as it was', async () => {
    const parent = await start()
    const target = folder()
    const abandon = new AbortController()
    const taken = snapshot(parent, { dir: target, signal: abandon.signal })
    await waitUntil(() => criuAt(target).length > 0, 10_000)
    abandon.abort(new Error('changed my mind'))
    await expect(taken).rejects.toThrow('changed my mind')
    expect(readdirSync(target)).toEqual([])
    expect(await ask(parent, 'count')).toEqual({ count: 1 })
  })

  test('a full disk is an error, and the sandbox lives on', async () => {
    const parent = await start()
    const small = folder()
    await runCommand('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', small])
    try {
      for (const kind of ['memory', 'filesystem'] as const) {
        if (kind === 'filesystem') await ask(parent, `write big ${'x'.repeat(3_000_000)}`)
        const target = join(small, kind)
        mkdirSync(target, { mode: 0o700 })
        await expect(snapshot(parent, { dir: target, kind })).rejects.toMatchObject({ code: 'disk_full' })
        expect(readdirSync(target)).toEqual([])
        expect(await driver.inspect(parent)).toMatchObject({ state: 'running' })
      }
      expect(await ask(parent, 'count')).toEqual({ count: 1 })
    } finally {
      await runCommand('umount', [small])
    }
  })

  test('a sandbox that has ended cannot be kept', async () => {
    const parent = await start()
    const ended = driver.wait(parent)
    ;(await driver.dial(parent, 'agent')).end('exit\n')
    await ended
    const target = folder()
    await expect(snapshot(parent, { dir: target })).rejects.toMatchObject({ code: 'driver_failed' })
    expect(readdirSync(target)).toEqual([])
  })

  test('images are closed to other users of the host', async () => {
    const { source } = await snapshot(await start())
    expect(statSync(source.dir).mode & 0o777).toBe(0o700)
    for (const name of readdirSync(join(source.dir, 'memory'))) {
      const { mode } = statSync(join(source.dir, 'memory', name))
      // The offsets of the clocks, which a process reads that is nobody yet.
      expect({ name, mode: mode & 0o777 }).toEqual({ name, mode: name.startsWith('timens') ? 0o644 : 0o600 })
    }
  })
})

function overwrite(path: string, from: number): void {
  const file = openSync(path, 'r+')
  writeSync(file, Buffer.alloc(24, 0xff), 0, 24, from)
}

/** Command lines of processes that work for a sandbox or in it. */
function processesOf(id: string): string[] {
  return (
    findProcesses((pid) => (cmdline(pid) + quietly(`/proc/${pid}/cgroup`)).includes(id))
      .map(cmdline)
      // Without one it has ended, and waits to be collected.
      .filter((line) => line !== '')
  )
}

/** CRIU itself, at work on a folder: not the shell that started it. */
function criuAt(folder: string): number[] {
  return findProcesses((pid) => cmdline(pid).includes(folder) && quietly(`/proc/${pid}/cmdline`).split('\0').includes('dump'))
}

/** Asks without a pause: the moment does not last. */
async function promptly(condition: () => boolean): Promise<boolean> {
  const end = performance.now() + 10_000
  while (!condition()) {
    if (performance.now() > end) return false
    await new Promise((resolve) => setImmediate(resolve))
  }
  return true
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // A helper that went with the one before.
  }
}

const cmdline = (pid: number) => quietly(`/proc/${pid}/cmdline`).replaceAll('\0', ' ')

function quietly(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}

function limitsOf(id: string): { memory: string; pids: string } {
  const of = (controller: string, v1: string, v2: string) => {
    const pid = findProcesses((candidate) => quietly(`/proc/${candidate}/cgroup`).includes(id))[0]
    const lines = quietly(`/proc/${pid}/cgroup`)
      .split('\n')
      .map((line) => line.split(':'))
    const own = lines.find(([, names]) => (names ?? '').split(',').includes(controller))
    const path =
      own === undefined
        ? `/sys/fs/cgroup${lines.find(([, names]) => names === '')?.[2]}/${v2}`
        : `/sys/fs/cgroup/${controller}${own[2]}/${v1}`
    return existsSync(path) ? readFileSync(path, 'latin1').trim() : path
  }
  return { memory: of('memory', 'memory.limit_in_bytes', 'memory.max'), pids: of('pids', 'pids.max', 'pids.max') }
}
