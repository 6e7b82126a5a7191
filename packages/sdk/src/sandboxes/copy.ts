import { createReadStream, createWriteStream, type ReadStream, type Stats } from 'node:fs'
import { chmod, constants, lstat, mkdir, open, opendir, readlink, rm, stat, symlink, utimes } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type FileItem, ThawError } from '@thaw/protocol'
import { extract, type Pack, pack, type Header as TarHeader } from 'tar-stream'
import type { CopyProgress } from './files.ts'

// Node.js only: the rest of the SDK runs without a file system.

/** Counts what is copied, and tells. */
class Meter {
  readonly #progress: CopyProgress = { files: 0, bytes: 0 }
  readonly #listener: ((progress: CopyProgress) => void) | undefined

  constructor(listener: ((progress: CopyProgress) => void) | undefined) {
    this.#listener = listener
  }

  file(): void {
    this.#progress.files++
    this.#listener?.({ ...this.#progress })
  }

  async *bytes(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
    for await (const piece of pieces) {
      this.#progress.bytes += piece.length
      this.#listener?.({ ...this.#progress })
      yield piece
    }
  }
}

export interface CopyOptions {
  signal: AbortSignal | undefined
  onProgress: ((progress: CopyProgress) => void) | undefined
}

export async function isFolder(path: string): Promise<boolean> {
  return (await stat(path).catch((cause: unknown) => failed(path, cause))).isDirectory()
}

/** A local file, opened at once, so that what is wrong with it is known before anything is sent. The caller destroys it. */
export async function openLocal(path: string): Promise<ReadStream> {
  try {
    const file = await open(path)
    const info = await file.stat()
    if (!info.isDirectory()) return file.createReadStream()
    await file.close()
  } catch (cause) {
    return failed(path, cause)
  }
  throw new ThawError('file_invalid', `${path} is a folder.`, { fix: 'Name a file.' })
}

/**
 * A local file or folder as a tar archive that is made while it is read: modes, times and links are kept, owners are not. A
 * file is the archive's only entry, under `name`.
 */
export function packLocal(path: string, name: string, options: CopyOptions): AsyncGenerator<Uint8Array> {
  const tar = pack()
  // A failure reaches the reader; without a listener of its own it would also end the process.
  tar.on('error', () => undefined)
  const meter = new Meter(options.onProgress)
  const add = async () => {
    const info = await stat(path)
    if (info.isDirectory()) await packFolder(tar, path, '', meter, options.signal)
    else await packFile(tar, path, name, info, meter)
    tar.finalize()
  }
  // A stream that is destroyed before anybody reads it forgets why.
  const added = add()
  added.catch(() => tar.destroy())
  return packed(tar, added, path, options.signal)
}

async function* packed(tar: Pack, added: Promise<void>, path: string, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
  try {
    for await (const piece of tar) yield piece as Uint8Array
    await added
  } catch (cause) {
    signal?.throwIfAborted()
    await added.catch((error: unknown) => failed(path, error))
    failed(path, cause)
  } finally {
    tar.destroy()
  }
}

async function packFolder(tar: Pack, root: string, folder: string, meter: Meter, signal: AbortSignal | undefined): Promise<void> {
  for await (const entry of await opendir(join(root, folder))) {
    signal?.throwIfAborted()
    const name = folder === '' ? entry.name : `${folder}/${entry.name}`
    const path = join(root, name)
    const info = await lstat(path)
    if (info.isDirectory()) {
      await entryOf(tar, { ...headerOf(name, info), type: 'directory', size: 0 })
      await packFolder(tar, root, name, meter, signal)
    } else if (info.isSymbolicLink()) {
      await entryOf(tar, { ...headerOf(name, info), type: 'symlink', size: 0, linkname: await readlink(path) })
    } else {
      await packFile(tar, path, name, info, meter)
    }
  }
}

async function packFile(tar: Pack, path: string, name: string, info: Stats, meter: Meter): Promise<void> {
  if (!info.isFile()) {
    throw new ThawError('file_invalid', `${path} is neither a file, a folder nor a link.`, {
      fix: 'Leave it out: such files exist only where they are.',
    })
  }
  const header = { ...headerOf(name, info), type: 'file' as const, size: info.size }
  if (info.size === 0) await entryOf(tar, header)
  else {
    // A file that grows meanwhile keeps the size that its header says; one that shrinks is an error of the archive.
    const source = createReadStream(path, { end: info.size - 1 })
    await pipeline(meter.bytes(source), tar.entry(header) as unknown as NodeJS.WritableStream)
  }
  meter.file()
}

function entryOf(tar: Pack, header: Partial<TarHeader> & { name: string }): Promise<void> {
  return new Promise((done, fail) => {
    tar.entry(header, Buffer.alloc(0), (error) => (error ? fail(error) : done()))
  })
}

function headerOf(name: string, info: Stats) {
  return { name, mode: info.mode & 0o777, mtime: info.mtime, uid: 0, gid: 0, uname: '', gname: '' }
}

/** Writes one file, with its mode and time. */
export async function writeLocal(path: string, item: FileItem, pieces: AsyncIterable<Uint8Array>, options: CopyOptions): Promise<void> {
  const meter = new Meter(options.onProgress)
  await local(path, async () => {
    await mkdir(dirname(resolve(path)), { recursive: true })
    await pipeline(Readable.from(meter.bytes(pieces)), createWriteStream(path))
    await keep(path, item.mode, item.modified_at === null ? undefined : new Date(item.modified_at))
  })
  meter.file()
}

/**
 * Unpacks an archive into a local folder. It comes from a sandbox, which nobody trusts: names that lead out of the folder, links
 * of the archive that other entries would go through, and devices are refused. Links are made as they are, last of all.
 */
export async function unpackLocal(folder: string, pieces: AsyncIterable<Uint8Array>, options: CopyOptions): Promise<void> {
  const meter = new Meter(options.onProgress)
  const root = resolve(folder)
  await local(root, () => mkdir(root, { recursive: true }))
  const links: TarHeader[] = []
  const folders: TarHeader[] = []
  const checked = new Set<string>([root])
  const tar = extract()
  const fed = pipeline(Readable.from(meter.bytes(pieces)), tar as unknown as NodeJS.WritableStream)
  fed.catch(() => undefined)
  try {
    for await (const entry of tar) {
      options.signal?.throwIfAborted()
      const header = entry.header
      const path = placeOf(root, header.name)
      if (header.type === 'symlink') links.push(header)
      else if (header.type === 'directory') {
        await folderAt(root, path, checked)
        folders.push(header)
      } else if (header.type === 'file') {
        await folderAt(root, dirname(path), checked)
        await local(path, () => writeEntry(path, header, readable(entry as AsyncIterable<Uint8Array>)))
        meter.file()
      } else throw unsafe(header.name, `is of the type ${header.type}`)
      entry.resume()
    }
    await fed
  } catch (error) {
    tar.destroy()
    await fed.catch((cause: unknown) => {
      if (cause instanceof ThawError) throw cause
    })
    throw damaged(error)
  }
  for (const { name, linkname } of links) {
    const path = placeOf(root, name)
    await folderAt(root, dirname(path), checked)
    await local(path, async () => {
      const info = await lstat(path).catch(() => null)
      if (info?.isDirectory()) throw unsafe(path, 'is a folder and cannot become a link')
      await rm(path, { force: true })
      await symlink(linkname ?? '', path)
    })
  }
  // Deepest first: modes may forbid writing, and writing changes times.
  for (const { name, mode, mtime } of folders.reverse()) {
    const path = placeOf(root, name)
    await local(path, () => keep(path, mode, mtime))
  }
}

/** What cannot be read of an archive is no error of this machine's file system. */
async function* readable(pieces: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  try {
    yield* pieces
  } catch (error) {
    throw damaged(error)
  }
}

function damaged(cause: unknown): ThawError {
  if (cause instanceof ThawError) return cause
  return new ThawError('unreachable', `The archive of the sandbox cannot be read: ${text(cause)}.`, {
    fix: 'Try again; the log of the server says why the archive ended early.',
    cause,
  })
}

function placeOf(root: string, name: string): string {
  const path = join(root, name)
  if (name.includes('\0') || (path !== root && !path.startsWith(root.endsWith('/') ? root : `${root}/`)))
    throw unsafe(name, 'leads out of the folder')
  return path
}

/** Makes a folder and those above it, and makes sure that none of them is a link. */
async function folderAt(root: string, path: string, checked: Set<string>): Promise<void> {
  if (checked.has(path) || path === root) return
  await folderAt(root, dirname(path), checked)
  await local(path, async () => {
    const info = await lstat(path).catch(() => null)
    if (info === null) await mkdir(path)
    else if (info.isSymbolicLink()) throw unsafe(path, 'is a link to somewhere else')
    else if (!info.isDirectory()) throw unsafe(path, 'is a file on this machine and a folder in the sandbox')
  })
  checked.add(path.replace(/\/$/, ''))
}

async function writeEntry(path: string, { mode, mtime }: TarHeader, pieces: AsyncIterable<Uint8Array>): Promise<void> {
  const info = await lstat(path).catch(() => null)
  if (info?.isDirectory()) throw unsafe(path, 'is a folder on this machine and a file in the sandbox')
  if (info !== null) await rm(path)
  // Never through a link that somebody puts there meanwhile.
  const file = await open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
  try {
    for await (const piece of pieces) await file.writeFile(piece)
  } finally {
    await file.close()
  }
  await keep(path, mode, mtime)
}

/** Without the bits that would give away the rights of the user. */
async function keep(path: string, mode: number | undefined, mtime: Date | undefined): Promise<void> {
  if (mode !== undefined && mode !== 0) await chmod(path, mode & 0o777)
  if (mtime !== undefined) await utimes(path, mtime, mtime)
}

async function local<Result>(path: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work()
  } catch (cause) {
    return failed(path, cause)
  }
}

/** An error of this machine's file system. */
function failed(path: string, cause: unknown): never {
  if (cause instanceof ThawError) throw cause
  const code = (cause as NodeJS.ErrnoException).code
  if (code === 'ENOENT')
    throw new ThawError('file_not_found', `There is no ${path} on this machine.`, { fix: 'Look whether the path is right.', cause })
  if (code === 'EACCES' || code === 'EPERM')
    throw new ThawError('file_forbidden', `${path} may not be used on this machine: ${text(cause)}.`, { cause })
  throw new ThawError('file_invalid', `${path} cannot be copied: ${text(cause)}.`, { cause })
}

function unsafe(name: string, why: string): ThawError {
  return new ThawError('archive_unsafe', `${name} ${why}.`, {
    fix: 'Copy into an empty folder, and look at what the sandbox holds at this path.',
  })
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** The last part of a path, on this machine. */
export function localName(path: string): string {
  return basename(resolve(path))
}
