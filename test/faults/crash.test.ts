import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

/** kill -9 of the server at the worst moments, then a new start on the same folder. */

const sleeper = {
  runtime: 'python',
  code: { inline: 'import time\ndef handler(event, context):\n    time.sleep(event or 0)\n    return "slept"' },
} as const

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`kill -9 over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    test('while calls run: they fail cleanly, functions are kept, nothing is left', async () => {
      using dir = tempDir()
      const dataDir = join(dir.path, 'data')
      const first = await startChildServer(dataDir, { driver })
      await first.thaw.functions.create({ name: 'sleeper', ...sleeper, scaling: { min_instances: 2 } })
      await first.thaw.functions.invoke('sleeper', 0)
      const inFlight = first.thaw.functions.invoke('sleeper', 60).then(
        () => 'answered',
        () => 'failed',
      )
      expect(await eventually(async () => (await first.thaw.functions.get('sleeper')).instances.busy === 1)).toBe(true)
      await first.kill()
      expect(await inFlight).toBe('failed')
      expect(residueOf(dataDir).folders.length).toBeGreaterThan(0)

      await using second = await startChildServer(dataDir, { driver })
      expect((await second.thaw.functions.get('sleeper')).state).toBe('ready')
      expect((await second.thaw.functions.invoke<string>('sleeper', 0)).value).toBe('slept')
      await second.thaw.functions.delete('sleeper')
      expect(residueOf(dataDir)).toEqual({ ...nothing, processes: [expect.stringContaining('main.ts')] })
      // The namespaces that a running server keeps ready go with it: then not one may be left, of either server.
      await second[Symbol.asyncDispose]()
      expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    })

    test('fault 53: during deploys and starts, at ten moments: what is listed works, and nothing is left', async () => {
      using dir = tempDir()
      const dataDir = join(dir.path, 'data')
      for (let round = 0; round < 10; round++) {
        const server = await startChildServer(dataDir, { driver })
        const acknowledged: string[] = []
        const deploys = Array.from({ length: 3 }, (_, i) =>
          server.thaw.functions.create({ name: `r${round}-${i}`, ...sleeper }).then(
            (item) => acknowledged.push(item.name),
            () => undefined,
          ),
        )
        const moment = 15 + round * 25
        await Promise.race([Promise.all(deploys), new Promise((resolve) => setTimeout(resolve, moment))])
        await server.kill()
        await Promise.all(deploys)

        await using again = await startChildServer(dataDir, { driver })
        // What the old one acknowledged is there; what it had begun is finished now, or was never known.
        const names: string[] = []
        for await (const item of again.thaw.functions.list()) names.push(item.name)
        for (const name of acknowledged) expect(names).toContain(name)
        for (const name of names) {
          expect(await eventually(async () => (await again.thaw.functions.get(name)).state === 'ready')).toBe(true)
          expect((await again.thaw.functions.invoke<string>(name, 0)).value).toBe('slept')
          await again.thaw.functions.delete(name)
        }
        expect(residueOf(dataDir)).toEqual({ ...nothing, processes: [expect.stringContaining('main.ts')] })
      }
    }, 180_000)

    test('a clean stop leaves nothing, and ends calls that take longer than the drain', async () => {
      using dir = tempDir()
      const dataDir = join(dir.path, 'data')
      const server = await startChildServer(dataDir, { driver, env: { THAW_SHUTDOWN__DRAIN_MS: '4000' } })
      await server.thaw.functions.create({ name: 'sleeper', ...sleeper })
      const short = server.thaw.functions.invoke<string>('sleeper', 2)
      const long = server.thaw.functions.invoke('sleeper', 60).catch((error: { code: string }) => error.code)
      expect(await eventually(async () => (await server.thaw.functions.get('sleeper')).instances.busy === 2)).toBe(true)
      await server[Symbol.asyncDispose]()
      expect((await short).value).toBe('slept')
      expect(await long).toBe('shutting_down')
      expect(server.process.exitCode).toBe(0)
      expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    })
  })
}

test('fault 56: a damaged database refuses to start and is left as it is', async () => {
  using dir = tempDir()
  const dataDir = join(dir.path, 'data')
  mkdirSync(dataDir)
  const damaged = Buffer.alloc(8192, 'not a database')
  writeFileSync(join(dataDir, 'thaw.db'), damaged)
  await expect(startChildServer(dataDir, { driver: 'process' })).rejects.toThrow(/damaged/)
  expect(readFileSync(join(dataDir, 'thaw.db')).equals(damaged)).toBe(true)
})

test('a second server on the same folder is refused with a fix', async () => {
  using dir = tempDir()
  const dataDir = join(dir.path, 'data')
  await using _first = await startChildServer(dataDir, { driver: 'process' })
  await expect(startChildServer(dataDir, { driver: 'process' })).rejects.toThrow(/--data-dir/)
})
