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
