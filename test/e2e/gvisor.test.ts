import { mkdirSync, readFileSync, readlinkSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { SandboxItem } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { OciDriver } from '../../packages/server/src/drivers/oci/index.ts'
import { Api } from '../support/api.ts'
import { whyNot } from '../support/engines.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const folder = tempDir()
const skip = await whyNot(new OciDriver({ dataDir: folder.path, engine: 'runsc' }))
folder[Symbol.dispose]()

/** Counts in memory, and tells its count to whoever connects. */
const counting = `
import socket, threading, time
count = 0
def run():
    global count
    while True:
        count += 1
        time.sleep(0.01)
threading.Thread(target=run, daemon=True).start()
server = socket.create_server(('127.0.0.1', 7000))
while True:
    connection, _ = server.accept()
    connection.sendall(str(count).encode())
    connection.close()
`

describe.skipIf(skip !== null)(`the server with gVisor${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let api: Api

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', oci: { engine: 'runsc' }, pools: { size: 0 } })
    api = new Api(server.url)
  })
  afterAll(async () => {
    const { dataDir } = server
    await server[Symbol.asyncDispose]()
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
  })

  const countOf = async (id: string) =>
    Number(await api.stdout(id, ['python3', '-c', 'import socket; print(socket.create_connection(("127.0.0.1", 7000)).recv(20).decode())']))
  const post = async (path: string, body: object = {}) => {
    const answer = await api.send('POST', path, body)
    if (answer.status >= 300) throw new Error(JSON.stringify(answer.body))
    return answer.body
  }

  async function countingSandbox(): Promise<SandboxItem> {
    const item = await api.sandbox({ image: 'python' })
    await api.exec(item.id, ['python3', '-c', 'import sys; open("/root/counting.py", "w").write(sys.argv[1])', counting])
    await api.exec(item.id, 'setsid python3 /root/counting.py </dev/null >/root/log 2>&1 &')
    expect(await eventually(() => countOf(item.id).then((count) => count > 10, () => false))).toBe(true) // biome-ignore format: one glance
    return item
  }

  test('commands run on the kernel of gVisor', async () => {
    const { id } = await api.sandbox({ image: 'python' })
    expect(await api.exec(id, 'dmesg | head -1; echo problem >&2; exit 3')).toMatchObject({
      stdout: expect.stringContaining('gVisor'),
      stderr: 'problem\n',
      exit_code: 3,
    })
  })

  test('a fork of a counter counts on by itself, and so does its parent', async () => {
    const parent = await countingSandbox()
    const before = await countOf(parent.id)
    const { items } = (await post(`/v1/sandboxes/${parent.id}/fork`, { count: 2 })) as { items: SandboxItem[] }
    for (const { id } of [...items, parent]) {
      const first = await countOf(id)
      expect(first).toBeGreaterThanOrEqual(before)
      expect(await eventually(async () => (await countOf(id)) > first)).toBe(true)
    }
  })

  test('a clone has a host name of its own, also when it sleeps, and so has a clone of a clone', async () => {
    const nameOf = async (id: string) => (await api.stdout(id, 'hostname')).trim()
    const parent = await api.sandbox({ image: 'python' })
    const fork = async (id: string) => ((await post(`/v1/sandboxes/${id}/fork`)) as { items: SandboxItem[] }).items[0]?.id as string
    const child = await fork(parent.id)
    await post(`/v1/sandboxes/${child}/hibernate`)
    const grandchild = await fork(child)
    for (const id of [grandchild, child, parent.id]) {
      expect(await nameOf(id)).toBe(id)
      expect(await api.exec(id, 'hostname other')).toMatchObject({ exit_code: 1 })
      expect(await api.stdout(id, 'grep Cap /proc/self/status')).toBe(await api.stdout(parent.id, 'grep Cap /proc/self/status'))
    }
  })

  test('asleep in memory or on disk it counts on when it is called, and a snapshot starts others', async () => {
    const { id } = await countingSandbox()
    const { item } = (await post(`/v1/sandboxes/${id}/snapshot`)) as { item: { id: string; kind: string } }
    expect(item.kind).toBe('memory')
    for (const sleep of ['pause', 'hibernate']) {
      const before = await countOf(id)
      await post(`/v1/sandboxes/${id}/${sleep}`)
      await post(`/v1/sandboxes/${id}/resume`)
      expect(await countOf(id)).toBeGreaterThanOrEqual(before)
    }
    // A paused one goes to disk, too.
    await post(`/v1/sandboxes/${id}/pause`)
    await post(`/v1/sandboxes/${id}/hibernate`)
    await post(`/v1/sandboxes/${id}/resume`)
    expect(await countOf(id)).toBeGreaterThan(0)
    const restored = (await post(`/v1/snapshots/${item.id}/restore`)) as { item?: SandboxItem; items?: SandboxItem[] }
    expect(await countOf((restored.item ?? restored.items?.[0])?.id as string)).toBeGreaterThan(0)
  })

  test('files of every size are written as they are, and read whole and in parts', async () => {
    await using sandbox = await server.thaw.sandboxes.create({ image: 'python' })
    const { files } = sandbox
    for (const size of [0, 1, 5, 4096, 20_000, 100_000, 20 * 1024 * 1024]) {
      const content = Buffer.alloc(size, 'all the bytes ')
      await files.write(`sizes/${size}`, content)
      expect(content.equals(await files.read(`sizes/${size}`))).toBe(true)
    }
    await files.write('sizes/1', 'longer than before')
    expect(await files.readText('/root/sizes/1')).toBe('longer than before')
    const range = await fetch(`${server.url}/v1/sandboxes/${sandbox.id}/files?path=sizes/20000`, { headers: { range: 'bytes=14-16' } })
    expect([range.status, await range.text()]).toEqual([206, 'all'])
    expect((await files.list('sizes')).map(({ name, size_bytes }) => [name, size_bytes]).sort()).toEqual([
      ['0', 0],
      ['1', 18],
      ['100000', 100_000],
      ['20000', 20_000],
      ['20971520', 20_971_520],
      ['4096', 4096],
      ['5', 5],
    ])
    await files.move('sizes/5', 'sizes/moved')
    expect(await files.exists('sizes/5')).toBe(false)
    await files.remove('sizes')
    await expect(files.read('sizes/moved')).rejects.toMatchObject({ code: 'file_not_found' })
    await Promise.all(Array.from({ length: 20 }, (_, number) => files.write(`many/${number}`, `number ${number}`)))
    for (let number = 0; number < 20; number++) expect(await files.readText(`many/${number}`)).toBe(`number ${number}`)
  })

  test('a folder is copied there and back with its modes and links', async () => {
    using dir = tempDir()
    const from = join(dir.path, 'from')
    mkdirSync(join(from, 'sub'), { recursive: true })
    writeFileSync(join(from, 'run.sh'), '#!/bin/sh\necho it runs\n', { mode: 0o755 })
    writeFileSync(join(from, 'sub', 'data'), Buffer.alloc(2_000_000, 'x'))
    symlinkSync('run.sh', join(from, 'link'))
    await using sandbox = await server.thaw.sandboxes.create({ image: 'python' })
    await sandbox.files.upload(from, 'project')
    expect((await sandbox.exec('./project/link')).stdout).toBe('it runs\n')
    const to = join(dir.path, 'to')
    await sandbox.files.download('project', to)
    expect(statSync(join(to, 'run.sh')).mode & 0o777).toBe(0o755)
    expect(readFileSync(join(to, 'sub', 'data')).equals(Buffer.alloc(2_000_000, 'x'))).toBe(true)
    expect(readlinkSync(join(to, 'link'))).toBe('run.sh')
  })

  test('a user has the rights of that user and no others, while root has all', async () => {
    await using sandbox = await server.thaw.sandboxes.create({ image: 'python' })
    const { files } = sandbox
    const made = await sandbox.exec(`
      echo alice:x:1234: >>/etc/group && echo team:x:2345:alice >>/etc/group
      echo alice:x:1234:1234::/home/alice:/bin/sh >>/etc/passwd && mkdir -p /home/alice && chown 1234:1234 /home/alice
      mkdir -m 755 /data && echo for all >/data/open && echo secret >/data/secret && chmod 600 /data/secret
      echo for the team >/data/team && chgrp 2345 /data/team && chmod 640 /data/team
      mkdir -m 1777 /data/shared && echo of root >/data/shared/kept && ln -s /data/secret /home/alice/way && chmod 700 /root`)
    expect(made).toMatchObject({ exit_code: 0, stderr: '' })
    const alice = { user: 'alice' }
    const refused = { code: 'file_forbidden' }

    const tries = async () => {
      await files.write('notes/own', 'of alice', alice)
      expect(await files.stat('/home/alice/notes/own')).toMatchObject({ owner: 'alice', group: 'alice', mode: 0o644 })
      expect(await files.readText('notes/own', alice)).toBe('of alice')
      expect(await files.readText('/data/open', alice)).toBe('for all\n')
      expect(await files.readText('/data/team', alice)).toBe('for the team\n')
      await expect(files.read('/data/secret', alice)).rejects.toMatchObject(refused)
      await expect(files.read('way', alice)).rejects.toMatchObject(refused)
      await expect(files.write('/data/open', 'other', alice)).rejects.toMatchObject(refused)
      await expect(files.write('/data/new', 'other', alice)).rejects.toMatchObject(refused)
      await expect(files.mkdir('/data/folder', alice)).rejects.toMatchObject(refused)
      await expect(files.remove('/data/shared/kept', alice)).rejects.toMatchObject(refused)
      await expect(files.move('/data/shared/kept', '/data/shared/taken', alice)).rejects.toMatchObject(refused)
      await expect(files.list('/root', alice)).rejects.toMatchObject(refused)
      expect(await files.readText('/data/secret')).toBe('secret\n')
    }
    await tries()

    using dir = tempDir()
    mkdirSync(join(dir.path, 'sub'))
    writeFileSync(join(dir.path, 'sub', 'file'), 'in a folder')
    await files.upload(dir.path, 'copied', alice)
    expect(await files.stat('/home/alice/copied/sub/file')).toMatchObject({ owner: 'alice', group: 'alice' })
    await expect(files.upload(dir.path, '/data/copied', alice)).rejects.toMatchObject(refused)

    // Each call takes the identity on threads that all calls share.
    const asRoot = async (number: number) => {
      await files.write(`/data/root-${number}`, 'x')
      expect(await files.stat(`/data/root-${number}`)).toMatchObject({ owner: 'root', group: 'root' })
    }
    const asAlice = async (number: number) => {
      await files.write(`by-alice-${number}`, 'x', alice)
      expect(await files.stat(`by-alice-${number}`, alice)).toMatchObject({ owner: 'alice', group: 'alice' })
      await expect(files.read('/data/secret', alice)).rejects.toMatchObject(refused)
    }
    await Promise.all(Array.from({ length: 16 }, (_, number) => (number % 2 === 0 ? asRoot(number) : asAlice(number))))

    const { children } = await sandbox.fork(1)
    const [child] = children
    expect(await child?.files.readText('notes/own', alice)).toBe('of alice')
    await expect(child?.files.read('/data/secret', alice)).rejects.toMatchObject(refused)
    await child?.delete()
    await tries()
  })

  test('a function runs, also one that asks to start from memory', async () => {
    for (const snapshot of [false, true]) {
      const name = `add-${snapshot}`
      await server.thaw.functions.create({
        name,
        runtime: 'python',
        code: { inline: 'def handler(event, context):\n    return {"sum": sum(event)}' },
        snapshot,
      } as never)
      expect((await server.thaw.functions.invoke(name, [1, 2] as never)).value).toEqual({ sum: 3 })
    }
  })
})
