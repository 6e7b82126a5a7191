import {
  chmodSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pack } from 'tar-stream'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { packLocal, unpackLocal } from './copy.ts'

let root: string
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'thaw-copy-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

type Entry = {
  name: string
  type?: 'file' | 'symlink' | 'directory' | 'link' | 'fifo' | 'character-device'
  linkname?: string
  mode?: number
}

/** An archive as a sandbox that was taken over could send it. */
async function* archive(...entries: Entry[]): AsyncGenerator<Uint8Array> {
  const tar = pack()
  for (const entry of entries) {
    const content = (entry.type ?? 'file') === 'file' ? 'content' : ''
    tar.entry({ mode: 0o644, ...entry, size: content.length }, content)
  }
  tar.finalize()
  for await (const piece of tar) yield piece as Uint8Array
}

const quiet = { signal: undefined, onProgress: undefined }
const unpack = (...entries: Entry[]) => unpackLocal(join(root, 'to'), archive(...entries), quiet)

test('a folder comes out as it went in: content, modes, times and links', async () => {
  const from = join(root, 'from')
  mkdirSync(join(from, 'empty'), { recursive: true })
  mkdirSync(join(from, 'deep', 'er'), { recursive: true })
  writeFileSync(join(from, 'deep', 'er', 'big'), Buffer.alloc(3_000_000, 7))
  writeFileSync(join(from, 'nothing'), '')
  writeFileSync(join(from, 'run'), '#!/bin/sh\n')
  chmodSync(join(from, 'run'), 0o755)
  symlinkSync('run', join(from, 'link'))
  const seen: { files: number; bytes: number }[] = []
  await unpackLocal(join(root, 'to'), packLocal(from, '', quiet), { signal: undefined, onProgress: (progress) => seen.push(progress) })
  const to = join(root, 'to')
  expect(readFileSync(join(to, 'deep', 'er', 'big')).equals(Buffer.alloc(3_000_000, 7))).toBe(true)
  expect(readFileSync(join(to, 'nothing'), 'utf8')).toBe('')
  expect(lstatSync(join(to, 'run')).mode & 0o777).toBe(0o755)
  expect(Math.trunc(statSync(join(to, 'run')).mtimeMs / 1000)).toBe(Math.trunc(statSync(join(from, 'run')).mtimeMs / 1000))
  expect(readlinkSync(join(to, 'link'))).toBe('run')
  expect(statSync(join(to, 'empty')).isDirectory()).toBe(true)
  expect(seen.at(-1)?.files).toBe(3)
  expect(seen.at(-1)?.bytes).toBeGreaterThan(3_000_000)
})

test('a name that leads out of the folder is refused, and nothing is written there', async () => {
  for (const name of ['../out', 'a/../../out', '../to-2/out']) {
    await expect(unpack({ name })).rejects.toMatchObject({ code: 'archive_unsafe' })
  }
  expect(() => lstatSync(join(root, 'out'))).toThrow('ENOENT')
  expect(() => lstatSync(join(root, 'to-2'))).toThrow('ENOENT')
})

test('an absolute name lands inside the folder', async () => {
  await unpack({ name: '/etc/thaw-copy-test' })
  expect(readFileSync(join(root, 'to', 'etc', 'thaw-copy-test'), 'utf8')).toBe('content')
})

test('a link of the archive is no way out for the entries behind it', async () => {
  mkdirSync(join(root, 'outside'))
  const link: Entry = { name: 'way', type: 'symlink', linkname: join(root, 'outside') }
  await expect(unpack(link, { name: 'way/file' })).rejects.toMatchObject({ code: 'archive_unsafe' })
  expect(() => lstatSync(join(root, 'outside', 'file'))).toThrow('ENOENT')
})

test('a link that an earlier archive left is no way out either, and a file replaces a link rather than what it leads to', async () => {
  mkdirSync(join(root, 'outside'))
  writeFileSync(join(root, 'outside', 'kept'), 'mine')
  await unpack(
    { name: 'way', type: 'symlink', linkname: join(root, 'outside') },
    { name: 'leaf', type: 'symlink', linkname: join(root, 'outside', 'kept') },
  )
  await expect(unpack({ name: 'way/file' })).rejects.toMatchObject({ code: 'archive_unsafe' })
  expect(() => lstatSync(join(root, 'outside', 'file'))).toThrow('ENOENT')
  await unpack({ name: 'leaf' })
  expect(readFileSync(join(root, 'outside', 'kept'), 'utf8')).toBe('mine')
  expect(readFileSync(join(root, 'to', 'leaf'), 'utf8')).toBe('content')
})

test('devices, pipes and hard links are refused', async () => {
  for (const type of ['fifo', 'character-device', 'link'] as const) {
    await expect(unpack({ name: 'odd', type, linkname: 'x' })).rejects.toMatchObject({ code: 'archive_unsafe' })
  }
})

test('setuid bits are left behind', async () => {
  await unpack({ name: 'su', mode: 0o4755 })
  expect(lstatSync(join(root, 'to', 'su')).mode & 0o7777).toBe(0o755)
})

test('an archive that is cut off is an error', async () => {
  const cut = async function* () {
    for await (const piece of archive({ name: 'file' })) {
      yield piece.subarray(0, 515)
      return
    }
  }
  await expect(unpackLocal(join(root, 'to'), cut(), quiet)).rejects.toMatchObject({ code: 'unreachable' })
})

test('what is neither file, folder nor link is named', async () => {
  await expect(unpackLocal(join(root, 'to'), packLocal('/dev/null', 'null', quiet), quiet)).rejects.toMatchObject({
    code: 'file_invalid',
    message: expect.stringContaining('/dev/null'),
  })
  await expect(unpackLocal(join(root, 'to'), packLocal(join(root, 'nowhere'), 'n', quiet), quiet)).rejects.toMatchObject({
    code: 'file_not_found',
  })
})
