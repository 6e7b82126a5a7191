import { constants } from 'node:fs'
import { chmod, copyFile, mkdir, open, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'

export interface BundleLimits {
  /** Bytes of the archive as it is sent. */
  maxPackedBytes: number
  /** Bytes of all files in it. */
  maxUnpackedBytes: number
  /** Files, folders and links, also folders that are only named as part of a path. */
  maxEntries: number
}

export interface StagedEntry {
  path: string
  kind: 'directory' | 'file' | 'symlink'
  executable: boolean
  sizeBytes: number
  /** Of a symlink, as it is written. */
  target: string
}

const maxPathBytes = 1024
const maxNameBytes = 255
const maxDepth = 64
const maxTargetBytes = 1024
const maxHops = 40

const setIdBits = 0o6000

/**
 * Collects the entries of an archive in an empty folder, refusing what is not plain content: files and folders with
 * relative paths, and links that stay inside.
 *
 * While entries come in, only folders and regular files are made, and the folder holds no link that a path could
 * follow. Links are made at the end, when all of them are known and checked.
 *
 * Throws `archive_unsafe` and `archive_too_large`, naming the entry. The caller owns the folder and removes it then.
 */
export class Staging {
  readonly #root: string
  readonly #limits: BundleLimits
  readonly #entries = new Map<string, StagedEntry>()
  /** Hard links that are not copied yet, by path. */
  readonly #hardLinks = new Map<string, string>()
  #bytes = 0

  constructor(root: string, limits: BundleLimits) {
    this.#root = root
    this.#limits = limits
  }

  async addDirectory(name: string): Promise<void> {
    const path = checkPath(name)
    // Archivers write the folder itself as "./".
    if (path === '') return
    const existing = this.#entries.get(path)
    if (existing?.kind === 'directory') return
    await this.#addParents(name, path)
    this.#add(name, { path, kind: 'directory', executable: false, sizeBytes: 0, target: '' })
    await mkdir(join(this.#root, path))
  }

  /** `mode` as in stat(2). Reads the content to its end. */
  async addFile(name: string, mode: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    const path = checkPath(name)
    if (path === '') throw unsafe(name, 'has no name')
    if ((mode & setIdBits) !== 0) throw unsafe(name, 'has its set-uid or set-gid bit on')
    await this.#addParents(name, path)
    const entry: StagedEntry = { path, kind: 'file', executable: (mode & 0o111) !== 0, sizeBytes: 0, target: '' }
    this.#add(name, entry)
    const file = await open(join(this.#root, path), constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
    try {
      for await (const bytes of content) {
        this.#count(bytes.length)
        entry.sizeBytes += bytes.length
        await file.write(bytes)
      }
      await file.chmod(entry.executable ? 0o755 : 0o644)
    } finally {
      await file.close()
    }
  }

  async addSymlink(name: string, target: string): Promise<void> {
    const path = checkPath(name)
    if (path === '') throw unsafe(name, 'has no name')
    if (target === '' || target.includes('\0')) throw unsafe(name, 'is a link to nothing')
    if (target.startsWith('/')) throw unsafe(name, `is a link out of the archive, to ${target}`)
    if (Buffer.byteLength(target) > maxTargetBytes) throw tooLarge(`The target of the link ${quote(name)} is too long`)
    await this.#addParents(name, path)
    this.#add(name, { path, kind: 'symlink', executable: false, sizeBytes: 0, target })
  }

  /** A second name of a file of the archive; it becomes a copy, which counts as content. */
  async addHardLink(name: string, target: string): Promise<void> {
    const path = checkPath(name)
    if (path === '') throw unsafe(name, 'has no name')
    await this.#addParents(name, path)
    this.#add(name, { path, kind: 'file', executable: false, sizeBytes: 0, target: '' })
    this.#hardLinks.set(path, checkPath(target, name))
  }

  /** Makes and checks the links, and gives all entries in the order of their paths. */
  async finish(): Promise<StagedEntry[]> {
    for (const [path, target] of [...this.#hardLinks]) await this.#copy(path, target)
    const entries = [...this.#entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1))
    const links = entries.filter((entry) => entry.kind === 'symlink')
    for (const link of links) this.#checkSymlink(link)
    for (const link of links) await symlink(link.target, join(this.#root, link.path))
    for (const { kind, path } of entries) if (kind === 'directory') await chmod(join(this.#root, path), 0o755)
    await chmod(this.#root, 0o755)
    return entries
  }

  get unpackedBytes(): number {
    return this.#bytes
  }

  async #addParents(name: string, path: string): Promise<void> {
    const parts = path.split('/')
    for (let length = 1; length < parts.length; length++) {
      const parent = parts.slice(0, length).join('/')
      const existing = this.#entries.get(parent)
      if (existing?.kind === 'directory') continue
      if (existing !== undefined) throw unsafe(name, `lies below ${parent}, which is a ${existing.kind}, not a folder`)
      this.#add(name, { path: parent, kind: 'directory', executable: false, sizeBytes: 0, target: '' })
      await mkdir(join(this.#root, parent))
    }
  }

  #add(name: string, entry: StagedEntry): void {
    // Programs disagree about which of two entries counts, which hides one of them from whoever reviews the archive.
    if (this.#entries.has(entry.path)) throw unsafe(name, 'is in the archive twice')
    if (this.#entries.size >= this.#limits.maxEntries) throw tooLarge(`The code archive has more than ${this.#limits.maxEntries} entries`)
    this.#entries.set(entry.path, entry)
  }

  #count(bytes: number): void {
    this.#bytes += bytes
    if (this.#bytes > this.#limits.maxUnpackedBytes)
      throw tooLarge(`The code archive holds more than ${this.#limits.maxUnpackedBytes} bytes unpacked`)
  }

  async #copy(path: string, target: string): Promise<void> {
    const source = this.#entries.get(target)
    // Links come after what they link to; one that does not, or that links to itself, links to nothing.
    if (source?.kind !== 'file' || this.#hardLinks.has(target))
      throw unsafe(path, `is a hard link to ${quote(target)}, which is no file of the archive`)
    this.#hardLinks.delete(path)
    const entry = this.#entries.get(path)
    if (entry === undefined) return
    this.#count(source.sizeBytes)
    entry.sizeBytes = source.sizeBytes
    entry.executable = source.executable
    await copyFile(join(this.#root, target), join(this.#root, path), constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
  }

  /** Walks the target as the kernel would, over all other links; at no point may it leave the archive. */
  #checkSymlink(link: StagedEntry): void {
    const path = link.path.split('/').slice(0, -1)
    const todo = link.target.split('/')
    let hops = 1
    for (let name = todo.shift(); name !== undefined; name = todo.shift()) {
      if (name === '' || name === '.') continue
      if (name === '..') {
        if (path.pop() === undefined) throw unsafe(link.path, `is a link out of the archive, to ${link.target}`)
        continue
      }
      path.push(name)
      const found = this.#entries.get(path.join('/'))
      if (found?.kind !== 'symlink') continue
      if (++hops > maxHops) throw unsafe(link.path, 'is a link that leads back to itself')
      path.pop()
      todo.unshift(...found.target.split('/'))
    }
  }
}

/** The path inside the archive without "." parts; '' for the archive itself. */
function checkPath(name: string, entry = name): string {
  if (name.includes('\0')) throw unsafe(entry, 'has a NUL byte in its path')
  if (name.startsWith('/') || /^[A-Za-z]:[/\\]/.test(name)) throw unsafe(entry, 'has an absolute path')
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw unsafe(entry, 'has a path that leads out of the archive')
  if (Buffer.byteLength(name) > maxPathBytes) throw tooLarge(`The path ${quote(entry)} is longer than ${maxPathBytes} bytes`)
  if (parts.length > maxDepth) throw tooLarge(`The path ${quote(entry)} is deeper than ${maxDepth} folders`)
  if (parts.some((part) => Buffer.byteLength(part) > maxNameBytes))
    throw tooLarge(`The path ${quote(entry)} has a name longer than ${maxNameBytes} bytes`)
  return parts.join('/')
}

export function unsafe(entry: string, what: string): ThawError {
  return new ThawError('archive_unsafe', `The entry ${quote(entry)} of the code archive ${what}.`, { details: { entry: shorten(entry) } })
}

export function invalid(what: string, cause?: unknown): ThawError {
  return new ThawError('archive_invalid', `The code archive cannot be read: ${what}.`, { cause })
}

export function tooLarge(what: string): ThawError {
  return new ThawError('archive_too_large', `${what}.`)
}

/** Names come from whoever made the archive: shown without control characters, and not at any length. */
function quote(name: string): string {
  return JSON.stringify(shorten(name))
}

function shorten(name: string): string {
  return name.length > 200 ? `${name.slice(0, 200)}…` : name
}
