import { execFile } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { promisify } from 'node:util'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { findProcesses } from '../../packages/server/src/drivers/processes.ts'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, startServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const skip = await whyNoDriver('oci')
const run = promisify(execFile)

describe.skipIf(skip !== null)(`faults of snapshots over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let dir: ReturnType<typeof tempDir>
  let dataDir: string

  beforeEach(() => {
    dir = tempDir()
    dataDir = join(dir.path, 'data')
    mkdirSync(dataDir, { mode: 0o711 })
  })
  afterEach(async () => {
    // A test that failed may have left sandboxes.
    const server = await startChildServer(dataDir, { driver: 'oci' })
    await deleteAll(new Api(server.url))
    await server[Symbol.asyncDispose]()
    dir[Symbol.dispose]()
  })

  async function deleteAll(api: Api): Promise<void> {
    for (const { id } of (await api.send('GET', '/v1/sandboxes?limit=1000')).body.items) await api.send('DELETE', `/v1/sandboxes/${id}`)
    for (const { id } of (await api.send('GET', '/v1/snapshots?limit=1000')).body.items) await api.send('DELETE', `/v1/snapshots/${id}`)
  }

  /** A sandbox whose counter grows as long as it lives. */
  async function counting(api: Api): Promise<string> {
    const { id } = await api.sandbox({ image: 'python', network: 'none' })
    await api.exec(id, '(i=0; while :; do i=$((i+1)); echo $i > /root/i; sleep 0.01; done) </dev/null >/dev/null 2>&1 &')
    expect(await eventually(async () => (await count(api, id)) > 3)).toBe(true)
    return id
  }
  const count = async (api: Api, id: string) => Number((await api.exec(id, 'cat /root/i')).stdout)
  const goesOn = async (api: Api, id: string) => {
    const before = await count(api, id)
    return eventually(async () => (await count(api, id)) > before)
  }
  const server = () => startChildServer(dataDir, { driver: 'oci' })

  test('fault 59: what was taken on another kernel or processor is refused, and the other one is named', async () => {
    let id: string
    {
      await using first = await server()
      const api = new Api(first.url)
      const source = await counting(api)
      id = (await api.send('POST', `/v1/sandboxes/${source}/snapshot`, {})).body.item.id
      await api.send('DELETE', `/v1/sandboxes/${source}`)
    }
    const database = new DatabaseSync(join(dataDir, 'thaw.db'))
    database.exec("update snapshots set fingerprint = json_set(fingerprint, '$.kernel', '2.6.32')")
    database.close()
    await using second = await server()
    const api = new Api(second.url)
    const { status, body } = await api.send('POST', `/v1/snapshots/${id}/restore`, {})
    expect([status, body.error.code]).toEqual([500, 'snapshot_incompatible'])
    expect(body.error.message).toContain('kernel was 2.6.32')
    expect((await api.send('GET', `/v1/snapshots/${id}`)).body.item).toMatchObject({ failure_count: 1, state: 'ready' })
    await deleteAll(api)
  })

  test('two snapshots and a fork at once all come, and the sandbox goes on', async () => {
    await using one = await server()
    const api = new Api(one.url)
    const id = await counting(api)
    const answers = await Promise.all([
      api.send('POST', `/v1/sandboxes/${id}/snapshot`, {}),
      api.send('POST', `/v1/sandboxes/${id}/fork`, { count: 2 }),
      api.send('POST', `/v1/sandboxes/${id}/snapshot`, {}),
    ])
    expect(answers.map((answer) => answer.status)).toEqual([201, 201, 201])
    for (const child of answers.at(1)?.body.items ?? []) expect(await goesOn(api, child.id)).toBe(true)
    expect(await goesOn(api, id)).toBe(true)
    await deleteAll(api)
  })

  test('under write load: what is in the snapshot fits together, and nothing that was written is lost in the parent', async () => {
    await using one = await server()
    const api = new Api(one.url)
    const { id } = await api.sandbox({ image: 'python', network: 'none' })
    // Two files that say the same number, one after the other: a copy may never be more than one step apart.
    await api.exec(
      id,
      `(i=0; while :; do i=$((i+1)); echo $i > /root/new; mv /root/new /root/first; head -c 65536 /dev/zero > /root/bulk-$((i % 50)); echo $i > /root/new; mv /root/new /root/second; done) </dev/null >/dev/null 2>&1 &`,
    )
    expect(await eventually(async () => (await api.exec(id, 'test -s /root/second')).exit_code === 0)).toBe(true)
    for (let round = 0; round < 3; round++) {
      const { body } = await api.send('POST', `/v1/sandboxes/${id}/snapshot`, { kind: 'filesystem' })
      const restored = (await api.send('POST', `/v1/snapshots/${body.item.id}/restore`, {})).body.item.id
      const [first, second] = (await api.stdout(restored, 'cat /root/first /root/second')).trim().split('\n').map(Number)
      expect((first as number) - (second as number)).toBeLessThanOrEqual(1)
      const forked = (await api.send('POST', `/v1/sandboxes/${id}/fork`, {})).body.items[0].id
      expect(await eventually(async () => Number(await api.stdout(forked, 'cat /root/second')) > (second as number))).toBe(true)
    }
    await deleteAll(api)
  })

  test('deleted while it is restored, forked or snapshotted: nothing is left, nobody hangs', async () => {
    const one = await server()
    const api = new Api(one.url)
    const id = await counting(api)
    const snapshot = (await api.send('POST', `/v1/sandboxes/${id}/snapshot`, {})).body.item.id
    const restores = Array.from({ length: 4 }, () => api.send('POST', `/v1/snapshots/${snapshot}/restore`, {}))
    const forks = api.send('POST', `/v1/sandboxes/${id}/fork`, { count: 4 })
    expect((await api.send('DELETE', `/v1/snapshots/${snapshot}`)).status).toBe(204)
    expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
    for (const answer of await Promise.all([...restores, forks])) {
      if (answer.status !== 201) expect(answer.body.error.fix).not.toBe('')
    }
    await deleteAll(api)
    await one[Symbol.asyncDispose]()
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    expect(readdirSync(join(dataDir, 'snapshots')).filter((name) => name !== '.objects')).toEqual([])
  })

  test('CRIU killed in the middle of a snapshot: the sandbox lives on, or the error says why; no half snapshot', async () => {
    await using one = await server()
    const api = new Api(one.url)
    let id = await counting(api)
    let killed = 0
    for (let round = 0; round < 6; round++) {
      const taking = api.send('POST', `/v1/sandboxes/${id}/snapshot`, {})
      await eventually(() => {
        const pids = criuOf(dataDir)
        for (const pid of pids) {
          try {
            process.kill(pid, 'SIGKILL')
            killed++
          } catch {
            // Ended by itself.
          }
        }
        return pids.length > 0
      }, 300)
      const { status, body } = await taking
      if (status !== 201) expect(body.error.code, JSON.stringify(body)).toBe('snapshot_failed')
      const { ended = false, ended_processes = [] } = body.error?.details ?? {}
      // Killed in the wrong moment it takes a process along, which must be told.
      if (ended || ended_processes.length > 0) id = await counting(api)
      else expect(await goesOn(api, id), JSON.stringify(body)).toBe(true)
    }
    expect(killed).toBeGreaterThan(0)
    for (const { id: snapshot } of (await api.send('GET', '/v1/snapshots')).body.items) {
      const restored = await api.send('POST', `/v1/snapshots/${snapshot}/restore`, {})
      expect(restored.status).toBe(201)
    }
    await deleteAll(api)
  })

  test('on a full disk a snapshot and a hibernation fail with what to do, and the sandbox goes on', async () => {
    const disk = join(dir.path, 'disk')
    mkdirSync(disk, { mode: 0o711 })
    const image = join(dir.path, 'disk.img')
    await run('truncate', ['--size', '128M', image])
    await run('mke2fs', ['-q', '-t', 'ext4', '-m', '0', image])
    await run('mount', ['-o', 'loop', image, disk])
    await run('chmod', ['711', disk])
    try {
      await using one = await startServer({ driver: 'oci', data_dir: join(disk, 'data') })
      const api = new Api(one.url)
      const { id } = await api.sandbox({ image: 'python', network: 'none' })
      await api.exec(
        id,
        `setsid python3 -c 'import os, time; held = os.urandom(120 * 1024 * 1024); open("/root/up", "w").close(); time.sleep(600)' </dev/null >/dev/null 2>&1 &`,
      )
      expect(await eventually(async () => (await api.exec(id, 'test -e /root/up')).exit_code === 0)).toBe(true)
      for (const path of [`/v1/sandboxes/${id}/snapshot`, `/v1/sandboxes/${id}/hibernate`]) {
        const { status, body } = await api.send('POST', path, {})
        expect([status, body.error.code, body.error.details]).toEqual([503, 'disk_full', body.error.details])
        expect(await api.stdout(id, 'echo well')).toBe('well\n')
        expect((await api.item(id)).state).toBe('running')
      }
      expect(readdirSync(join(disk, 'data', 'snapshots')).filter((name) => name !== '.objects')).toEqual([])
      await api.send('DELETE', `/v1/sandboxes/${id}`)
    } finally {
      await run('umount', [disk])
    }
  })
})

/** CRIU at work for this server. */
function criuOf(dataDir: string): number[] {
  return findProcesses((pid) => {
    try {
      const line = readFileSync(`/proc/${pid}/cmdline`, 'latin1')
      return (
        line.includes('criu') &&
        line.includes('dump') &&
        line.includes(dataDir) &&
        !line.startsWith('sh') &&
        !line.startsWith('nsenter') &&
        !line.startsWith('unshare')
      )
    } catch {
      return false
    }
  })
}
