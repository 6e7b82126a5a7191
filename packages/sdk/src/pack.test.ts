import { chmod, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { extract, type Header } from 'tar-stream'
import { afterEach, expect, test } from 'vitest'
import { packDirectory } from './pack.ts'

const made: string[] = []

afterEach(async () => {
  for (const path of made.splice(0)) await rm(path, { recursive: true, force: true })
})

async function folderOf(files: Record<string, string>): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'thaw-pack-'))
  made.push(root)
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, name)), { recursive: true })
    await writeFile(join(root, name), content)
  }
  return root
}

async function unpack(archive: Uint8Array): Promise<{ header: Header; content: string }[]> {
  const tar = extract()
  tar.end(gunzipSync(archive))
  const entries: { header: Header; content: string }[] = []
  for await (const entry of tar) {
    let content = ''
    for await (const piece of entry) content += String(piece)
    entries.push({ header: entry.header, content })
  }
  return entries
}

test('the same content gives the same bytes, whatever the times and the order of creation', async () => {
  const first = await folderOf({ 'b.py': 'b', 'a/z.py': 'z', 'a.py': 'a' })
  const second = await folderOf({ 'a.py': 'a', 'a/z.py': 'z', 'b.py': 'b' })
  await utimes(join(second, 'a.py'), 1, 1)
  await chmod(join(second, 'a.py'), 0o600)
  const one = await packDirectory(first)
  const two = await packDirectory(second)
  expect(one.digest).toMatch(/^sha256:[0-9a-f]{64}$/)
  expect(two.digest).toBe(one.digest)
})

test('other content gives another digest', async () => {
  const one = await packDirectory(await folderOf({ 'a.py': 'a' }))
  const two = await packDirectory(await folderOf({ 'a.py': 'b' }))
  expect(two.digest).not.toBe(one.digest)
})

test('what the server does not need is left out, and .thawignore decides about the rest', async () => {
  const root = await folderOf({
    'main.py': 'x',
    'kept/vendor.py': 'x',
    'node_modules/big/index.js': 'x',
    '.git/HEAD': 'x',
    '__pycache__/main.pyc': 'x',
    'secret.txt': 'x',
    '.thawignore': '*.txt\n',
    'thaw.json': '{}',
  })
  const entries = await unpack((await packDirectory(root)).archive)
  expect(entries.map((entry) => entry.header.name)).toEqual(['kept/vendor.py', 'main.py'])
})

test('.thawignore can take node_modules back', async () => {
  const root = await folderOf({ 'main.mjs': 'x', 'node_modules/a/index.js': 'x', '.thawignore': '!node_modules/\n' })
  const entries = await unpack((await packDirectory(root)).archive)
  expect(entries.map((entry) => entry.header.name)).toEqual(['main.mjs', 'node_modules/a/index.js'])
})

test('of the mode only the executable bit is kept', async () => {
  const root = await folderOf({ bootstrap: '#!/bin/sh', 'main.py': 'x' })
  await chmod(join(root, 'bootstrap'), 0o711)
  const entries = await unpack((await packDirectory(root)).archive)
  expect(entries.map((entry) => entry.header.mode)).toEqual([0o755, 0o644])
})

test('a link inside the folder stays a link', async () => {
  const root = await folderOf({ 'lib/real.py': 'x' })
  await symlink('lib/real.py', join(root, 'alias.py'))
  const entries = await unpack((await packDirectory(root)).archive)
  expect(entries[0]?.header).toMatchObject({ name: 'alias.py', type: 'symlink', linkname: 'lib/real.py' })
})

test('a link that leaves the folder is refused by name', async () => {
  const root = await folderOf({ 'main.py': 'x' })
  await symlink('../../etc/passwd', join(root, 'leak'))
  await expect(packDirectory(root)).rejects.toMatchObject({ code: 'archive_unsafe', message: expect.stringContaining('leak') })
})

test('a folder that does not exist, or holds nothing, is refused', async () => {
  await expect(packDirectory('/nowhere/at/all')).rejects.toMatchObject({ code: 'archive_invalid' })
  await expect(packDirectory(await folderOf({}))).rejects.toMatchObject({ code: 'archive_invalid' })
})

test('names longer than the tar header come through', async () => {
  const name = `${'long-folder-name/'.repeat(12)}main.py`
  const entries = await unpack((await packDirectory(await folderOf({ [name]: 'deep' }))).archive)
  expect(entries[0]).toMatchObject({ header: { name }, content: 'deep' })
})

test('an aborted signal ends the packing', async () => {
  const root = await folderOf({ 'main.py': 'x' })
  await expect(packDirectory(root, { signal: AbortSignal.abort(new Error('stop')) })).rejects.toThrow('stop')
})
