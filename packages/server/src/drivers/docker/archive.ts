import { createReadStream, createWriteStream, type Stats } from 'node:fs'
import { lchown, link, lstat, mkdir, readdir, readFile, readlink, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { ThawError } from '@thaw/protocol'
import { extract, type Pack, pack } from 'tar-stream'

/** What is said of an entry. */
interface Entry {
  name: string
  mode: number
  uid: number
  gid: number
  mtime: Date
  type?: 'file' | 'directory' | 'symlink' | 'link'
  linkname?: string
  size?: number
}

export interface PackOptions {
  /** The owner that an entry gets, from the owner that it has on this host. */
  owner: (id: number) => number
  /** Another content for a file, by its path in the archive; undefined: the one that it has. */
  rewrite?: (path: string) => ((text: string) => string) | undefined
}

/** A file or folder of this host as a tar stream, with its content under `name` ('' puts the content of a folder at the top). */
export function packTree(source: string, name: string, options: PackOptions): Readable {
  const tar = pack()
  const links = new Map<string, string>()
  const add = async (path: string, entry: string, found: Stats): Promise<void> => {
    const header: Entry = {
      name: entry === '' ? './' : entry,
      mode: found.mode & 0o7777,
      uid: options.owner(found.uid),
      gid: options.owner(found.gid),
      mtime: found.mtime,
    }
    if (found.isDirectory()) {
      await addEntry(tar, { ...header, type: 'directory' })
      for (const child of await readdir(path)) {
        const below = join(path, child)
        await add(below, entry === '' ? child : `${entry}/${child}`, await lstat(below))
      }
    } else if (found.isSymbolicLink()) await addEntry(tar, { ...header, type: 'symlink', linkname: await readlink(path) })
    else if (found.isFile()) await addFile(path, header, found)
  }
  const addFile = async (path: string, header: Entry, found: Stats): Promise<void> => {
    const inode = `${found.dev}:${found.ino}`
    const first = found.nlink > 1 ? links.get(inode) : undefined
    if (first !== undefined) return addEntry(tar, { ...header, type: 'link', linkname: first })
    if (found.nlink > 1) links.set(inode, header.name)
    const rewrite = options.rewrite?.(header.name)
    if (rewrite !== undefined) return addEntry(tar, header, Buffer.from(rewrite(await readFile(path, 'utf8'))))
    const sink = tar.entry({ ...header, size: found.size })
    await pipeline(createReadStream(path), sink)
  }
  lstat(source)
    .then((found) => add(source, name, found))
    .then(
      () => tar.finalize(),
      (error: Error) => tar.destroy(error),
    )
  return tar as unknown as Readable
}

/**
 * Unpacks what a sandbox wrote into an existing folder of this host. Nothing leads out of it: an entry must lie in a folder
 * that was unpacked before, and links are made last. Set-uid bits, devices and the like
 * are dropped.
 *
 * @param owner of all entries; null: this process.
 */
export async function unpackTree(tar: Readable, target: string, owner: number | null): Promise<void> {
  const folders = new Set([''])
  const files = new Set<string>()
  const links: { path: string; linkname: string }[] = []
  const own = async (path: string) => {
    if (owner !== null) await lchown(join(target, path), owner, owner)
  }
  const entries = extract()
  tar.once('error', (error) => entries.destroy(error))
  tar.pipe(entries as unknown as NodeJS.WritableStream)
  for await (const entry of entries) {
    const { name, type, mode, linkname } = entry.header
    const path = cleanPath(name)
    const above = path.slice(0, Math.max(0, path.lastIndexOf('/')))
    if (path !== '' && !folders.has(above))
      throw new ThawError('driver_failed', `An archive of the sandbox has ${name} where no folder is.`)
    if (type === 'directory') {
      if (path !== '') await mkdir(join(target, path), { mode: (mode & 0o777) | 0o700 })
      await own(path)
      folders.add(path)
    } else if (type === 'file') {
      await pipeline(entry as unknown as Readable, createWriteStream(join(target, path), { flags: 'wx', mode: (mode & 0o777) | 0o600 }))
      await own(path)
      files.add(path)
    } else if (type === 'link' && files.has(cleanPath(linkname ?? '')))
      await link(join(target, cleanPath(linkname ?? '')), join(target, path))
    else if (type === 'symlink') links.push({ path, linkname: linkname ?? '' })
    entry.resume()
  }
  for (const { path, linkname } of links) {
    await symlink(linkname, join(target, path))
    await own(path)
  }
}

function cleanPath(name: string): string {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw new ThawError('driver_failed', `An archive of the sandbox leads out of its folder: ${name}.`)
  return parts.join('/')
}

function addEntry(tar: Pack, header: Entry, content?: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = (error?: Error | null) => (error ? reject(error) : resolve())
    if (content === undefined) tar.entry(header, done)
    else tar.entry({ ...header, size: content.length }, content, done)
  })
}
