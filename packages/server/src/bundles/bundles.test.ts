import { randomBytes } from 'node:crypto'
import { mkdtemp, readdir, readFile, readlink, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { type Header, pack } from 'tar-stream'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { idShift } from '../drivers/driver.ts'
import { Bundles } from './bundles.ts'

const limits = { maxPackedBytes: 1 << 20, maxUnpackedBytes: 1 << 20, maxEntries: 100 }
let dataDir: string
let bundles: Bundles

beforeEach(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'thaw-bundles-'))
  bundles = await Bundles.open({ dataDir, limits })
})
afterEach(() => rm(dataDir, { recursive: true, force: true }))

async function tarGz(entries: (Partial<Header> & { name: string; content?: string })[]): Promise<Buffer> {
  const tar = pack()
  for (const { content, ...header } of entries) tar.entry(header, content ?? '')
  tar.finalize()
  const parts: Buffer[] = []
  for await (const part of tar as unknown as AsyncIterable<Buffer>) parts.push(part)
  return gzipSync(Buffer.concat(parts))
}

async function blobFiles(): Promise<string[]> {
  const names = await readdir(join(dataDir, 'blobs'), { recursive: true, withFileTypes: true })
  return names.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

test('inline code becomes the one file that its runtime expects', async () => {
  for (const [runtime, name] of [
    ['python', 'main.py'],
    ['node', 'main.mjs'],
    ['go', 'main.go'],
  ] as const) {
    const { digest } = await bundles.addInline(Buffer.from('hello'), runtime)
    const target = join(dataDir, runtime)
    await bundles.unpack(digest, target)
    expect(await readdir(target)).toEqual([name])
    expect(await readFile(join(target, name), 'utf8')).toBe('hello')
  }
})

test('files are readable by everyone, programs stay executable, and links inside the archive stay links', async () => {
  const archive = await tarGz([
    { name: './', type: 'directory', mode: 0o700 },
    { name: './main.py', mode: 0o600, content: 'x = 1' },
    { name: './bin/run', mode: 0o750, content: '#!/bin/sh' },
    { name: './bin/latest', type: 'symlink', linkname: '../bin/run' },
    { name: './copy.py', type: 'link', linkname: './main.py' },
  ])
  const { digest, entries, unpacked_bytes } = await bundles.addArchive(archive)
  expect({ entries, unpacked_bytes }).toEqual({ entries: 5, unpacked_bytes: 19 })
  const target = join(dataDir, 'code')
  await bundles.unpack(digest, target)
  const mode = async (path: string) => ((await stat(join(target, path))).mode & 0o7777).toString(8)
  expect([await mode('.'), await mode('main.py'), await mode('bin'), await mode('bin/run')]).toEqual(['755', '644', '755', '755'])
  expect(await readlink(join(target, 'bin/latest'))).toBe('../bin/run')
  expect(await readFile(join(target, 'copy.py'), 'utf8')).toBe('x = 1')
})

test('equal content has one digest and one blob, whatever order, times and owners it was packed with', async () => {
  const one = await tarGz([
    { name: 'a.py', content: '1', mtime: new Date(1e12), uid: 7 },
    { name: 'b.py', content: '2' },
  ])
  const two = await tarGz([
    { name: './b.py', content: '2', mtime: new Date(0) },
    { name: './a.py', content: '1', uname: 'someone' },
  ])
  expect((await bundles.addArchive(one)).digest).toBe((await bundles.addArchive(two)).digest)
  const files = await blobFiles()
  expect(files).toHaveLength(1)
  expect((await stat(files[0] ?? '')).mode & 0o777).toBe(0o600)
})

test.runIf(process.getuid?.() === 0)('with shifted ids, root of the sandbox owns every entry', async () => {
  const { digest } = await bundles.addArchive(
    await tarGz([
      { name: 'a/b.py', content: '1' },
      { name: 'a/link', type: 'symlink', linkname: 'b.py' },
    ]),
  )
  const target = join(dataDir, 'code')
  await bundles.unpack(digest, target, { shiftIds: true })
  for (const path of ['.', 'a', 'a/b.py']) expect(await stat(join(target, path))).toMatchObject({ uid: idShift, gid: idShift })
})

test('an archive in a file is read like one in memory', async () => {
  const archive = await tarGz([{ name: 'main.py', content: randomBytes(300_000).toString('base64') }])
  const path = join(dataDir, 'upload')
  await writeFile(path, archive)
  expect(await bundles.addArchive({ path })).toEqual(await bundles.addArchive(archive))
})

test('a damaged blob is found out, and nothing is unpacked from it', async () => {
  const { digest } = await bundles.addInline(randomBytes(100_000), 'python')
  const [path = ''] = await blobFiles()
  const whole = await readFile(path)
  const flipped = Buffer.from(whole)
  flipped[whole.length >> 1] = (flipped[whole.length >> 1] ?? 0) ^ 1
  for (const damage of [() => writeFile(path, flipped), () => truncate(path, 50_000), () => writeFile(path, ''), () => rm(path)]) {
    await writeFile(path, whole)
    await damage()
    await expect(bundles.unpack(digest, join(dataDir, 'code'))).rejects.toMatchObject({
      code: 'internal',
      fix: expect.stringContaining('Deploy'),
    })
    expect(await readdir(dataDir)).toEqual(['blobs'])
  }
})

test('blobs that nobody names are removed once they are old enough', async () => {
  const keep = await bundles.addInline(Buffer.from('keep'), 'python')
  const drop = await bundles.addInline(Buffer.from('drop'), 'python')
  expect(await bundles.removeBlobsExcept([keep.digest], { olderThanMs: 60_000 })).toEqual({ removed: [], freed_bytes: 0 })
  for (const path of await blobFiles()) await utimes(path, 0, 0)
  expect(await bundles.removeBlobsExcept([keep.digest], { olderThanMs: 60_000 })).toEqual({
    removed: [drop.digest],
    freed_bytes: drop.size_bytes,
  })
  await bundles.unpack(keep.digest, join(dataDir, 'code'))
})
