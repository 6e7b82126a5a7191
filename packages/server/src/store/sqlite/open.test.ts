import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { DatabaseSync } from 'node:sqlite'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { openStore } from './open.ts'
import { functionRow, LogSpy, logRow, openTestStore, tempDir } from './store.fixture.ts'

const open = (dataDir: string, busyMs = 50) => openStore({ dataDir, log: new LogSpy(), busyMs })

/** A data directory with a few hundred pages in it, closed. */
async function filledDir(): Promise<{ dataDir: string; path: string }> {
  const dataDir = tempDir()
  const store = await open(dataDir)
  await store.functions.create(functionRow('hello'))
  for (let index = 0; index < 500; index++) store.records.log(logRow('x'.repeat(2000)))
  await store.close()
  return { dataDir, path: join(dataDir, 'thaw.db') }
}

test('the files are for their owner only', async () => {
  const dataDir = join(tempDir(), 'made', 'here')
  const store = await openTestStore({ dataDir })
  await store.functions.create(functionRow('hello'))
  for (const name of ['thaw.db', 'thaw.db-wal', 'thaw.db-shm']) expect(statSync(join(dataDir, name)).mode & 0o777, name).toBe(0o600)
})

test('closing leaves one database file, flushes what is buffered, and can be done twice', async () => {
  const { dataDir, path } = await filledDir()
  expect(existsSync(`${path}-wal`)).toBe(false)
  const store = await openTestStore({ dataDir })
  await Promise.all([store.close(), store.close()])
  const db = new DatabaseSync(path, { readOnly: true })
  onTestFinished(() => db.close())
  expect(db.prepare('SELECT count(*) AS n FROM logs').get()).toEqual({ n: 500 })
})

describe('one server per data directory', () => {
  test('a second one is refused while the first runs, and welcome afterwards', async () => {
    const dataDir = tempDir()
    const first = await open(dataDir)
    await expect(open(dataDir)).rejects.toMatchObject({ code: 'data_dir_in_use' })
    await first.functions.create(functionRow('hello'))
    await first.close()
    await (await open(dataDir)).close()
  })

  test('a failed start gives the directory back', async () => {
    const { dataDir, path } = await filledDir()
    const good = readFileSync(path)
    writeFileSync(path, 'this is not a database, but it is long enough to be one'.repeat(10))
    await expect(open(dataDir)).rejects.toMatchObject({ code: 'database_corrupt' })
    writeFileSync(path, good)
    await (await open(dataDir)).close()
  })
})

describe('a damaged file is refused and left as it is', () => {
  test.each<[string, (path: string) => void]>([
    ['text', (path) => writeFileSync(path, 'hello '.repeat(1000))],
    ['too short for a header', (path) => writeFileSync(path, 'SQLite format 3\0')],
    ['garbage in its pages', (path) => writeFileSync(path, spoil(readFileSync(path)))],
    ['cut off', (path) => truncateSync(path, 4096 * 5)],
  ])('%s', async (_, damage) => {
    const { dataDir, path } = await filledDir()
    damage(path)
    const before = readFileSync(path)
    await expect(open(dataDir)).rejects.toMatchObject({ code: 'database_corrupt' })
    await expect(open(dataDir)).rejects.toMatchObject({ code: 'database_corrupt' })
    expect(readFileSync(path).equals(before)).toBe(true)
  })
})

test('a damaged database that crashed keeps its log too', async () => {
  const { dataDir, path } = await filledDir()
  const running = await openTestStore({ dataDir })
  await running.functions.create(functionRow('in the log'))
  // What a crash leaves: the files as they are while the server runs.
  const crashed = tempDir()
  const files = ['thaw.db', 'thaw.db-wal'].map((name) => ({ from: join(dataDir, name), to: join(crashed, name) }))
  for (const { from, to } of files) writeFileSync(to, from === path ? spoil(readFileSync(from)) : readFileSync(from))
  const before = files.map(({ to }) => readFileSync(to))
  expect(before[1]?.length).toBeGreaterThan(0)
  await expect(open(crashed)).rejects.toMatchObject({ code: 'database_corrupt' })
  for (const [index, { to }] of files.entries()) expect(readFileSync(to).equals(before[index] ?? Buffer.alloc(0)), to).toBe(true)
})

function spoil(content: Buffer): Buffer {
  content.fill(0xa5, 4096 * 4, 4096 * 40)
  return content
}

test('a database of a newer version is refused', async () => {
  const { dataDir, path } = await filledDir()
  const db = new DatabaseSync(path)
  db.exec("INSERT INTO schema_migrations VALUES (99, 'from the future', 1)")
  db.close()
  await expect(open(dataDir)).rejects.toMatchObject({ code: 'database_unavailable', message: expect.stringContaining('99') })
})

test('a database that somebody else keeps locked is unavailable', async () => {
  const { dataDir, path } = await filledDir()
  const db = new DatabaseSync(path)
  onTestFinished(() => db.close())
  db.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE')
  await expect(open(dataDir)).rejects.toMatchObject({ code: 'database_unavailable' })
})

test('a data directory that cannot be made is unavailable', async () => {
  const file = join(tempDir(), 'file')
  writeFileSync(file, '')
  await expect(open(join(file, 'below'))).rejects.toMatchObject({ code: 'database_unavailable' })
})

test('after kill -9 everything that was acknowledged is there, and nothing needs to be cleaned up', { timeout: 60_000 }, async () => {
  const dataDir = tempDir()
  const acknowledged: string[][] = []
  for (let round = 0; round < 5; round++) {
    const child = spawn(process.execPath, [fileURLToPath(new URL('./crash-writer.fixture.ts', import.meta.url)), dataDir, String(round)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    onTestFinished(() => void child.kill('SIGKILL'))
    const ended = once(child, 'exit')
    let lines = 0
    for await (const line of createInterface({ input: child.stdout })) {
      acknowledged.push(line.split(' '))
      if (++lines === 20 + round * 7) child.kill('SIGKILL')
    }
    await ended
    expect(lines).toBeGreaterThanOrEqual(20)
    expect(existsSync(join(dataDir, 'thaw.db-wal'))).toBe(true)

    const store = await open(dataDir)
    for (const [name = '', record = ''] of acknowledged) {
      expect(await store.functions.get('default', name), name).not.toBeNull()
      expect(await store.records.getInvocation(record), record).not.toBeNull()
    }
    await store.close()
  }
})
