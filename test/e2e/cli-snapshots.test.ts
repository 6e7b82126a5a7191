import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { buffer, text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { SandboxItem, SandboxTree, SnapshotItem } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'
import { TestTerminal } from '../support/terminal.ts'

// The command as people run it: a process of its own, against the real server and the real CRIU.

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))
const skip = await whyNoDriver('oci')

describe.skipIf(skip !== null)(`the command line, snapshots and forks over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', ssh: { enabled: false } })
  }, 120_000)
  afterAll(() => server?.[Symbol.asyncDispose](), 60_000)

  function env(more: Record<string, string> = {}): NodeJS.ProcessEnv {
    const outer = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_')))
    return { ...outer, THAW_URL: server.url, TERM: 'xterm-256color', ...more }
  }

  function start(args: string[], more: Record<string, string> = {}): ChildProcessWithoutNullStreams {
    const child = spawn(process.execPath, [script, ...args], { env: env(more) })
    onTestFinished(() => void child.kill('SIGKILL'))
    return child
  }

  async function ended(child: ChildProcessWithoutNullStreams): Promise<{ code: number | null; stdout: string; stderr: string }> {
    const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
    return { code, stdout, stderr }
  }

  async function thaw(args: string[], input: string | Uint8Array = '', more: Record<string, string> = {}) {
    const child = start(args, more)
    // A command that does not read its input may end before it has all.
    child.stdin.on('error', () => undefined)
    child.stdin.end(input)
    return ended(child)
  }

  /** What a command printed that must have worked. */
  async function out(...args: string[]): Promise<string> {
    const { code, stdout, stderr } = await thaw(args)
    expect(code, stderr).toBe(0)
    return stdout.trimEnd()
  }

  const json = async (...args: string[]) => JSON.parse(await out(...args, '--json'))

  let count = 0
  /** A sandbox with a process that is in memory alone, and a file. */
  async function living(): Promise<string> {
    const name = `lab-${++count}`
    await out('sandbox', 'create', '--image', 'python', '--name', name, '--network', 'none')
    onTestFinished(() => server.thaw.sandboxes.delete(name).catch(() => undefined))
    await out('sandbox', 'exec', name, '--', 'sh', '-c', 'echo kept > /root/file; setsid sleep 98765 </dev/null >/dev/null 2>&1 &')
    expect(await inside(name)).toEqual({ file: 'kept', sleeps: true })
    return name
  }

  async function inside(id: string): Promise<{ file: string; sleeps: boolean }> {
    const words = 'cat /root/file; for file in /proc/[0-9]*/cmdline; do tr "\\0" " " < $file; echo; done 2>/dev/null'
    const lines = (await out('sandbox', 'exec', id, '--', 'sh', '-c', words)).split('\n').map((line) => line.trim())
    return { file: lines[0] as string, sleeps: lines.includes('sleep 98765') }
  }

  async function snapshotOf(name: string, ...flags: string[]): Promise<string> {
    const id = await out('sandbox', 'snapshot', name, ...flags)
    expect(id).toMatch(/^snap-[0-9a-z]{26}$/)
    onTestFinished(() => server.thaw.snapshots.delete(id).catch(() => undefined))
    return id
  }

  /** The test may be over before its sandboxes are. */
  const forget = (ids: string[]) =>
    onTestFinished(async () => {
      await Promise.all(ids.map((id) => server.thaw.sandboxes.delete(id).catch(() => undefined)))
    })

  test('fork prints the ids of children that go on with memory and files; with --files-only, with files alone', async () => {
    const name = await living()
    const forked = await thaw(['sandbox', 'fork', name, '--count', '2', '--metadata', 'attempt=2'])
    expect(forked.code, forked.stderr).toBe(0)
    const ids = forked.stdout.trimEnd().split('\n')
    forget(ids)
    expect(ids).toEqual([expect.stringMatching(/^sbx-\w{26}$/), expect.stringMatching(/^sbx-\w{26}$/)])
    expect(forked.stderr).toMatch(new RegExp(`2 forks of ${name} in .*, memory and files; ${name} stood still for [\\d.]+ m?s`))
    for (const id of ids) expect(await inside(id)).toEqual({ file: 'kept', sleeps: true })
    expect((await json('sandbox', 'inspect', ids[0] as string)).metadata).toEqual({ attempt: '2' })
    const files = (await json('sandbox', 'fork', name, '--files-only')) as { items: SandboxItem[]; frozen_ms: number }
    const [child] = files.items as [SandboxItem]
    forget([child.id])
    expect(files).toMatchObject({ items: [{ boot_method: 'cold' }], frozen_ms: expect.any(Number) })
    expect(await inside(child.id)).toEqual({ file: 'kept', sleeps: false })
  })

  test('tree draws who came from whom, and in which state', async () => {
    const name = await living()
    const first = await out('sandbox', 'fork', name)
    const second = await out('sandbox', 'fork', first)
    forget([first, second])
    await out('sandbox', 'pause', first)
    await out('sandbox', 'hibernate', second)
    const lines = (await out('sandbox', 'tree', first)).split('\n')
    expect(lines.slice(1)).toEqual([
      expect.stringMatching(`^sbx-\\w+ +${name} +● running +create `),
      expect.stringMatching(`^└─ ${first} \\* +- +◐ paused +fork `),
      expect.stringMatching(`^   └─ ${second} +- +○ hibernated +fork `),
    ])
    const tree = (await json('sandbox', 'tree', second)) as SandboxTree
    expect(tree.items.map(({ id }) => id)).toEqual([tree.root_id, first, second])
    const terminal = new TestTerminal([process.execPath, script, 'sandbox', 'tree', name], {
      // Where CI says that it is one, colors are left out.
      env: { ...env(), FORCE_COLOR: '1' },
      cols: 120,
      rows: 20,
    })
    await terminal.see('\x1b[32m● running\x1b[39m')
    await terminal.see('\x1b[34m○ hibernated\x1b[39m')
    expect((await terminal.ended()).code).toBe(0)
    await out('sandbox', 'rm', name)
    expect((await thaw(['sandbox', 'tree', second])).stderr).toContain(`${first} came from ${tree.root_id}, which was removed`)
  })

  test('hibernate ends the processes, and the next command finds them as they were', async () => {
    const name = await living()
    expect(await out('sandbox', 'hibernate', name)).toBe(`hibernated ${name}`)
    expect(await json('sandbox', 'ls', '--state', 'hibernated')).toEqual([expect.objectContaining({ name })])
    expect(await inside(name)).toEqual({ file: 'kept', sleeps: true })
    const made = await json('sandbox', 'create', '--image', 'python', '--idle', '10m', '--hibernate', '2h')
    forget([made.id])
    expect(made).toMatchObject({ idle_ms: 600_000, hibernate_ms: 7_200_000 })
  })

  test('a snapshot is taken, listed, shown, restored by id and by name, and removed', async () => {
    const name = await living()
    const id = await snapshotOf(name, '--name', 'a-good-place')
    const { id: sandboxId } = (await json('sandbox', 'inspect', name)) as SandboxItem
    await out('sandbox', 'exec', name, '--', 'sh', '-c', 'echo spoiled > /root/file')
    const row = new RegExp(`^${id} +a-good-place +memory +ready +[\\d.]+ MiB +[\\d.]+ m?s +${sandboxId} +python +oci +0 `, 'm')
    expect(await out('snapshot', 'ls')).toMatch(row)
    expect(await out('snapshot', 'ls', '--sandbox', name, '-q')).toBe(id)
    await out('sandbox', 'rm', name)
    expect(await out('snapshot', 'ls', '--sandbox', sandboxId, '-q')).toBe(id)
    expect(await out('snapshot', 'inspect', 'a-good-place')).toMatch(/^kind +memory \(memory and files\)$/m)

    const restored = await out('snapshot', 'restore', id, '--name', 'restored', '--timeout', '2h', '-p', '8000', '-e', 'MORE=yes')
    forget(['restored'])
    expect(restored).toMatch(/^sbx-\w+ is running \(python, oci, warm, .*\)\nuse it: .*thaw sandbox shell restored$/)
    expect(await inside('restored')).toEqual({ file: 'kept', sleeps: true })
    expect(await json('sandbox', 'inspect', 'restored')).toMatchObject({ timeout_ms: 7_200_000, ports: [8000], snapshot_id: id })
    expect(await out('sandbox', 'exec', 'restored', 'printenv', 'MORE')).toBe('yes')
    const created = await out('sandbox', 'create', '--from', 'a-good-place', '-q')
    forget([created])
    expect(await inside(created)).toEqual({ file: 'kept', sleeps: true })
    expect((await json('snapshot', 'inspect', id)) as SnapshotItem).toMatchObject({ success_count: 2, failure_count: 0 })

    expect(await out('snapshot', 'rm', id)).toBe(`removed ${id}`)
    expect(await inside('restored')).toEqual({ file: 'kept', sleeps: true })
    expect(await thaw(['snapshot', 'inspect', id])).toMatchObject({ code: 1, stderr: expect.stringMatching(/fix: .*thaw snapshot ls/) })
  })

  test('--kind filesystem keeps files alone, and says so', async () => {
    const name = await living()
    const taken = await thaw(['sandbox', 'snapshot', name, '--kind', 'filesystem', '--json'])
    const { id, kind } = JSON.parse(taken.stdout) as SnapshotItem
    onTestFinished(() => server.thaw.snapshots.delete(id))
    expect([kind, taken.stderr]).toEqual(['filesystem', ''])
    const restored = await out('snapshot', 'restore', id, '-q')
    forget([restored])
    expect(await inside(restored)).toEqual({ file: 'kept', sleeps: false })
    expect((await thaw(['sandbox', 'snapshot', name, '--kind', 'disk'])).code).toBe(2)
  })

  test('the newest of a name is meant, but rm refuses a name that several have', async () => {
    const name = await living()
    const older = await snapshotOf(name, '--name', 'twice', '--kind', 'filesystem')
    const newer = await snapshotOf(name, '--name', 'twice', '--kind', 'filesystem')
    expect((await json('snapshot', 'inspect', 'twice')).id).toBe(newer)
    const refused = await thaw(['snapshot', 'rm', 'twice'])
    expect(refused).toMatchObject({ code: 1, stdout: '', stderr: expect.stringContaining(older) })
    expect(await out('snapshot', 'ls', '--sandbox', name, '-q')).toBe(`${newer}\n${older}`)
    const some = await thaw(['snapshot', 'rm', 'nothere', older, 'twice'])
    expect(some).toMatchObject({ code: 1, stdout: `removed ${older}\nremoved twice\n`, stderr: expect.stringContaining('"nothere"') })
    expect(await out('snapshot', 'ls', '--sandbox', name, '-q')).toBe('')
  })

  test('export writes one file for its owner alone, and import brings it back, memory and all; through pipes too', async () => {
    const name = await living()
    const id = await snapshotOf(name, '--name', 'moving')
    using dir = tempDir()
    const file = join(dir.path, 'moving.tar.zst')
    expect(await out('snapshot', 'export', 'moving', '-o', file)).toMatch(/moving\.tar\.zst \([\d.]+ .iB\)$/)
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect((await json('snapshot', 'export', id, '-o', dir.path)).path).toBe(join(dir.path, `${id}.tar.zst`))
    expect(readdirSync(dir.path).sort()).toEqual(['moving.tar.zst', `${id}.tar.zst`].sort())
    const piped = start(['snapshot', 'export', id])
    piped.stdin.end()
    const [bytes] = await Promise.all([buffer(piped.stdout), once(piped, 'close')])
    await out('snapshot', 'rm', id)

    const imported = await out('snapshot', 'import', file, '--name', 'arrived')
    const again = await thaw(['snapshot', 'import', '-', '--json'], bytes)
    expect(again.code, again.stderr).toBe(0)
    const { id: second, name: kept } = JSON.parse(again.stdout) as SnapshotItem
    for (const made of [imported, second]) onTestFinished(() => server.thaw.snapshots.delete(made))
    expect(kept).toBe('moving')
    expect(await json('snapshot', 'inspect', 'arrived')).toMatchObject({ id: imported, kind: 'memory', sandbox_id: null })
    for (const from of ['arrived', second]) {
      const restored = await out('snapshot', 'restore', from, '-q')
      forget([restored])
      expect(await inside(restored)).toEqual({ file: 'kept', sleeps: true })
    }

    writeFileSync(join(dir.path, 'cut'), readFileSync(file).subarray(0, statSync(file).size >> 1))
    const cut = await thaw(['snapshot', 'import', join(dir.path, 'cut')])
    expect(cut).toMatchObject({ code: 1, stderr: expect.stringMatching(/not all of it[\s\S]*fix: .*thaw snapshot export/) })
    expect((await thaw(['snapshot', 'import', join(dir.path, 'nothing')])).stderr).toContain('There is no')
    expect((await thaw(['snapshot', 'import', dir.path])).stderr).toContain('is a folder')
  })

  test('an export that fails or is given up leaves no file, and replaces no device', async () => {
    const name = await living()
    const id = await snapshotOf(name)
    using dir = tempDir()
    expect((await thaw(['snapshot', 'export', id, '-o', join(dir.path, 'no', 'where')])).stderr).toContain('cannot be written')
    expect(await out('snapshot', 'export', id, '-o', '/dev/null')).toContain('/dev/null')
    expect(statSync('/dev/null').isCharacterDevice()).toBe(true)
    // Random bytes do not become smaller, so that there is time to give up.
    await out('sandbox', 'exec', name, '--', 'dd', 'if=/dev/urandom', 'of=/root/ballast', 'bs=1M', 'count=256', 'status=none')
    const large = await snapshotOf(name, '--kind', 'filesystem')
    const file = join(dir.path, 'large')
    const given = start(['snapshot', 'export', large, '-o', file])
    const end = ended(given)
    expect(await eventually(() => readdirSync(dir.path).some((entry) => entry.endsWith('.part')))).toBe(true)
    given.kill('SIGINT')
    expect((await end).code).toBe(130)
    expect(readdirSync(dir.path)).toEqual([])
    const told = await thaw(['snapshot', 'export', id, '--json'])
    expect(told).toMatchObject({ code: 2, stdout: '', stderr: expect.stringContaining('-o FILE') })
  })

  test('what a snapshot decides cannot be given beside it', async () => {
    const refused = await thaw(['sandbox', 'create', '--from', 'any', '--memory', '1GiB', '--', 'sleep', '5'])
    expect(refused).toMatchObject({ code: 2, stderr: expect.stringMatching(/--memory, the command sleep cannot be given with --from/) })
    expect((await thaw(['sandbox', 'fork', 'nobody'])).stderr).toMatch(/fix: .*thaw sandbox ls/)
    expect((await thaw(['sandbox', 'fork', 'nobody', '--count', '0'])).code).toBe(2)
    expect((await thaw(['snapshot', 'restore', 'nothere'])).stderr).toMatch(/no snapshot "nothere"[\s\S]*fix: .*thaw snapshot ls/)
  })

  test('run --cached runs a command once, and what failed or differs again', async () => {
    const line = ['python', '--', 'sh', '-c', 'date +%s%N; head -c 16 /dev/urandom; echo said >&2']
    const run = async (...flags: string[]) => {
      const child = start(['run', '--cached', ...flags, ...line])
      child.stdin.end()
      const [bytes, stderr, [code]] = await Promise.all([buffer(child.stdout), text(child.stderr), once(child, 'close')])
      return { bytes, stderr, code }
    }
    const [first, second] = [await run(), await run()]
    expect(first).toMatchObject({ code: 0, stderr: expect.not.stringContaining('earlier') })
    expect(second).toMatchObject({ code: 0, stderr: expect.stringMatching(/^said\nkept from an earlier run, which took /m) })
    expect(second.bytes.equals(first.bytes)).toBe(true)
    expect((await run('--env', 'A=b')).bytes.equals(first.bytes)).toBe(false)
    expect((await thaw(['run', '--cached', '-i', 'python', 'cat'], 'as input')).stdout).toBe('as input')
    const failing = ['run', '--cached', '--json', 'python', '--', 'sh', '-c', 'echo no; exit 7']
    for (let round = 0; round < 2; round++) {
      const failed = await thaw(failing)
      expect([failed.code, JSON.parse(failed.stdout)]).toEqual([7, expect.objectContaining({ stdout: 'no\n', cached: false })])
    }
    expect(await thaw(['run', '--cached', '--keep', 'python', 'true'])).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('--keep'),
    })
    expect((await thaw(['run', '--cache-ttl', '1d', 'python', 'true'])).code).toBe(2)
  })

  test('bash completes snapshots where one is asked for', async () => {
    const id = await snapshotOf(await living(), '--kind', 'filesystem')
    const { stdout } = await thaw(['completion', 'bash'])
    const complete = async (...words: string[]) => {
      const probe = `thaw() { "${process.execPath}" "${script}" "$@"; }\n${stdout}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _thaw; echo "\${COMPREPLY[*]}"`
      const shell = spawn('bash', ['-c', probe, 'bash', 'thaw', ...words], { env: env() })
      return (await ended(shell)).stdout.trim().split(' ')
    }
    expect(await complete('snapshot', 'inspect', '')).toContain(id)
    expect(await complete('sandbox', 'create', '--from', 'snap-')).toContain(id)
    expect(await complete('sandbox', 'snapshot', 'lab', '--kind', 'm')).toEqual(['memory'])
  })
})

test('only an admin may import; a driver without snapshots says what to do', async () => {
  await using server = await startServer({ driver: 'process', ssh: { enabled: false } })
  const run = async (args: string[], key?: string) => {
    const child = spawn(process.execPath, [script, ...args], {
      env: { ...process.env, THAW_URL: server.url, ...(key === undefined ? {} : { THAW_API_KEY: key }) },
    })
    child.stdin.end()
    const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
    return { code, stdout: stdout.trim(), stderr }
  }
  const id = (await run(['sandbox', 'create', '-q'])).stdout
  const refused = await run(['sandbox', 'fork', id])
  expect(refused).toMatchObject({ code: 1, stderr: expect.stringMatching(/process takes no snapshots[\s\S]*fix: Choose another driver/) })
  await server.thaw.sandboxes.delete(id)
  const admin = (await run(['key', 'create', 'admin'])).stdout
  const member = (await run(['key', 'create', 'member', '--tenant', 'web'], admin)).stdout
  using dir = tempDir()
  const file = join(dir.path, 'large')
  // More than fits into the buffers on the way: the answer comes before all of it was sent.
  writeFileSync(file, Buffer.alloc(32 * 1024 * 1024, 'x'))
  expect(await run(['snapshot', 'import', file], member)).toMatchObject({ code: 1, stderr: expect.stringMatching(/admin/) })
  expect(await run(['snapshot', 'import', file], admin)).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(/no snapshot that was exported/),
  })
})
