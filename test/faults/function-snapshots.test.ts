import { existsSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import type { FunctionInput, Thaw } from '@thaw/sdk'
import { describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, startServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'
import { foldersOfSnapshots, snapshotOf, tracesOfSnapshots, whenKept } from '../support/version-snapshots.ts'

const skip = await whyNoDriver('oci')

const fn: Omit<FunctionInput, 'name'> = {
  runtime: 'python',
  code: { inline: "ballast = bytearray(4 * 1024 * 1024)\ndef handler(event, context):\n    return 'answered'\n" },
  network: 'none',
  snapshot: true,
  scaling: { idle_timeout_ms: 0 },
}

/** The images of memory of the one snapshot below a data directory, the largest first. */
function images(dataDir: string): string[] {
  const dir = join(dirOf(dataDir), 'data', 'memory')
  return readdirSync(dir)
    .map((name) => join(dir, name))
    .sort((a, b) => statSync(b).size - statSync(a).size)
}

const flip = (path: string) => {
  const bytes = readFileSync(path)
  const middle = bytes.length >> 1
  bytes[middle] = (bytes[middle] as number) ^ 0xff
  writeFileSync(path, bytes)
}

async function fallbacks(url: string, reason: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text()
  const line = text
    .split('\n')
    .find((each) => each.startsWith('thaw_boot_fallbacks_total') && each.includes('"warm"') && each.includes(reason))
  return Number(line?.split(' ').at(-1) ?? 0)
}

/** Calls until an instance is started: the one before may not have ended yet. */
async function startedBy(thaw: Thaw, name: string): Promise<string | null> {
  expect(await eventually(async () => (await thaw.functions.get(name)).instances.idle === 0)).toBe(true)
  const answer = await thaw.functions.invoke(name)
  expect(answer.value).toBe('answered')
  return answer.boot_method
}

describe.skipIf(skip !== null)(`snapshots of functions that break${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  for (const [what, damage] of [
    ['a truncated image of memory', (dataDir: string) => truncateSync(images(dataDir)[0] as string, 100_000)],
    ['a flipped bit in an image', (dataDir: string) => flip(images(dataDir)[0] as string)],
    ['a changed manifest', (dataDir: string) => flip(join(dirOf(dataDir), 'manifest.json'))],
  ] as const) {
    test(`fault 58: ${what}: the call is answered by the next boot method, and the snapshot is made anew`, async () => {
      await using server = await startServer({ driver: 'oci', pools: { size: 0 } })
      await server.thaw.functions.create({ name: 'f', ...fn })
      await whenKept(server.url, 'f')
      const first = dirOf(server.dataDir)
      damage(server.dataDir)
      expect(await startedBy(server.thaw, 'f')).toBe('cold')
      expect(await fallbacks(server.url, 'snapshot_corrupt')).toBe(1)
      expect(await eventually(() => !existsSync(first))).toBe(true)
      await whenKept(server.url, 'f')
      expect(await startedBy(server.thaw, 'f')).toBe('warm')
    })
  }

  test('fault 59: a snapshot of another machine or engine is not even tried, and is made anew', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    await first.thaw.functions.create({ name: 'f', ...fn })
    await whenKept(first.url, 'f')
    await first[Symbol.asyncDispose]()
    const database = new DatabaseSync(join(dataDir, 'thaw.db'))
    database.exec(`update snapshots set fingerprint = json_set(fingerprint, '$.kernel', '4.4.0')`)
    database.close()
    await using second = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    expect(await startedBy(second.thaw, 'f')).toBe('cold')
    expect(await fallbacks(second.url, 'snapshot_incompatible')).toBe(1)
    await whenKept(second.url, 'f')
    expect(await startedBy(second.thaw, 'f')).toBe('warm')
  })

  test('a snapshot outlives its server, and is used by the next one', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    await first.thaw.functions.create({ name: 'f', ...fn })
    await whenKept(first.url, 'f')
    await first.kill()
    await using second = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    expect(await startedBy(second.thaw, 'f')).toBe('warm')
    await second.thaw.functions.delete('f')
    expect(tracesOfSnapshots(dataDir)).toEqual([])
  })

  test('one from which nothing was started for long is removed, and made again when it is wanted', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    await first.thaw.functions.create({ name: 'f', ...fn })
    await whenKept(first.url, 'f')
    await first[Symbol.asyncDispose]()
    const env = { THAW_POOLS__SIZE: '0', THAW_RETENTION__VERSION_SNAPSHOTS_MS: '1' }
    await using second = await startChildServer(dataDir, { driver: 'oci', env })
    expect(await eventually(() => tracesOfSnapshots(dataDir).length === 0)).toBe(true)
    expect(await startedBy(second.thaw, 'f')).toBe('cold')
    await whenKept(second.url, 'f')
    expect(await startedBy(second.thaw, 'f')).toBe('warm')
  })

  test('fault 53: kill -9 while a snapshot is made leaves no half of one, and the next server makes it', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const slow = { ...fn, code: { inline: `import time\ntime.sleep(1)\n${(fn.code as { inline: string }).inline}` } }
    for (const seen of ['creating', 'draft'] as const) {
      const server = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
      await server.thaw.functions.create({ name: `f-${seen}`, ...slow })
      const begun = async () =>
        seen === 'creating' ? (await snapshotOf(server.url, `f-${seen}`))?.state === 'creating' : foldersOfSnapshots(dataDir).length > 0
      expect(await eventually(begun)).toBe(true)
      await server.kill()
      await using next = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
      await whenKept(next.url, `f-${seen}`)
      expect(await startedBy(next.thaw, `f-${seen}`)).toBe('warm')
      await next.thaw.functions.delete(`f-${seen}`)
      expect(tracesOfSnapshots(dataDir)).toEqual([])
      await next[Symbol.asyncDispose]()
      expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    }
  })

  test('a function that is deleted, or a server that stops, while its snapshot is made leaves nothing', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const slow = { ...fn, code: { inline: `import time\ntime.sleep(2)\n${(fn.code as { inline: string }).inline}` } }
    const server = await startChildServer(dataDir, { driver: 'oci', env: { THAW_POOLS__SIZE: '0' } })
    for (const name of ['deleted', 'stopped']) {
      await server.thaw.functions.create({ name, ...slow })
      expect(await eventually(async () => (await snapshotOf(server.url, name))?.state === 'creating')).toBe(true)
      if (name === 'deleted') await server.thaw.functions.delete(name)
      else await server[Symbol.asyncDispose]()
      expect(tracesOfSnapshots(dataDir)).toEqual([])
    }
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
  })
})

function dirOf(dataDir: string): string {
  const [dir, ...more] = foldersOfSnapshots(dataDir)
  if (dir === undefined || more.length > 0) throw new Error(`not one snapshot but ${[dir, ...more].join(', ')}`)
  return dir
}
