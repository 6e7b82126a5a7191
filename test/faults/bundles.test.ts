import { randomBytes } from 'node:crypto'
import { lstat, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { crc32, createGzip, deflateRawSync, gzipSync } from 'node:zlib'
import { ThawError } from '@thaw/protocol'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { Bundles } from '../../packages/server/src/bundles/bundles.ts'

// Archives are written byte by byte here: libraries refuse to make what an attacker would send.

interface TarEntry {
  name: string
  /** Type flag of ustar: 0 file, 1 hard link, 2 symbolic link, 3 character device, 4 block device, 5 folder, 6 FIFO. */
  type?: string
  mode?: number
  linkname?: string
  content?: string
}

function tarHeader(entry: TarEntry): Buffer {
  const block = Buffer.alloc(512)
  block.write(entry.name, 0, 100)
  block.write((entry.mode ?? 0o644).toString(8).padStart(7, '0'), 100)
  block.write('0000000', 108)
  block.write('0000000', 116)
  block.write(
    Buffer.byteLength(entry.content ?? '')
      .toString(8)
      .padStart(11, '0'),
    124,
  )
  block.write('00000000000', 136)
  block.write('        ', 148)
  block.write(entry.type ?? '0', 156)
  block.write(entry.linkname ?? '', 157, 100)
  block.write('ustar\x0000', 257)
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  return block
}

function tarGz(...entries: TarEntry[]): Buffer {
  const blocks = entries.flatMap((entry) => {
    const content = Buffer.from(entry.content ?? '')
    return [tarHeader(entry), content, Buffer.alloc((512 - (content.length % 512)) % 512)]
  })
  return gzipSync(Buffer.concat([...blocks, Buffer.alloc(1024)]))
}

/** A pax header (POSIX pax, extended header) that renames the entry after it. */
function paxPath(path: string): TarEntry {
  const record = ` path=${path}\n`
  let length = record.length + 1
  while (String(length).length + record.length !== length) length = String(length).length + record.length
  return { name: 'pax', type: 'x', content: `${length}${record}` }
}

interface ZipEntry {
  name: string
  content?: string | Buffer
  /** st_mode of stat(2). */
  mode?: number
  flags?: number
  method?: number
  /** Unpacked size as the archive claims it. */
  claimedBytes?: number
}

function zip(...entries: ZipEntry[]): Buffer {
  const files: Buffer[] = []
  const directory: Buffer[] = []
  let offset = 0
  for (const entry of entries) {
    const content = Buffer.from(entry.content ?? '')
    const packed = deflateRawSync(content)
    const name = Buffer.from(entry.name)
    const common = Buffer.alloc(26)
    common.writeUInt16LE(20, 0)
    common.writeUInt16LE(entry.flags ?? 0, 2)
    common.writeUInt16LE(entry.method ?? 8, 4)
    common.writeUInt32LE(crc32(content), 10)
    common.writeUInt32LE(packed.length, 14)
    common.writeUInt32LE(entry.claimedBytes ?? content.length, 18)
    common.writeUInt16LE(name.length, 22)
    const local = Buffer.concat([Buffer.from('PK\x03\x04'), common, name, packed])
    const rest = Buffer.alloc(14)
    rest.writeUInt32LE(((entry.mode ?? 0o100644) << 16) >>> 0, 6)
    rest.writeUInt32LE(offset, 10)
    directory.push(Buffer.from('PK\x01\x02'), Buffer.from([20, 3]), common, rest, name)
    files.push(local)
    offset += local.length
  }
  const central = Buffer.concat(directory)
  const end = Buffer.alloc(18)
  end.writeUInt16LE(entries.length, 4)
  end.writeUInt16LE(entries.length, 6)
  end.writeUInt32LE(central.length, 8)
  end.writeUInt32LE(offset, 12)
  return Buffer.concat([...files, central, Buffer.from('PK\x05\x06'), end])
}

const limits = { maxPackedBytes: 4 << 20, maxUnpackedBytes: 8 << 20, maxEntries: 1000 }
let parent: string
let bundles: Bundles

beforeEach(async () => {
  parent = await mkdtemp(join(tmpdir(), 'thaw-bundle-faults-'))
  await writeFile(join(parent, 'victim'), 'untouched')
  bundles = await Bundles.open({ dataDir: join(parent, 'data'), limits })
})
afterEach(() => rm(parent, { recursive: true, force: true }))

/** Everything below the folder that the test owns, with what it is. */
async function onDisk(): Promise<string[]> {
  const names = await readdir(parent, { recursive: true })
  return Promise.all(
    names.sort().map(async (name) => {
      const { mode, size, mtimeMs } = await lstat(join(parent, name))
      return (mode & 0o170000) === 0o040000 ? name : `${name} ${mode.toString(8)} ${size} ${mtimeMs}`
    }),
  )
}

async function expectRefused(archive: Buffer, code: string, message: RegExp): Promise<void> {
  const before = await onDisk()
  const error = await bundles.addArchive(archive).then(
    () => null,
    (thrown: unknown) => thrown,
  )
  expect(error).toBeInstanceOf(ThawError)
  expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
  expect(await onDisk()).toEqual(before)
}

const outside = '../../../victim'

describe('fault 24: a path that leads out of the archive is refused, and nothing is written', () => {
  test.each([
    ['tar.gz', tarGz({ name: outside, content: 'evil' })],
    ['tar.gz, after a good file', tarGz({ name: 'main.py', content: 'ok' }, { name: `a/${outside}`, content: 'evil' })],
    ['tar.gz, in the middle', tarGz({ name: 'a/../../b', content: 'evil' })],
    ['tar.gz, in a pax header', tarGz(paxPath(outside), { name: 'harmless', content: 'evil' })],
    ['zip', zip({ name: outside, content: 'evil' })],
    ['zip, with backslashes', zip({ name: '..\\..\\victim', content: 'evil' })],
    ['zip, after a good file', zip({ name: 'main.py', content: 'ok' }, { name: `a/${outside}`, content: 'evil' })],
  ])('%s', (_, archive) => expectRefused(archive, 'archive_unsafe', /leads out of the archive/))

  test.each([
    ['tar.gz', tarGz({ name: '/tmp/victim', content: 'evil' })],
    ['zip', zip({ name: '/tmp/victim', content: 'evil' })],
    ['zip, with a drive', zip({ name: 'C:\\victim', content: 'evil' })],
  ])('absolute, %s', (_, archive) => expectRefused(archive, 'archive_unsafe', /absolute path/))

  test.each([
    ['tar.gz', tarGz(paxPath('main.py\0.txt'), { name: 'x', content: 'evil' })],
    ['zip', zip({ name: 'main.py\0.txt', content: 'evil' })],
  ])('with a NUL byte, %s', (_, archive) => expectRefused(archive, 'archive_unsafe', /NUL/))

  test('the message and the details name the entry', async () => {
    const error: unknown = await bundles.addArchive(tarGz({ name: outside })).catch((thrown: unknown) => thrown)
    expect(error).toMatchObject({ message: expect.stringContaining(outside), details: { entry: outside } })
  })
})

describe('fault 25: a link that leads out of the archive is refused', () => {
  const link = (name: string, linkname: string): TarEntry => ({ name, linkname, type: '2' })
  test.each([
    ['absolute', tarGz(link('a', '/etc/passwd'))],
    ['relative', tarGz(link('a', outside))],
    ['from a folder, one step too far', tarGz(link('a/b/c', '../../../victim'))],
    ['out and in again', tarGz(link('a', '../data/main.py'))],
    ['over another link', tarGz({ name: 'a/b/', type: '5' }, link('short', 'a/b'), link('far', 'short/../../../victim'))],
    ['over a chain of links', tarGz(link('one', 'two'), link('two', 'three'), link('three', '..'))],
    ['zip', zip({ name: 'a', content: outside, mode: 0o120777 })],
    ['zip, absolute', zip({ name: 'a', content: '/etc/passwd', mode: 0o120777 })],
  ])('%s', (_, archive) => expectRefused(archive, 'archive_unsafe', /link out of the archive/))

  test('hard link to a file of the host', () =>
    expectRefused(tarGz({ name: 'a', type: '1', linkname: '/etc/passwd' }), 'archive_unsafe', /absolute path/))
  test('hard link upwards', () =>
    expectRefused(tarGz({ name: 'a', type: '1', linkname: outside }), 'archive_unsafe', /leads out of the archive/))
  test('hard link to a symbolic link', () =>
    expectRefused(tarGz(link('s', 'x'), { name: 'a', type: '1', linkname: 's' }), 'archive_unsafe', /no file of the archive/))
  test('hard link to itself', () =>
    expectRefused(tarGz({ name: 'a', type: '1', linkname: 'a' }), 'archive_unsafe', /no file of the archive/))
  test('a link, then a file through it', () =>
    expectRefused(tarGz(link('a', '.'), { name: 'a/b', content: 'evil' }), 'archive_unsafe', /lies below a, which is a symlink/))
  test('a link, then a file in its place', () =>
    expectRefused(tarGz(link('a', 'b'), { name: 'a', content: 'evil' }), 'archive_unsafe', /twice/))
  test('a loop of links', () => expectRefused(tarGz(link('a', 'b'), link('b', 'a')), 'archive_unsafe', /back to itself/))
  test('two entries of one name', () =>
    expectRefused(zip({ name: 'main.py', content: 'shown' }, { name: './main.py', content: 'run' }), 'archive_unsafe', /twice/))
})

describe('fault 26: an archive that is too large is refused without being unpacked', () => {
  test('zip bomb', () => expectRefused(zip({ name: 'zeros', content: Buffer.alloc(9 << 20) }), 'archive_too_large', /unpacked/))
  test('zip bomb that lies about its size', () =>
    expectRefused(zip({ name: 'zeros', content: Buffer.alloc(9 << 20), claimedBytes: 5 }), 'archive_invalid', /size|bytes/))
  test('many small files that are too much together', () =>
    expectRefused(
      zip(...Array.from({ length: 9 }, (_, i) => ({ name: `f${i}`, content: Buffer.alloc(1 << 20) }))),
      'archive_too_large',
      /unpacked/,
    ))
  test('hard links, each of which counts', () => {
    const links = Array.from({ length: 9 }, (_, i): TarEntry => ({ name: `l${i}`, type: '1', linkname: 'f' }))
    return expectRefused(tarGz({ name: 'f', content: '0'.repeat(1 << 20) }, ...links), 'archive_too_large', /unpacked/)
  })
  test('too many entries, tar.gz', () =>
    expectRefused(tarGz(...Array.from({ length: 1001 }, (_, i) => ({ name: `f${i}` }))), 'archive_too_large', /more than 1000 entries/))
  test('too many entries, zip', () =>
    expectRefused(zip(...Array.from({ length: 1001 }, (_, i) => ({ name: `f${i}` }))), 'archive_too_large', /more than 1000 entries/))
  test('too many folders that are only named', () =>
    expectRefused(tarGz(...Array.from({ length: 40 }, (_, i) => ({ name: `${i}/${'d/'.repeat(30)}f` }))), 'archive_too_large', /entries/))
  test('too deep', () =>
    expectRefused(tarGz({ name: `${'d/'.repeat(49)}f` }, paxPath(`${'d/'.repeat(70)}f`), { name: 'x' }), 'archive_too_large', /deeper/))
  test('a path that is too long', () => expectRefused(zip({ name: `${'long-name/'.repeat(120)}f` }), 'archive_too_large', /longer than/))
  test('a packed file that is too large', () => expectRefused(Buffer.alloc((4 << 20) + 1), 'archive_too_large', /larger than/))

  test('a gigabyte of zeros, 100,000 empty entries and endless headers are cut off early, with bounded memory', async () => {
    const block = (entry: TarEntry, sizeBytes: number) => {
      const header = tarHeader(entry)
      header.write(sizeBytes.toString(8).padStart(11, '0'), 124)
      header.write('        ', 148)
      const sum = header.reduce((total, byte) => total + byte, 0)
      header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
      return header
    }
    const zeros = await gzipped(function* () {
      yield block({ name: 'zeros' }, 2 ** 30)
      for (let i = 0; i < 1024; i++) yield Buffer.alloc(2 ** 20)
    })
    const entries = await gzipped(function* () {
      for (let i = 0; i < 100_000; i++) yield tarHeader({ name: `f${i}` })
    })
    const headers = await gzipped(function* () {
      const pax = Buffer.concat([tarHeader({ name: 'x', type: 'g', content: '6 a=b\n' }), Buffer.from('6 a=b\n'), Buffer.alloc(506)])
      for (let i = 0; i < 100_000; i++) yield pax
    })
    for (const archive of [zeros, entries, headers]) {
      expect(archive.length).toBeLessThan(limits.maxPackedBytes)
      const before = process.memoryUsage.rss()
      await expectRefused(archive, 'archive_too_large', /more than/)
      expect(process.memoryUsage.rss() - before).toBeLessThan(64 * 2 ** 20)
    }
  })
})

describe('fault 27: devices, FIFOs and set-uid files are refused', () => {
  test.each([
    ['a character device', tarGz({ name: 'x', type: '3' }), /is a device/],
    ['a block device', tarGz({ name: 'x', type: '4' }), /is a device/],
    ['a FIFO', tarGz({ name: 'x', type: '6' }), /is a FIFO/],
    ['a set-uid file', tarGz({ name: 'x', mode: 0o4755, content: 'x' }), /set-uid/],
    ['a set-gid file', tarGz({ name: 'x', mode: 0o2755, content: 'x' }), /set-uid or set-gid/],
    ['a device in a zip', zip({ name: 'x', mode: 0o020666 }), /is a device/],
    ['a FIFO in a zip', zip({ name: 'x', mode: 0o010666 }), /is a FIFO/],
    ['a socket in a zip', zip({ name: 'x', mode: 0o140666 }), /socket/],
    ['a set-uid file in a zip', zip({ name: 'x', mode: 0o104755, content: 'x' }), /set-uid/],
  ])('%s', (_, archive, message) => expectRefused(archive, 'archive_unsafe', message))
})

describe('fault 28: an archive that is not whole is refused', () => {
  const whole = {
    'tar.gz': tarGz({ name: 'main.py', content: randomBytes(20_000).toString('hex') }),
    zip: zip({ name: 'main.py', content: randomBytes(20_000).toString('hex') }),
  }
  for (const [kind, archive] of Object.entries(whole)) {
    test.each([3, 10, archive.length >> 1, archive.length - 9, archive.length - 1])(`${kind} cut after %i bytes`, (length) =>
      expectRefused(archive.subarray(0, length), 'archive_invalid', /cannot be read/),
    )
    test(`${kind} with a flipped bit`, () => {
      const flipped = Buffer.from(archive)
      flipped[archive.length >> 1] = (flipped[archive.length >> 1] ?? 0) ^ 0x10
      return expectRefused(flipped, 'archive_invalid', /cannot be read/)
    })
  }
  test.each([
    ['nothing', Buffer.alloc(0)],
    ['text', Buffer.from('def handler(event, context): pass')],
    ['noise', Buffer.concat([Buffer.from([0]), randomBytes(1000)])],
    ['gzip of something else', gzipSync('hello '.repeat(1000))],
    ['an empty tar.gz', tarGz()],
    ['an empty zip', zip()],
    ['an encrypted zip', zip({ name: 'main.py', content: 'x', flags: 1 })],
    ['a zip with a method that is not supported', zip({ name: 'main.py', content: 'x', method: 12 })],
    ['an entry of an unknown kind', tarGz({ name: 'x', type: 'S' })],
  ])('%s', (_, archive) => expectRefused(archive, 'archive_invalid', /cannot be read/))
})

test('the same writers make archives that are taken, so that the refusals above mean something', async () => {
  const files = { name: 'a/main.py', content: 'ok' }
  const fromTar = await bundles.addArchive(tarGz({ name: 'a/', type: '5' }, files, { name: 'link', type: '2', linkname: 'a/main.py' }))
  const fromZip = await bundles.addArchive(
    zip({ name: 'a/', mode: 0o040755 }, files, { name: 'link', content: 'a/main.py', mode: 0o120777 }),
  )
  expect(fromZip.digest).toBe(fromTar.digest)
})

async function gzipped(blocks: () => Generator<Buffer>): Promise<Buffer> {
  const gzip = createGzip({ level: 6 })
  const parts: Buffer[] = []
  gzip.on('data', (part: Buffer) => parts.push(part))
  for (const block of blocks()) if (!gzip.write(block)) await new Promise((resolve) => gzip.once('drain', resolve))
  await new Promise((resolve) => gzip.end(resolve).once('end', resolve))
  return Buffer.concat(parts)
}
