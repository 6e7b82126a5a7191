import { createHash } from 'node:crypto'
import { readdir, readFile, readlink, stat } from 'node:fs/promises'
import { join, posix } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import { ThawError } from '@thaw/protocol'
import { type Pack, pack } from 'tar-stream'
import { IgnoreList } from './ignore.ts'

export interface Packed {
  /** A tar.gz file. */
  archive: Uint8Array
  files: number
  /** sha256:… of the archive. */
  digest: string
}

/** Left out of every archive, unless .thawignore takes it back with `!`. */
const alwaysIgnored = ['node_modules/', '.git/', '__pycache__/', '.venv/', '.DS_Store', '/.thawignore', '/thaw.json'].join('\n')

/** A folder this large is a mistake: a home folder, a data set. The server has its own, lower limit. */
const maxUnpackedBytes = 1024 ** 3

/**
 * Packs a folder as tar.gz. The same content gives the same bytes, whoever packs it and when: names are sorted, times,
 * owners and all of the mode but the executable bit are left out.
 */
export async function packDirectory(directory: string, options: { signal?: AbortSignal | undefined } = {}): Promise<Packed> {
  return packFolder(directory, new IgnoreList(`${alwaysIgnored}\n${await readIgnoreFile(directory, '.thawignore')}`), options.signal)
}

/** Packs a folder with a Dockerfile. What its .dockerignore names is left out, whose patterns begin at the folder. */
export async function packBuildContext(directory: string, options: { signal?: AbortSignal | undefined } = {}): Promise<Packed> {
  const patterns = (await readIgnoreFile(directory, '.dockerignore')).split(/\r?\n/).map((line) => {
    const [, keep = '', pattern = ''] = /^\s*(!?)\/?(.*?)\/?\s*$/.exec(line) ?? []
    return pattern === '' || line.startsWith('#') ? '' : `${keep}/${pattern}`
  })
  return packFolder(directory, new IgnoreList(patterns.join('\n')), options.signal)
}

async function packFolder(directory: string, ignored: IgnoreList, signal: AbortSignal | undefined): Promise<Packed> {
  const names = (await listFiles(directory, '', ignored, signal)).sort((a, b) => (a < b ? -1 : 1))
  if (names.length === 0) {
    throw new ThawError('archive_invalid', `There is no file to send in ${directory}.`, {
      fix: 'Name the folder that holds the code; .thawignore may leave out too much.',
    })
  }
  const tar = pack()
  // A failure reaches the reader below; without a listener of its own it would also end the process.
  tar.on('error', () => undefined)
  const pieces: Buffer[] = []
  const read = pipeline(piecesOf(tar), createGzip(), async (gzip) => {
    for await (const piece of gzip) pieces.push(piece as Buffer)
  })
  void addFiles(tar, directory, names, signal).catch((error: Error) => tar.destroy(error))
  await read
  const archive = Buffer.concat(pieces)
  // The gzip header names the operating system that packed (RFC 1952, 2.3.1): 255 is "unknown".
  archive[9] = 255
  return { archive, files: names.length, digest: `sha256:${createHash('sha256').update(archive).digest('hex')}` }
}

/** tar-stream is not a stream of Node.js itself, but can be iterated like one. */
async function* piecesOf(tar: Pack): AsyncGenerator<Uint8Array> {
  for await (const piece of tar) yield piece as Uint8Array
}

async function readIgnoreFile(directory: string, name: string): Promise<string> {
  try {
    return await readFile(join(directory, name), 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return ''
    throw folderError(directory, error)
  }
}

/** Names of files and links, relative to the folder and with `/`. */
async function listFiles(root: string, folder: string, ignored: IgnoreList, signal: AbortSignal | undefined): Promise<string[]> {
  signal?.throwIfAborted()
  const entries = await readdir(join(root, folder), { withFileTypes: true }).catch((error: unknown) => {
    throw folderError(join(root, folder), error)
  })
  const names: string[] = []
  for (const entry of entries) {
    const name = posix.join(folder, entry.name)
    if (ignored.ignores(name, entry.isDirectory())) continue
    if (entry.isDirectory()) names.push(...(await listFiles(root, name, ignored, signal)))
    else if (entry.isFile() || entry.isSymbolicLink()) names.push(name)
    else throw unsafe(name, 'is neither a file nor a link')
  }
  return names
}

async function addFiles(tar: Pack, root: string, names: string[], signal: AbortSignal | undefined): Promise<void> {
  let unpackedBytes = 0
  for (const name of names) {
    signal?.throwIfAborted()
    const path = join(root, name)
    const target = await readlink(path).catch(() => null)
    if (target !== null) {
      await addEntry(tar, { name, type: 'symlink', linkname: insideLink(name, target) })
      continue
    }
    const executable = ((await stat(path)).mode & 0o100) !== 0
    const content = await readFile(path)
    unpackedBytes += content.length
    if (unpackedBytes > maxUnpackedBytes) throw new ThawError('archive_too_large', `${root} holds more than 1 GiB.`)
    await addEntry(tar, { name, mode: executable ? 0o755 : 0o644 }, content)
  }
  tar.finalize()
}

function addEntry(tar: Pack, header: Parameters<Pack['entry']>[0], content: Buffer = Buffer.alloc(0)): Promise<void> {
  return new Promise((resolve, reject) => {
    const fixed = { ...header, mtime: new Date(0), uid: 0, gid: 0, uname: '', gname: '' }
    tar.entry(fixed, content, (error) => (error ? reject(error) : resolve()))
  })
}

function insideLink(name: string, target: string): string {
  const slashed = target.replaceAll('\\', '/')
  const resolved = posix.normalize(posix.join(posix.dirname(name), slashed))
  if (posix.isAbsolute(slashed) || resolved === '..' || resolved.startsWith('../'))
    throw unsafe(name, `links to ${target}, outside the folder`)
  return slashed
}

function unsafe(name: string, why: string): ThawError {
  return new ThawError('archive_unsafe', `${name} ${why}.`, { fix: 'Replace it with a plain file, or name it in .thawignore.' })
}

function folderError(path: string, error: unknown): ThawError {
  const reason = error instanceof Error ? error.message : String(error)
  return new ThawError('archive_invalid', `${path} cannot be read: ${reason}`, { fix: 'Name a folder that exists.', cause: error })
}
