import { execFile } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { SandboxItem, SandboxTree, SnapshotItem } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

/** Counts in memory, holds an open file, a listening socket, a thread, a child behind a pipe and a timer, and answers on port 7000. */
const living = `
import http.server, json, os, signal, subprocess, sys, threading, time
count = 0
ticks = 0
opened = open('/root/opened', 'w+')
opened.write('held open'); opened.flush(); os.unlink('/root/opened')
child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
ballast = os.urandom(8 * 1024 * 1024)
def tick(*_):
    global ticks
    ticks += 1
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
def counting():
    global count
    while True:
        count += 1
        time.sleep(0.005)
threading.Thread(target=counting, daemon=True).start()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        opened.seek(0)
        child.stdin.write('through the pipe\\n')
        said = child.stdout.readline().strip()
        body = json.dumps({'count': count, 'ticks': ticks, 'opened': opened.read(), 'child': said, 'pid': os.getpid(), 'ballast': hash(ballast), 'hostname': os.uname().nodename}).encode()
        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(('127.0.0.1', 7000), Handler).serve_forever()
`

/** Writes into an SQLite database that it holds open, and says how it went. */
const writing = `
import sqlite3, time
database = sqlite3.connect('/root/data.db', isolation_level=None)
database.execute('create table if not exists counts (count integer)')
count = 0
while True:
    count += 1
    try:
        database.execute('insert into counts values (?)', (count,))
        said = f'wrote {count}'
    except sqlite3.Error as error:
        said = f'failed: {error}'
    with open('/root/said.new', 'w') as file: file.write(said)
    import os; os.rename('/root/said.new', '/root/said')
    time.sleep(0.02)
`

interface State {
  count: number
  ticks: number
  opened: string
  child: string
  pid: number
  ballast: number
  hostname: string
}

describe.skipIf(skip !== null)(`snapshots, forks and sleep over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let api: Api

  beforeAll(async () => {
    server = await startServer({ driver: 'oci' })
    api = new Api(server.url)
  })
  afterAll(() => server?.[Symbol.asyncDispose]())

  const ask = async (id: string): Promise<State> =>
    JSON.parse(
      await api.stdout(id, [
        'python3',
        '-c',
        'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:7000", timeout=5).read().decode())',
      ]),
    )

  async function alive(request: object = {}): Promise<SandboxItem> {
    const item = await api.sandbox({ image: 'python', ...request })
    await api.send('PUT', `/v1/sandboxes/${item.id}/files?path=/root/living.py`, living)
    await api.exec(item.id, 'setsid python3 /root/living.py </dev/null >/root/log 2>&1 &')
    expect(
      await eventually(() =>
        ask(item.id).then(
          (state) => state.count > 10,
          () => false,
        ),
      ),
    ).toBe(true)
    return item
  }
  const fork = async (id: string, body: object = {}): Promise<{ items: SandboxItem[]; frozen_ms: number }> => {
    const { status, body: answer } = await api.send('POST', `/v1/sandboxes/${id}/fork`, body)
    if (status !== 201) throw new Error(JSON.stringify(answer))
    return answer
  }
  const snapshot = async (id: string, body: object = {}): Promise<SnapshotItem> => {
    const { status, body: answer } = await api.send('POST', `/v1/sandboxes/${id}/snapshot`, body)
    if (status !== 201) throw new Error(JSON.stringify(answer))
    return answer.item
  }
  const restore = (id: string, body: object = {}) => api.send('POST', `/v1/snapshots/${id}/restore`, body)

  test('a database that is open is written to by the parent, by its forks, by forks of them, and after a hibernation', async () => {
    const parent = await api.sandbox({ image: 'python', network: 'none' })
    await api.send('PUT', `/v1/sandboxes/${parent.id}/files?path=/root/writing.py`, writing)
    await api.exec(parent.id, 'setsid python3 /root/writing.py </dev/null >/root/log 2>&1 &')
    const written = async (id: string) => {
      const said = await api.stdout(id, 'cat /root/said 2>/dev/null || echo wrote 0')
      expect(said).toMatch(/^wrote \d+/)
      return Number(said.slice('wrote '.length))
    }
    const goesOn = async (id: string) => {
      const before = await written(id)
      expect(await eventually(async () => (await written(id)) > before)).toBe(true)
    }
    await goesOn(parent.id)
    const child = (await fork(parent.id)).items[0] as SandboxItem
    const grandchild = (await fork(child.id)).items[0] as SandboxItem
    for (const { id } of [grandchild, child, parent]) await goesOn(id)
    expect((await api.send('POST', `/v1/sandboxes/${child.id}/hibernate`)).status).toBe(200)
    await goesOn(child.id)
    // A whole one, with all that its writer believes to have written.
    const check = 'import sqlite3; print(*sqlite3.connect("/root/data.db").execute("pragma integrity_check").fetchone())'
    for (const { id } of [grandchild, child, parent]) {
      expect(await api.stdout(id, ['python3', '-c', check])).toBe('ok\n')
      await api.send('DELETE', `/v1/sandboxes/${id}`)
    }
  })

  test('what lives in memory goes on in every child and in the parent: counter, open file, socket, thread, child process, pipe, timer', async () => {
    const parent = await alive()
    const before = await ask(parent.id)
    const { items } = await fork(parent.id, { count: 3 })
    expect(items).toHaveLength(3)
    for (const { id, state, boot_method, parent_id } of items) {
      expect({ state, boot_method, parent_id }).toEqual({ state: 'running', boot_method: 'warm', parent_id: parent.id })
      const after = await ask(id)
      expect(after).toMatchObject({ opened: 'held open', child: 'through the pipe', pid: before.pid, ballast: before.ballast })
      expect(after.count).toBeGreaterThanOrEqual(before.count)
      expect(await eventually(async () => (await ask(id)).count > after.count && (await ask(id)).ticks > after.ticks)).toBe(true)
    }
    const parentAfter = await ask(parent.id)
    expect(parentAfter.count).toBeGreaterThan(before.count)
    expect(parentAfter.pid).toBe(before.pid)
  })

  test('each child has an identity of its own: hostname, id, agent token, and files that the others do not see', async () => {
    const parent = await alive()
    const { items } = await fork(parent.id, { count: 4 })
    const ids = [parent, ...items].map((item) => item.id)
    const hosts = await Promise.all(ids.map((id) => api.stdout(id, 'hostname; echo $THAW_SANDBOX_ID')))
    expect(hosts).toEqual(ids.map((id) => `${id}\n${id}\n`))
    await api.exec(items[0]?.id as string, 'echo mine > /root/own')
    for (const id of ids.filter((other) => other !== items[0]?.id)) expect((await api.exec(id, 'cat /root/own')).exit_code).toBe(1)
    const clock = Number(await api.stdout(items[1]?.id as string, 'date +%s%N')) / 1e6
    expect(Math.abs(clock - Date.now())).toBeLessThan(1000)
  })

  test('a fork of a fork goes on as well, and the tree is known', async () => {
    const parent = await alive()
    const child = (await fork(parent.id)).items[0] as SandboxItem
    const grandchild = (await fork(child.id)).items[0] as SandboxItem
    expect((await ask(grandchild.id)).opened).toBe('held open')
    const tree = (await api.send('GET', `/v1/sandboxes/${grandchild.id}/tree`)).body as SandboxTree
    expect(tree.root_id).toBe(parent.id)
    expect(tree.items.map((item) => [item.id, item.parent_id])).toEqual([
      [parent.id, null],
      [child.id, parent.id],
      [grandchild.id, child.id],
    ])
  })

  test('a command that runs in the parent loses nothing of its output while it is forked', async () => {
    const parent = await alive()
    const running = api.exec(parent.id, 'i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.02; done')
    await fork(parent.id, { count: 2 })
    await snapshot(parent.id)
    const { stdout, exit_code } = await running
    expect(exit_code).toBe(0)
    expect(stdout).toBe(Array.from({ length: 60 }, (_, index) => `line ${index + 1}\n`).join(''))
  })

  test('a snapshot outlives its sandbox; what starts from it goes on where it was taken', async () => {
    const source = await alive({ env: { KEPT: 'yes' } })
    const { id, kind, state, size_bytes } = await snapshot(source.id, { name: 'a good place' })
    expect({ kind, state }).toEqual({ kind: 'memory', state: 'ready' })
    expect(size_bytes).toBeGreaterThan(8 * 1024 * 1024)
    const taken = await ask(source.id)
    await api.send('DELETE', `/v1/sandboxes/${source.id}`)
    const [one, two] = await Promise.all([restore(id, { metadata: { copy: '1' } }), restore(id)])
    for (const { status, body } of [one, two]) {
      expect(status).toBe(201)
      expect((await ask(body.item.id)).pid).toBe(taken.pid)
      expect(await api.stdout(body.item.id, 'echo $KEPT')).toBe('yes\n')
    }
    expect(one.body.item).toMatchObject({ snapshot_id: id, metadata: { copy: '1' } })
    expect((await api.send('GET', `/v1/snapshots/${id}`)).body.item).toMatchObject({ success_count: 2, failure_count: 0 })
    const listed = (await api.send('GET', '/v1/snapshots')).body.items as SnapshotItem[]
    expect(listed.find((item) => item.id === id)?.name).toBe('a good place')
    expect((await api.send('DELETE', `/v1/snapshots/${id}`)).status).toBe(204)
    expect((await restore(id)).status).toBe(404)
    expect(existsSync(join(server.dataDir, 'snapshots', id))).toBe(false)
  })

  test('the files of a snapshot are nobody else’s to read, and hold no token of the sandbox', async () => {
    const source = await api.sandbox({ image: 'python' })
    const { id } = await snapshot(source.id)
    const folder = join(server.dataDir, 'snapshots')
    expect(statSync(folder).mode & 0o077).toBe(0)
    const { stdout } = await promisify(execFile)('find', [
      join(folder, id),
      '-type',
      'f',
      '-perm',
      '/077',
      '-not',
      '-path',
      '*/upper/*',
      '-not',
      '-name',
      'timens-*',
    ])
    expect(stdout).toBe('')
    expect(JSON.parse(readFileSync(join(folder, id, 'manifest.json'), 'utf8')).format).toBe(1)
  })

  test('a snapshot that was damaged, in one bit or by being cut off, is refused, and says so', async () => {
    const source = await alive()
    const damages: ((path: string) => void)[] = [
      (path) => truncateSync(path, Math.floor(statSync(path).size / 2)),
      (path) => {
        const bytes = readFileSync(path)
        bytes[bytes.length >> 1] = (bytes[bytes.length >> 1] as number) ^ 1
        writeFileSync(path, bytes)
      },
    ]
    for (const damage of damages) {
      const { id } = await snapshot(source.id)
      const { stdout } = await promisify(execFile)('find', [join(server.dataDir, 'snapshots', id, 'data'), '-name', 'pages-*.img'])
      damage(stdout.trim().split('\n')[0] as string)
      const { status, body } = await restore(id)
      expect([status, body.error.code]).toEqual([500, 'snapshot_corrupt'])
      expect((await api.send('GET', `/v1/snapshots/${id}`)).body.item).toMatchObject({ state: 'unhealthy', failure_count: 1 })
    }
    expect((await ask(source.id)).opened).toBe('held open')
  })

  test('a snapshot is one file that goes on elsewhere, and what is no such file is refused', async () => {
    const source = await alive({ env: { PRIVATE: 'only here' } })
    const { id } = await snapshot(source.id)
    const before = await ask(source.id)
    const file = new Uint8Array(await (await fetch(`${server.url}/v1/snapshots/${id}/export`)).arrayBuffer())
    expect(file.length).toBeGreaterThan(1024 * 1024)
    await api.send('DELETE', `/v1/snapshots/${id}`)
    await using other = await startServer({ driver: 'oci' })
    const there = new Api(other.url)
    const send = (bytes: Uint8Array<ArrayBuffer>) =>
      fetch(`${other.url}/v1/snapshots/import?name=moved`, { method: 'POST', headers: { 'content-type': 'application/zstd' }, body: bytes })
    const imported = await send(file)
    expect(imported.status).toBe(201)
    const { item } = (await imported.json()) as { item: SnapshotItem }
    expect(item).toMatchObject({ name: 'moved', kind: 'memory', state: 'ready' })
    const restored = await there.send('POST', `/v1/snapshots/${item.id}/restore`, {})
    expect([restored.status, restored.body.error]).toEqual([201, undefined])
    const state = JSON.parse(
      await there.stdout(restored.body.item.id, [
        'python3',
        '-c',
        'import urllib.request; print(urllib.request.urlopen("http://127.0.0.1:7000").read().decode())',
      ]),
    ) as State
    expect(state).toMatchObject({ pid: before.pid, opened: 'held open', ballast: before.ballast })
    for (const broken of [file.slice(0, file.length >> 1), new Uint8Array([1, 2, 3]), new Uint8Array()]) {
      const refused = await send(broken)
      expect(refused.status).toBe(400)
    }
    await there.send('DELETE', `/v1/snapshots/${item.id}`)
    expect(readdirSync(join(other.dataDir, 'snapshots'))).toEqual(['.objects'])
  })

  test('hibernated, no process is left of it, and any call wakes it with its memory', async () => {
    const sleeper = await alive()
    const before = await ask(sleeper.id)
    const asleep = await api.send('POST', `/v1/sandboxes/${sleeper.id}/hibernate`)
    expect(asleep.body.item).toMatchObject({ state: 'hibernated' })
    const left = residueOf(server.dataDir)
    expect([...left.processes, ...left.mounts, ...left.cgroups, ...left.folders].filter((text) => text.includes(sleeper.id))).toEqual([])
    const after = await ask(sleeper.id)
    expect(after).toMatchObject({ pid: before.pid, opened: 'held open', child: 'through the pipe' })
    expect(after.count).toBeGreaterThanOrEqual(before.count)
    expect(await api.item(sleeper.id)).toMatchObject({ state: 'running', boot_method: 'warm' })
    // The image of its sleep is of no use any more, and is gone.
    expect(
      await eventually(
        () => !readdirSync(join(server.dataDir, 'snapshots')).some((name) => name.startsWith('snap-') && isOf(name, sleeper.id)),
      ),
    ).toBe(true)
  })

  const isOf = (name: string, id: string) => readFileSync(join(server.dataDir, 'snapshots', name, 'manifest.json'), 'utf8').includes(id)

  test('who is idle is paused, and later hibernated; a file that is read wakes it', async () => {
    const { id } = await api.sandbox({ image: 'python', idle_ms: 1000, hibernate_ms: 500 })
    await api.exec(id, 'echo kept > /root/kept')
    expect(await eventually(async () => (await api.item(id)).state === 'hibernated', 20_000)).toBe(true)
    expect((await api.send('GET', `/v1/sandboxes/${id}/files?path=/root/kept`)).body).toBe('kept\n')
    expect((await api.item(id)).boot_method).toBe('warm')
  })

  test('what sleeps for long is archived, compressed, and wakes as it was', async () => {
    await using other = await startServer({ driver: 'oci', sandboxes: { archive_after_ms: 0 } })
    const there = new Api(other.url)
    const { id } = await there.sandbox({ image: 'python', network: 'none' })
    await there.exec(id, '(i=0; while :; do i=$((i+1)); echo $i > /root/i; sleep 0.01; done) </dev/null >/dev/null 2>&1 &')
    const count = async () => Number((await there.exec(id, 'cat /root/i')).stdout)
    expect(await eventually(async () => (await count()) > 3)).toBe(true)
    expect((await there.send('POST', `/v1/sandboxes/${id}/hibernate`)).status).toBe(200)
    const folder = join(other.dataDir, 'snapshots')
    const files = () =>
      readdirSync(folder)
        .filter((name) => name.startsWith('snap-'))
        .flatMap((name) => readdirSync(join(folder, name)))
    expect(await eventually(() => files().includes('data.tar.zst') && !files().includes('data'))).toBe(true)
    const woken = await count()
    expect(woken).toBeGreaterThan(3)
    expect(await eventually(async () => (await count()) > woken)).toBe(true)
  })

  test('a name gives the sandbox back in whatever state it slept', async () => {
    const { id } = await api.sandbox({ image: 'python', name: 'den' })
    await api.send('POST', `/v1/sandboxes/${id}/hibernate`)
    const again = await api.send('POST', '/v1/sandboxes', { image: 'python', name: 'den' })
    expect([again.status, again.body.item.id, again.body.item.state]).toEqual([200, id, 'hibernated'])
    expect(await api.stdout('den', 'echo up')).toBe('up\n')
  })

  test('a filesystem snapshot keeps the files, and says so', async () => {
    const source = await api.sandbox({ image: 'python' })
    await api.exec(
      source.id,
      'mkdir /root/dir && echo one > /root/dir/file && chmod 640 /root/dir/file && rm /etc/hostname 2>/dev/null; ln -s dir/file /root/link',
    )
    const { id, kind } = await snapshot(source.id, { kind: 'filesystem' })
    expect(kind).toBe('filesystem')
    await api.exec(source.id, 'echo two > /root/dir/file')
    const { body } = await restore(id)
    expect(body.item.boot_method).toBe('cold')
    expect(await api.stdout(body.item.id, 'cat /root/link; stat -c %a /root/dir/file; test ! -e /etc/hostname && echo removed')).toBe(
      'one\n640\nremoved\n',
    )
  })

  test('memory where none can be kept is refused, unless files alone will do', async () => {
    const source = await api.sandbox({ driver: 'process' })
    const refused = await api.send('POST', `/v1/sandboxes/${source.id}/snapshot`, { kind: 'memory' })
    expect([refused.status, refused.body.error.code]).toEqual([422, 'snapshot_unsupported'])
    expect(await api.stdout(source.id, 'echo lives')).toBe('lives\n')
  })

  test('steps of a run are checkpoints that later ones go on from, and variants branch from one', async () => {
    const run = async (body: object) => (await api.send('POST', '/v1/execute', { image: 'python', ...body })).body
    const first = await run({ command: 'echo 1 > /root/n; cat /root/n', mode: 'checkpointed' })
    const second = await run({ command: 'echo 2 >> /root/n; cat /root/n', mode: 'checkpointed', snapshot_id: first.snapshot_id })
    expect(second).toMatchObject({ stdout: '1\n2\n', boot_method: 'warm' })
    const again = await run({ command: 'cat /root/n', mode: 'checkpointed', snapshot_id: first.snapshot_id })
    expect(again.stdout).toBe('1\n')
    const branches = ['a', 'b', 'c'].map((letter) => ({ command: `echo ${letter} >> /root/n; tr -d '\\n' < /root/n` }))
    const branched = await run({ command: 'true', mode: 'branched', branch_from: second.snapshot_id, branches })
    expect(branched.branches.map((branch: { stdout: string }) => branch.stdout)).toEqual(['12a', '12b', '12c'])
  })

  test('all that was made is deleted, and nothing is left', async () => {
    const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
    for (const { id } of items) await api.send('DELETE', `/v1/sandboxes/${id}`)
    for (const { id } of (await api.send('GET', '/v1/snapshots?limit=1000')).body.items) await api.send('DELETE', `/v1/snapshots/${id}`)
    expect(readdirSync(join(server.dataDir, 'snapshots')).filter((name) => name !== '.objects')).toEqual([])
    expect(
      existsSync(join(server.dataDir, 'snapshots', '.objects')) ? readdirSync(join(server.dataDir, 'snapshots', '.objects')) : [],
    ).toEqual([])
    await server[Symbol.asyncDispose]()
    expect(residueOf(server.dataDir, 'stopped')).toEqual(nothing)
  })
})
