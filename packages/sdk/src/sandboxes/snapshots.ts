import type { Fork, Restore, SandboxItem, SnapshotCreate, SnapshotItem } from '@thaw/protocol'
import { piecesOf } from '../bytes.ts'
import { brokenConnection } from '../failures.ts'
import type { CallOptions } from '../functions.ts'
import { type Http, isOk, itemOf, pageOf } from '../http.ts'
import { type PageQuery, Pages } from '../page.ts'
import { bodyOf, type FileContent } from './files.ts'
import { pathOf } from './path.ts'
import { Sandbox } from './sandbox.ts'

export interface SnapshotQuery extends PageQuery {
  /** Those of this sandbox. */
  sandbox?: string | undefined
}

export interface TransferOptions extends CallOptions {
  /** Called with each piece that went over: how many bytes in all so far. */
  onProgress?: ((bytes: number) => void) | undefined
}

export interface ImportOptions extends TransferOptions {
  /** Default: the name that it had where it was exported. */
  name?: string | undefined
}

/** A snapshot that was exported: the path of its file (Node.js only), its bytes, or pieces of them. */
export type SnapshotArchive = Exclude<FileContent, string> | { path: string }

export interface Forked {
  children: Sandbox[]
  /** How long the parent stood still, in milliseconds. */
  frozen_ms: number
}

/** Sandboxes frozen on disk, see docs/snapshots.md. They are taken by `sandbox.snapshot()`. */
export class Snapshots {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Newest first. */
  list(query: SnapshotQuery = {}): Pages<SnapshotItem> {
    const { sandbox, limit, signal } = query
    return new Pages<SnapshotItem>(
      async (cursor) =>
        pageOf<SnapshotItem>(
          await this.#http.json({ method: 'GET', path: '/v1/snapshots', query: { limit, sandbox_id: sandbox, cursor }, signal }),
        ),
      query.cursor,
    )
  }

  async get(id: string, { signal }: CallOptions = {}): Promise<SnapshotItem> {
    return itemOf<SnapshotItem>(await this.#http.json({ method: 'GET', path: snapshotPath(id), signal }))
  }

  /** A new sandbox that goes on where the snapshot was taken. `snapshot_corrupt` and the like say why it cannot. */
  async restore(id: string, own: Restore = {}, { signal }: CallOptions = {}): Promise<Sandbox> {
    const answer = await this.#http.json({ method: 'POST', path: `${snapshotPath(id)}/restore`, json: own, signal, patient: true })
    return new Sandbox(this.#http, itemOf<SandboxItem>(answer))
  }

  /** Sandboxes that came from it go on. */
  async delete(id: string, { signal }: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: snapshotPath(id), signal, patient: true }, isOk)
  }

  /**
   * A snapshot as one file, piece by piece as it is packed. It holds the memory of the sandbox, with every secret in it.
   *
   *     await writeFile('lab.tar.zst', thaw.snapshots.export(id), { mode: 0o600 })
   */
  async *export(id: string, { signal, onProgress }: TransferOptions = {}): AsyncGenerator<Uint8Array> {
    const request = { method: 'GET', path: `${snapshotPath(id)}/export`, signal, patient: true } as const
    const response = await this.#http.send(request, async (answer) => answer)
    const pieces = piecesOf(response.body, (error) => {
      signal?.throwIfAborted()
      return brokenConnection(this.#http.url, error)
    })
    yield* counted(pieces, onProgress)
  }

  /**
   * Takes in a snapshot that was exported, from here or another machine of the same kind. For admins: what goes on in a sandbox
   * of it is decided by whoever made the file. Throws `archive_invalid` for what is no such file, or not all of it.
   *
   *     await there.snapshots.import(here.snapshots.export(id))
   */
  async import(archive: SnapshotArchive, options: ImportOptions = {}): Promise<SnapshotItem> {
    if (!isPath(archive)) return this.#import(archive, options)
    const { openLocal } = await import('./copy.ts')
    const file = await openLocal(archive.path)
    try {
      return await this.#import(file, options)
    } finally {
      file.destroy()
    }
  }

  async #import(content: Exclude<FileContent, string>, { name, signal, onProgress }: ImportOptions): Promise<SnapshotItem> {
    const body = onProgress === undefined ? bodyOf(content) : bodyOf(counted(piecesIn(content), onProgress))
    const headers = { 'content-type': 'application/zstd' }
    const request = { method: 'POST', path: '/v1/snapshots/import', query: { name }, headers, body, signal, patient: true } as const
    return itemOf<SnapshotItem>(await this.#http.json(request))
  }
}

/** A stream of a file has a path as well, but may have been read in part. */
function isPath(archive: SnapshotArchive): archive is { path: string } {
  return 'path' in archive && !(Symbol.asyncIterator in archive)
}

async function* piecesIn(content: Exclude<FileContent, string>): AsyncGenerator<Uint8Array> {
  if (content instanceof Blob) yield* content.stream()
  else if (content instanceof ArrayBuffer) yield new Uint8Array(content)
  else if (content instanceof Uint8Array) yield content
  else yield* content
}

async function* counted(pieces: AsyncIterable<Uint8Array>, onProgress: ((bytes: number) => void) | undefined): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const piece of pieces) {
    bytes += piece.length
    onProgress?.(bytes)
    yield piece
  }
}

export async function takeSnapshot(http: Http, sandboxId: string, how: SnapshotCreate, { signal }: CallOptions): Promise<SnapshotItem> {
  return itemOf<SnapshotItem>(await http.json({ method: 'POST', path: `${pathOf(sandboxId)}/snapshot`, json: how, signal, patient: true }))
}

export async function forkSandbox(http: Http, sandboxId: string, how: Fork, { signal }: CallOptions): Promise<Forked> {
  const answer = await http.json({ method: 'POST', path: `${pathOf(sandboxId)}/fork`, json: how, signal, patient: true })
  const { items, frozen_ms } = answer as { items: SandboxItem[]; frozen_ms: number }
  return { children: items.map((item) => new Sandbox(http, item)), frozen_ms }
}

function snapshotPath(id: string): string {
  return `/v1/snapshots/${encodeURIComponent(id)}`
}
