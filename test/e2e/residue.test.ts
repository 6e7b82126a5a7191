import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

/** Every file of the data directory but the database, whose size does not follow its rows. */
function tree(dataDir: string): string[] {
  return readdirSync(dataDir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.name.startsWith('thaw.db'))
    .map((entry) => join(entry.parentPath, entry.name).slice(dataDir.length))
    .sort()
}

function folderCount(dataDir: string): number {
  return readdirSync(dataDir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isDirectory()).length
}

test.skipIf(skip !== null)(
  '100 functions × 5 versions, deployed, invoked and deleted, leave the data directory and the process table as they were',
  async () => {
    await using server = await startServer({ driver: 'oci', limits: { max_instances: 24 } })
    const { thaw, dataDir } = server
    const source = (f: number, v: number) => ({
      runtime: 'python' as const,
      network: 'none' as const,
      code: { inline: `def handler(event, context):\n    return "${f}.${v}"` },
    })
    // The first one makes what belongs to the server and not to a function.
    await thaw.functions.create({ name: 'first', ...source(0, 0) })
    await thaw.functions.delete('first')
    const before = { files: tree(dataDir), folders: folderCount(dataDir) }

    const work = async (lane: number) => {
      for (let f = lane; f < 100; f += 4) {
        const name = `f${f}`
        await thaw.functions.create({ name, ...source(f, 1) })
        for (let v = 2; v <= 5; v++) await thaw.functions.update(name, source(f, v))
        if (f % 10 === 0) expect((await thaw.functions.invoke<string>(name)).value).toBe(`${f}.5`)
      }
    }
    await Promise.all([0, 1, 2, 3].map(work))
    const names: string[] = []
    for await (const item of thaw.functions.list({ limit: 30 })) names.push(item.name)
    expect(names.length).toBe(100)
    expect(tree(dataDir).length).toBeGreaterThan(before.files.length + 1000)

    await Promise.all(
      [0, 1, 2, 3].map(async (lane) => {
        for (let f = lane; f < 100; f += 4) await thaw.functions.delete(`f${f}`)
      }),
    )
    expect(tree(dataDir)).toEqual(before.files)
    expect(folderCount(dataDir)).toBe(before.folders)
    expect(residueOf(dataDir)).toEqual(nothing)
  },
  300_000,
)
