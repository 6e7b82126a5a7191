import { createReadStream } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { startServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const skip = await whyNoDriver('oci')

describe.skipIf(skip !== null)(`snapshots through the SDK over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  test('a snapshot goes from one server to another as it is packed, and from a file, a stream of one, bytes and a Blob', async () => {
    await using here = await startServer({ driver: 'oci', ssh: { enabled: false } })
    await using there = await startServer({ driver: 'oci', ssh: { enabled: false } })
    const source = await here.thaw.sandboxes.create({ image: 'python', network: 'none' })
    await source.files.write('/root/moved', 'from here')
    const taken = await source.snapshot({ name: 'moved', kind: 'filesystem' })
    const heard: [number, number] = [0, 0]
    const listen = (index: 0 | 1) => (bytes: number) => {
      heard[index] = bytes
    }
    const pieces = here.thaw.snapshots.export(taken.id, { onProgress: listen(0) })
    const streamed = await there.thaw.snapshots.import(pieces, { onProgress: listen(1) })
    expect(heard[1]).toBe(heard[0])
    expect(heard[0]).toBeGreaterThan(100)

    using dir = tempDir()
    const path = join(dir.path, 'moved.tar.zst')
    await writeFile(path, here.thaw.snapshots.export(taken.id))
    const bytes = new Uint8Array(await new Response(ReadableStream.from(here.thaw.snapshots.export(taken.id))).arrayBuffer())
    const imported = [streamed]
    for (const [name, archive] of Object.entries({ path: { path }, stream: createReadStream(path), bytes, blob: new Blob([bytes]) }))
      imported.push(await there.thaw.snapshots.import(archive, { name, onProgress: () => undefined }))
    expect(imported.map(({ name }) => name)).toEqual(['moved', 'path', 'stream', 'bytes', 'blob'])
    for (const { id } of imported) {
      const sandbox = await there.thaw.snapshots.restore(id)
      expect(await sandbox.files.readText('/root/moved')).toBe('from here')
    }
    await expect(there.thaw.snapshots.import({ path: join(dir.path, 'none') })).rejects.toMatchObject({ code: 'file_not_found' })
  })

  test('lists are filtered by sandbox, and an export that nobody reads to its end is given up', async () => {
    await using server = await startServer({ driver: 'oci', ssh: { enabled: false } })
    const [one, two] = [await server.thaw.sandboxes.create({ image: 'python' }), await server.thaw.sandboxes.create({ image: 'python' })]
    const taken = await one.snapshot({ kind: 'filesystem' })
    await two.snapshot({ kind: 'filesystem' })
    expect((await server.thaw.snapshots.list({ sandbox: one.id }).all()).map(({ id }) => id)).toEqual([taken.id])
    expect(await server.thaw.snapshots.list().all()).toHaveLength(2)
    for await (const piece of server.thaw.snapshots.export(taken.id)) {
      expect(piece.length).toBeGreaterThan(0)
      break
    }
    await expect(server.thaw.snapshots.export(taken.id, { signal: AbortSignal.abort(new Error('enough')) }).next()).rejects.toThrow(
      'enough',
    )
    await expect(server.thaw.snapshots.export('snap-none').next()).rejects.toMatchObject({ code: 'snapshot_not_found' })
  })
})
