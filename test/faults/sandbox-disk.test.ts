import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { OciDriver } from '../../packages/server/src/drivers/oci/index.ts'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, startServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const skip = await whyNoDriver('oci')
const title = (name: string) => `${name}${skip === null ? '' : ` (skipped: ${skip})`}`
const mib = 1024 * 1024

/** What the files of all sandboxes take of the host's disk. */
function usedMib(dataDir: string): number {
  return (statSync(join(dataDir, 'oci', 'volume.img')).blocks * 512) / mib
}

// Bounded, for the case that nothing else bounds it.
const fill = 'dd if=/dev/zero of=/root/full bs=64k count=24000 2>&1; sync'

test.skipIf(skip !== null)(title('a sandbox that fills its disk meets ENOSPC; its neighbours and the host go on'), async () => {
  await using server = await startServer({ driver: 'oci', pools: { size: 0 } })
  const api = new Api(server.url)
  const greedy = await api.sandbox({ resources: { disk_mib: 200 } })
  const neighbour = await api.sandbox({})

  expect((await api.exec(greedy.id, fill)).stdout).toContain('No space left on device')
  const written = Number(await api.stdout(greedy.id, 'stat -c %s /root/full'))
  expect(written).toBeGreaterThan(190 * mib)
  expect(written).toBeLessThan(215 * mib)
  // What was there before can still be used.
  expect(await api.stdout(greedy.id, 'echo well')).toBe('well\n')
  expect(await api.stdout(neighbour.id, 'dd if=/dev/zero of=/root/mine bs=1M count=300 2>/dev/null; stat -c %s /root/mine')).toBe(
    `${300 * mib}\n`,
  )
  expect(usedMib(server.dataDir)).toBeLessThan(650)
  expect(await api.stdout(greedy.id, 'rm /root/full && echo again > /root/x && cat /root/x')).toBe('again\n')

  for (const { id } of [greedy, neighbour]) expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
  expect(await eventually(() => usedMib(server.dataDir) < 50)).toBe(true)
  expect({ ...residueOf(server.dataDir), processes: [] }).toEqual(nothing)
  await server[Symbol.asyncDispose]()
  expect(residueOf(server.dataDir, 'stopped')).toEqual(nothing)
})

test.skipIf(skip !== null)(title('a sandbox that runs out of files meets ENOSPC, and its neighbour does not'), async () => {
  await using server = await startServer({ driver: 'oci' })
  const api = new Api(server.url)
  const greedy = await api.sandbox({ resources: { disk_mib: 300 } })
  const neighbour = await api.sandbox({})
  const many = 'mkdir /root/many && cd /root/many && seq 1 100000 | xargs touch; ls | wc -l'
  const { stdout, stderr } = await api.exec(greedy.id, many, { timeout_ms: 120_000 })
  expect(stderr).toContain('No space left on device')
  expect(Number(stdout)).toBeGreaterThan(60_000)
  expect(Number(stdout)).toBeLessThan(65_600)
  expect(await api.stdout(neighbour.id, 'mkdir /root/m && cd /root/m && seq 1 1000 | xargs touch && ls | wc -l')).toBe('1000\n')
  expect(await api.stdout(greedy.id, 'echo well')).toBe('well\n')
})

test.skipIf(skip !== null)(title('all sandboxes together stay within what the server gives them'), async () => {
  await using server = await startServer({ driver: 'oci', sandboxes: { storage_mib: 1024, disk_mib: 900 } })
  const api = new Api(server.url)
  expect((await api.send('POST', '/v1/sandboxes', { resources: { disk_mib: 2000 } })).body.error).toMatchObject({
    code: 'invalid_request',
    fix: expect.stringContaining('sandboxes.storage_mib'),
  })
  const both = [await api.sandbox({}), await api.sandbox({})]
  await Promise.all(both.map(({ id }) => api.exec(id, fill, { timeout_ms: 120_000 })))
  expect(usedMib(server.dataDir)).toBeLessThanOrEqual(1040)
  expect((await api.send('POST', '/v1/sandboxes', { resources: { disk_mib: 100 } })).body.error).toMatchObject({ code: 'disk_full' })
  // Each can be deleted, and then there is room again.
  for (const { id } of both) expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
  const { id } = await api.sandbox({ resources: { disk_mib: 100 } })
  expect(await api.stdout(id, 'echo well > /root/x; cat /root/x')).toBe('well\n')
})

test.skipIf(skip !== null)(title('a fork and what wakes from a hibernation have the files and the limit of before'), async () => {
  await using server = await startServer({ driver: 'oci' })
  const api = new Api(server.url)
  const { id } = await api.sandbox({ resources: { disk_mib: 150 } })
  await api.stdout(id, 'head -c 100M /dev/urandom > /root/kept; md5sum < /root/kept > /root/sum')
  const { items } = (await api.send('POST', `/v1/sandboxes/${id}/fork`, { count: 2 })).body
  expect(items).toHaveLength(2)
  expect((await api.send('POST', `/v1/sandboxes/${id}/hibernate`)).body).toMatchObject({ item: { state: 'hibernated' } })
  for (const one of [id, ...items.map((item: { id: string }) => item.id)]) {
    expect(await api.stdout(one, 'md5sum < /root/kept | cmp - /root/sum && echo same')).toBe('same\n')
    expect((await api.exec(one, fill)).stdout).toContain('No space left on device')
    expect(Number(await api.stdout(one, 'stat -c %s /root/full'))).toBeLessThan(65 * mib)
  }
})

test.skipIf(skip !== null)(title('when the volume fails, new sandboxes get another one, and the old ones can be deleted'), async () => {
  await using server = await startServer({ driver: 'oci', pools: { size: 0 } })
  const api = new Api(server.url)
  const old = await api.sandbox({})
  const image = join(server.dataDir, 'oci', 'volume.img')
  const device = readdirSync('/sys/block').find((name) => {
    const file = join('/sys/block', name, 'loop', 'backing_file')
    return existsSync(file) && readFileSync(file, 'utf8').trim() === image
  }) as string
  // What the kernel does when the disk below does not take what it is given.
  writeFileSync(join('/sys/fs/ext4', device, 'trigger_fs_error'), 'the disk of the host is full')
  const { id } = await api.sandbox({})
  expect(await api.stdout(id, 'echo well > /root/x; cat /root/x')).toBe('well\n')
  for (const one of [old.id, id]) expect((await api.send('DELETE', `/v1/sandboxes/${one}`)).status).toBe(204)
  await server[Symbol.asyncDispose]()
  expect(residueOf(server.dataDir, 'stopped')).toEqual(nothing)
})

test.skipIf(skip !== null)(title('a disk that is asked for is never ignored'), async () => {
  await using server = await startServer()
  const api = new Api(server.url)
  const { status, body } = await api.send('POST', '/v1/sandboxes', { driver: 'process', resources: { disk_mib: 100 } })
  expect(status).toBe(400)
  expect(body.error).toMatchObject({ code: 'invalid_request', fix: expect.stringContaining('disk_mib') })
})

test.skipIf(skip !== null)(
  title('after kill -9 the next server takes over the disks of its sandboxes, and the last stop leaves none'),
  async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    mkdirSync(dataDir, { mode: 0o711 })
    // Where the test failed: its servers have left what they had.
    await using _ = { [Symbol.asyncDispose]: () => destroyAll(dataDir) }
    const first = await startChildServer(dataDir, { driver: 'oci' })
    const { id } = await new Api(first.url).sandbox({ resources: { disk_mib: 100 } })
    await new Api(first.url).stdout(id, 'echo before > /root/x')
    await first.kill()
    expect(readFileSync('/proc/self/mountinfo', 'utf8')).toContain(join(dataDir, 'oci', 'volume'))

    const second = await startChildServer(dataDir, { driver: 'oci' })
    const api = new Api(second.url)
    expect(await api.stdout(id, 'cat /root/x')).toBe('before\n')
    expect((await api.exec(id, fill)).stdout).toContain('No space left on device')
    // On the same volume, where only what somebody owns was kept, and two spares.
    const other = await api.sandbox({ resources: { disk_mib: 100 } })
    expect(await api.stdout(other.id, 'echo after > /root/x; cat /root/x')).toBe('after\n')
    expect(await eventually(() => disks(dataDir) === 4)).toBe(true)
    // A stop leaves sandboxes as they are, and their disks.
    await second[Symbol.asyncDispose]()
    expect(disks(dataDir)).toBe(2)

    const third = await startChildServer(dataDir, { driver: 'oci' })
    expect(await new Api(third.url).stdout(id, 'rm /root/full; cat /root/x')).toBe('before\n')
    for (const one of [id, other.id]) await new Api(third.url).send('DELETE', `/v1/sandboxes/${one}`)
    await third[Symbol.asyncDispose]()
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    expect(existsSync(join(dataDir, 'oci', 'volume.img'))).toBe(false)
  },
)

async function destroyAll(dataDir: string): Promise<void> {
  const driver = new OciDriver({ dataDir })
  for (const id of await driver.list()) await driver.destroy(id)
  await driver.close()
}

function disks(dataDir: string): number {
  return readdirSync(join(dataDir, 'oci', 'volume')).filter((name) => name.endsWith('.img')).length
}
