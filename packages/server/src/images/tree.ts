import { constants } from 'node:fs'
import { chmod, lchown, link, lutimes, mkdir, open, rm, symlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { ThawError } from '@thaw/protocol'
import { extract, type Header } from 'tar-stream'
import { shiftId } from './idshift.ts'

/** What is known to lie at a path of the tree. */
interface Node {
  kind: 'directory' | 'file' | 'symlink'
  /** Of a symlink, as it is written. */
  target: string
  /** The layer that put it there. */
  layer: number
  children: Map<string, Node>
}

export interface TreeLimits {
  /** Bytes of file content, all layers together. */
  maxBytes: number
  maxEntries: number
}

export interface TreeSize {
  bytes: number
  entries: number
}

/** Containers get their own /dev; nothing else belongs into an image. */
const skippedTypes = new Set<string>(['block-device', 'character-device', 'fifo'])

const maxLinks = 40
const maxPathBytes = 4096

/** Folders that every container mounts over, and folders of ours. As links they could lead a mount elsewhere. */
const mountPoints = ['proc', 'sys', 'dev', 'tmp', 'run', 'etc', 'function', 'thaw', 'thaw/runtime', 'thaw/run']
/** Files that drivers mount their own over. */
const mountFiles = ['etc/resolv.conf', 'etc/hosts', 'etc/hostname']

/**
 * Unpacks tar layers into an empty folder as the root file system of an image.
 *
 * The whole tree is kept in memory, and every path is resolved there, links included, before the disk is touched: what
 * is created lies below the folder whatever a layer claims, since nobody else writes there. Owners are shifted
 * (`shiftId`); set-uid, set-gid and extended attributes are dropped, and so are devices, FIFOs and sockets. Layers
 * replace and, by whiteouts (OCI image specification, layer.md), remove what lower ones have.
 *
 * Errors: `image_unresolvable` for content that is not allowed or too large, else what the disk says.
 */
export class Tree {
  readonly #root: string
  readonly #limits: TreeLimits
  readonly #top: Node = directory(0)
  #layer = 0
  #bytes = 0
  #entries = 0

  constructor(root: string, limits: TreeLimits) {
    this.#root = root
    this.#limits = limits
  }

  get size(): TreeSize {
    return { bytes: this.#bytes, entries: this.#entries }
  }

  /** Unpacks one layer, an uncompressed tar stream, over those before it. */
  async addLayer(tar: Readable, signal?: AbortSignal): Promise<void> {
    this.#layer++
    // Not every image has an entry for its root.
    if (this.#layer === 1) await this.#setAttributes(this.#root, { mode: 0o755, uid: 0, gid: 0 })
    const entries = extract()
    const failed = new Promise<never>((_, reject) => {
      tar.once('error', (error) => {
        entries.destroy(error)
        reject(error)
      })
    })
    failed.catch(() => {})
    tar.pipe(entries as unknown as NodeJS.WritableStream)
    try {
      for await (const entry of entries) {
        signal?.throwIfAborted()
        await this.#addEntry(entry.header, entry as unknown as AsyncIterable<Buffer>)
        entry.resume()
      }
    } catch (error) {
      tar.destroy()
      // The disk names the system call that failed; everything else is the fault of the layer.
      if (error instanceof ThawError || signal?.aborted || (error as { syscall?: unknown }).syscall !== undefined) throw error
      throw new ThawError('image_unresolvable', `A layer of the image cannot be read: ${(error as Error).message}`, { cause: error })
    }
    if (tar.errored) await failed
  }

  /** Adds what containers mount over where it is missing; refuses an image where something else lies there. */
  async addMountPoints(): Promise<void> {
    for (const path of mountPoints) {
      const found = this.#find(path.split('/'))
      if (found === undefined) await this.#makeDirectories(path.split('/'))
      else if (found.kind !== 'directory')
        throw refused(`/${path} of the image is not a folder but a ${found.kind}`, 'Use an image in which it is an ordinary folder.')
    }
    for (const path of mountFiles) {
      const found = this.#find(path.split('/'))
      if (found?.kind === 'file') continue
      if (found !== undefined) await this.#remove(path.split('/'))
      await this.#writeFile(path.split('/'), { mode: 0o644, uid: 0, gid: 0, mtime: new Date(0) }, [])
    }
  }

  /** The path inside, without links, of an executable file, or null; `names` are tried in each folder of `searchPath`. */
  findProgram(names: readonly string[], searchPath: readonly string[]): string | null {
    for (const folder of searchPath) {
      for (const name of names) {
        const path = this.#tryResolve([...folder.split('/').filter(Boolean), name])
        if (path !== null && this.#find(path)?.kind === 'file') return `${folder}/${name}`
      }
    }
    return null
  }

  async #addEntry(header: Header, content: AsyncIterable<Buffer>): Promise<void> {
    if (++this.#entries > this.#limits.maxEntries) throw refused(`The image has more than ${this.#limits.maxEntries} files`)
    const parts = splitPath(header.name)
    const name = parts.at(-1)
    if (name === undefined) {
      if (header.type === 'directory') await this.#setAttributes(this.#root, header)
      return
    }
    const parent = await this.#resolveFolder(parts.slice(0, -1), header.name)
    if (name.startsWith('.wh.')) return this.#whiteout(parent, name)

    const path = [...parent, name]
    const existing = this.#find(path)
    if (header.type === 'directory') {
      if (existing !== undefined && existing.kind !== 'directory') await this.#remove(path)
      await this.#makeDirectories(path)
      await this.#setAttributes(this.#host(path), header)
      return
    }
    if (existing !== undefined) await this.#remove(path)
    if (header.type === 'file' || header.type === 'contiguous-file') return this.#writeFile(path, header, content)
    if (header.type === 'symlink') return this.#makeSymlink(path, header)
    if (header.type === 'link') return this.#makeLink(path, header)
    if (!skippedTypes.has(header.type)) throw refused(`${header.name} is of a kind that is not supported`)
  }

  async #whiteout(parent: string[], name: string): Promise<void> {
    if (name !== '.wh..wh..opq') {
      const path = [...parent, name.slice('.wh.'.length)]
      const hidden = this.#find(path)
      if (hidden !== undefined && hidden.layer < this.#layer) await this.#remove(path)
      return
    }
    const folder = this.#find(parent)
    if (folder !== undefined) await this.#removeLower(folder, parent)
  }

  /** Removes from a folder what lower layers put there. */
  async #removeLower(folder: Node, path: string[]): Promise<void> {
    for (const [name, node] of [...folder.children]) {
      const child = [...path, name]
      if (node.layer < this.#layer) await this.#remove(child)
      else if (node.kind === 'directory') await this.#removeLower(node, child)
    }
  }

  async #writeFile(
    path: string[],
    header: Pick<Header, 'mode' | 'uid' | 'gid' | 'mtime'>,
    content: AsyncIterable<Buffer> | Buffer[],
  ): Promise<void> {
    const file = await open(this.#host(path), constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
    try {
      for await (const bytes of content) {
        this.#bytes += bytes.length
        if (this.#bytes > this.#limits.maxBytes) throw tooLarge(this.#limits.maxBytes)
        await file.write(bytes)
      }
      await file.chown(shiftId(header.uid), shiftId(header.gid))
      await file.chmod(header.mode & 0o1777)
      // Compiled Python files are valid for the time of their source.
      await file.utimes(header.mtime, header.mtime)
    } finally {
      await file.close()
    }
    this.#put(path, { kind: 'file', target: '', layer: this.#layer, children: new Map() })
  }

  async #makeSymlink(path: string[], header: Header): Promise<void> {
    const target = header.linkname ?? ''
    if (target === '' || target.includes('\0') || Buffer.byteLength(target) >= maxPathBytes)
      throw refused(`${header.name}: not a usable link`)
    const host = this.#host(path)
    await symlink(target, host)
    await lchown(host, shiftId(header.uid), shiftId(header.gid))
    await lutimes(host, header.mtime, header.mtime)
    this.#put(path, { kind: 'symlink', target, layer: this.#layer, children: new Map() })
  }

  /** A hard link: only to a file of the image itself. */
  async #makeLink(path: string[], header: Header): Promise<void> {
    const parts = splitPath(header.linkname ?? '')
    const name = parts.at(-1)
    const parent = name === undefined ? null : this.#tryResolve(parts.slice(0, -1))
    const source = parent === null || name === undefined ? undefined : this.#find([...parent, name])
    if (parent === null || name === undefined || source === undefined || source.kind === 'directory')
      throw refused(`${header.name} links to ${header.linkname}, which is no file of the image`)
    await link(this.#host([...parent, name]), this.#host(path))
    this.#put(path, { kind: source.kind, target: source.target, layer: this.#layer, children: new Map() })
  }

  async #setAttributes(host: string, header: Pick<Header, 'mode' | 'uid' | 'gid'>): Promise<void> {
    await lchown(host, shiftId(header.uid), shiftId(header.gid))
    await chmod(host, header.mode & 0o1777)
  }

  /** The real folder that a path of a layer means, made where it is missing. */
  async #resolveFolder(parts: string[], entry: string): Promise<string[]> {
    const path = this.#tryResolve(parts)
    if (path === null) throw refused(`${entry}: its folder cannot be resolved inside the image`)
    await this.#makeDirectories(path)
    return path
  }

  async #makeDirectories(path: string[]): Promise<void> {
    let node = this.#top
    for (const [index, name] of path.entries()) {
      let next = node.children.get(name)
      if (next === undefined) {
        const host = this.#host(path.slice(0, index + 1))
        await mkdir(host, { mode: 0o755 })
        await chmod(host, 0o755)
        await lchown(host, shiftId(0), shiftId(0))
        next = directory(this.#layer)
        node.children.set(name, next)
      }
      if (next.kind !== 'directory') throw refused(`/${path.join('/')}: a part of it is a ${next.kind}`)
      next.layer = this.#layer
      node = next
    }
  }

  /** Follows links inside the tree, as a process in a container would; parts that do not exist are kept. Null: a loop. */
  #tryResolve(parts: string[]): string[] | null {
    const todo = [...parts]
    let path: string[] = []
    let links = 0
    for (let name = todo.shift(); name !== undefined; name = todo.shift()) {
      if (name === '' || name === '.') continue
      if (name === '..') {
        path = path.slice(0, -1)
        continue
      }
      const node = this.#find([...path, name])
      if (node?.kind !== 'symlink') {
        path = [...path, name]
        continue
      }
      if (++links > maxLinks) return null
      if (node.target.startsWith('/')) path = []
      todo.unshift(...node.target.split('/'))
    }
    return path
  }

  #find(path: readonly string[]): Node | undefined {
    let node: Node | undefined = this.#top
    for (const name of path) node = node?.children.get(name)
    return node
  }

  #put(path: string[], node: Node): void {
    this.#find(path.slice(0, -1))?.children.set(path.at(-1) ?? '', node)
  }

  async #remove(path: string[]): Promise<void> {
    await rm(this.#host(path), { recursive: true, force: true })
    this.#find(path.slice(0, -1))?.children.delete(path.at(-1) ?? '')
  }

  #host(path: readonly string[]): string {
    return join(this.#root, ...path)
  }
}

function directory(layer: number): Node {
  return { kind: 'directory', target: '', layer, children: new Map() }
}

function splitPath(name: string): string[] {
  if (name.includes('\0') || Buffer.byteLength(name) >= maxPathBytes) throw refused('A layer has a name that is not usable')
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw refused(`${name} leads out of the image`)
  return parts
}

function refused(what: string, fix = 'Rebuild the image; details of the entry are in the message.'): ThawError {
  return new ThawError('image_unresolvable', `The image cannot be used: ${what}.`, { fix })
}

function tooLarge(maxBytes: number): ThawError {
  return new ThawError('image_too_large', `The image cannot be used: unpacked it is larger than ${Math.round(maxBytes / 1024 / 1024)} MiB.`)
}
