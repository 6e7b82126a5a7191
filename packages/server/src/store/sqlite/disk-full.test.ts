import { spawnSync } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { functionRow, invocationRow, LogSpy, logRow, openTestStore, tempDir } from './store.fixture.ts'

/** A file system of 8 MiB of its own, or what stops this user from having one. */
function smallDisk(): { path: string } | { reason: string } {
  const path = tempDir()
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', path], { encoding: 'utf8' })
  if (mounted.status !== 0) return { reason: mounted.stderr || String(mounted.error) }
  onTestFinished(() => void spawnSync('umount', ['--lazy', path]))
  return { path }
}

function fill(path: string): void {
  try {
    writeFileSync(path, Buffer.alloc(16 * 1024 * 1024))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error
  }
}

test('on a full disk nothing is acknowledged that is not kept, and with room again everything goes on', async ({ skip }) => {
  const disk = smallDisk()
  if ('reason' in disk) return skip(`no file system of its own: ${disk.reason}`)
  const log = new LogSpy()
  const dataDir = join(disk.path, 'data')
  const store = await openTestStore({ dataDir, log, busyMs: 100 })
  await store.functions.create(functionRow('before'))
  fill(join(disk.path, 'fill'))

  const acknowledged = ['before']
  const failure = await (async () => {
    for (let index = 0; ; index++) {
      await store.functions.create(functionRow(`full-${index}`))
      acknowledged.push(`full-${index}`)
    }
  })().catch((error: unknown) => error)
  expect(failure).toMatchObject({ code: 'disk_full', status: 503 })
  const record = invocationRow()
  store.records.invocation(record)
  for (let index = 0; index < 100; index++) store.records.log(logRow('x'.repeat(10_000)))
  await expect(store.records.flush()).rejects.toMatchObject({ code: 'disk_full' })
  await vi.waitFor(() =>
    expect(log.warnings).toContainEqual(expect.objectContaining({ fields: expect.objectContaining({ code: 'disk_full' }) })),
  )
  expect(await store.records.getInvocation(record.id)).toEqual(record)

  rmSync(join(disk.path, 'fill'))
  await store.records.flush()
  await store.functions.create(functionRow('after'))
  await store.close()
  const again = await openTestStore({ dataDir })
  expect((await again.functions.list({ limit: 1000 })).map((row) => row.name).sort()).toEqual([...acknowledged, 'after'].sort())
  expect(await again.records.getInvocation(record.id)).toEqual(record)
  expect(await again.records.logs({ limit: 1000 })).toHaveLength(100)
})
