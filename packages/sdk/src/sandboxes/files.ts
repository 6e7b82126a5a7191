import { type FileItem, ThawError } from '@thaw/protocol'
import { piecesOf } from '../bytes.ts'
import { brokenConnection } from '../failures.ts'
import type { CallOptions } from '../functions.ts'
import { type Http, type HttpRequest, isOk, itemOf, pageOf } from '../http.ts'
import { errorOf, StreamConnection } from './connection.ts'

export interface FileOptions extends CallOptions {
  /** Whose permissions count and whose home relative paths begin in. Default: root of the sandbox. */
  user?: string | undefined
}

export interface CopyProgress {
  files: number
  bytes: number
}

export interface FileCopyOptions extends FileOptions {
  onProgress?: ((progress: CopyProgress) => void) | undefined
}

/** What a file is written from. */
export type FileContent = string | Uint8Array | ArrayBuffer | Blob | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>

export interface FileEvent {
  /** Begins as the path that is watched. */
  path: string
  event: 'create' | 'write' | 'remove' | 'rename' | 'chmod'
}

/** A folder that is watched. Keeps the sandbox awake until `close`. */
export interface FileWatch extends AsyncDisposable {
  close(): void
  /** Resolves after `close`; rejects when the watch ends by itself, because the folder was removed for example. */
  readonly closed: Promise<void>
}

/** The files of one sandbox. Paths are absolute, or relative to the home of the user. */
export class SandboxFiles {
  readonly #http: Http
  readonly #sandboxId: string

  constructor(http: Http, sandboxId: string) {
    this.#http = http
    this.#sandboxId = sandboxId
  }

  async read(path: string, options: FileOptions = {}): Promise<Uint8Array> {
    return this.#http.send(this.#content('GET', path, options), async (response) => new Uint8Array(await response.arrayBuffer()))
  }

  /** As UTF-8. */
  async readText(path: string, options: FileOptions = {}): Promise<string> {
    return new TextDecoder().decode(await this.read(path, options))
  }

  /** The bytes of a file as they arrive. */
  async *readStream(path: string, options: FileOptions = {}): AsyncGenerator<Uint8Array> {
    yield* this.#pieces(this.#content('GET', path, options))
  }

  /** Writes a file as a whole: nobody sees a half-written one. Parents are made; the mode of an existing file is kept. */
  async write(path: string, content: FileContent, options: FileOptions = {}): Promise<void> {
    await this.#http.send({ ...this.#content('PUT', path, options), body: bodyOf(content) }, isOk)
  }

  /** What lies in a folder, and with `depth` in those below it. */
  async list(path: string, options: FileOptions & { depth?: number | undefined } = {}): Promise<FileItem[]> {
    const { depth, user, signal } = options
    return pageOf<FileItem>(await this.#http.json({ method: 'GET', path: this.#path('/list'), query: { path, depth, user }, signal })).items
  }

  /** Throws `file_not_found` where there is nothing. */
  async stat(path: string, { user, signal }: FileOptions = {}): Promise<FileItem> {
    return itemOf<FileItem>(await this.#http.json({ method: 'GET', path: this.#path('/stat'), query: { path, user }, signal }))
  }

  async exists(path: string, options: FileOptions = {}): Promise<boolean> {
    try {
      await this.stat(path, options)
      return true
    } catch (error) {
      if (error instanceof ThawError && error.code === 'file_not_found') return false
      throw error
    }
  }

  /** Removes a file, or a folder with all that it holds. */
  async remove(path: string, options: FileOptions = {}): Promise<void> {
    await this.#http.send(this.#content('DELETE', path, options), isOk)
  }

  async move(from: string, to: string, { user, signal }: FileOptions = {}): Promise<FileItem> {
    const json = { from, to, user }
    return itemOf<FileItem>(await this.#http.json({ method: 'POST', path: this.#path('/move'), json, signal }))
  }

  /** Makes a folder and its parents. */
  async mkdir(path: string, { user, signal }: FileOptions = {}): Promise<FileItem> {
    return itemOf<FileItem>(await this.#http.json({ method: 'POST', path: this.#path('/mkdir'), json: { path, user }, signal }))
  }

  /**
   * Copies a local file or folder to `path` (Node.js only). A folder is merged into one that is there. Modes, times and links are
   * kept; links that lead out of the folder are refused.
   */
  async upload(localPath: string, path: string, options: FileCopyOptions = {}): Promise<void> {
    const { isFolder, packLocal } = await import('./copy.ts')
    const { signal, onProgress } = options
    const folder = await isFolder(localPath)
    // A file travels as an archive too, which keeps its mode.
    const [parent, name] = folder ? [path, ''] : splitPath(path)
    const body = bodyOf(packLocal(localPath, name, { signal, onProgress }))
    await this.#http.send({ ...this.#content('PUT', parent, options, '/tar'), body }, isOk)
  }

  /**
   * Copies a file or folder to a local path (Node.js only). A folder is merged into one that is there. What the sandbox sends
   * cannot get out of the folder: names that lead elsewhere, devices, and ways through links are refused.
   */
  async download(path: string, localPath: string, options: FileCopyOptions = {}): Promise<void> {
    const { unpackLocal, writeLocal } = await import('./copy.ts')
    const { signal, onProgress } = options
    const item = await this.stat(path, options)
    if (item.type === 'directory')
      await unpackLocal(localPath, this.#pieces(this.#content('GET', path, options, '/tar')), { signal, onProgress })
    else await writeLocal(localPath, item, this.readStream(path, options), { signal, onProgress })
  }

  /** Calls back for what happens in a folder, and with `recursive` below it. Resolves when the watch has begun. */
  async watch(
    path: string,
    options: { recursive?: boolean | undefined; signal?: AbortSignal | undefined },
    callback: (event: FileEvent) => void | Promise<void>,
  ): Promise<FileWatch> {
    const begun = Promise.withResolvers<void>()
    const ended = Promise.withResolvers<void>()
    ended.promise.catch(() => undefined)
    const connection = await StreamConnection.open(
      this.#http,
      this.#sandboxId,
      (message) => {
        if (message.type === 'started') begun.resolve()
        else if (message.type === 'file_event') return callback({ path: message.path, event: message.event })
        else if (message.type === 'error' && message.ended) {
          begun.reject(errorOf(message))
          ended.reject(errorOf(message))
          connection.close()
        }
      },
      options.signal,
    )
    const close = () => connection.close()
    options.signal?.addEventListener('abort', close, { once: true })
    void connection.closed.then((error) => {
      options.signal?.removeEventListener('abort', close)
      begun.reject(options.signal?.aborted ? options.signal.reason : error)
      if (error === null) ended.resolve()
      else ended.reject(error)
    })
    await connection.send({ type: 'watch', id: '1', path, recursive: options.recursive ?? false })
    await begun.promise
    return {
      close,
      closed: ended.promise,
      [Symbol.asyncDispose]: async () => {
        connection.close()
        await connection.closed
      },
    }
  }

  #path(rest: string): string {
    return `/v1/sandboxes/${encodeURIComponent(this.#sandboxId)}/files${rest}`
  }

  #content(method: 'GET' | 'PUT' | 'DELETE', path: string, { user, signal }: FileOptions, rest = ''): HttpRequest {
    return { method, path: this.#path(rest), query: { path, user }, signal, patient: true }
  }

  async *#pieces(request: HttpRequest): AsyncGenerator<Uint8Array> {
    const response = await this.#http.send(request, async (answer) => answer)
    yield* piecesOf(response.body, (error) => {
      request.signal?.throwIfAborted()
      return brokenConnection(this.#http.url, error)
    })
  }
}

/** A request body of pieces that are made while it is sent, or of what is there already. */
export function bodyOf(content: FileContent): NonNullable<RequestInit['body']> {
  if (typeof content === 'object' && Symbol.asyncIterator in content && !(content instanceof ReadableStream)) return streamOf(content)
  return content as NonNullable<RequestInit['body']>
}

function streamOf(pieces: AsyncIterable<Uint8Array>): ReadableStream<Uint8Array> {
  const iterator = pieces[Symbol.asyncIterator]()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const { done, value } = await iterator.next()
      if (done) controller.close()
      else controller.enqueue(value)
    },
    async cancel() {
      await iterator.return?.()
    },
  })
}

/** The folder and the name of a path in a sandbox. */
function splitPath(path: string): [folder: string, name: string] {
  const at = path.lastIndexOf('/')
  const name = path.slice(at + 1)
  if (name === '' || name === '.' || name === '..') {
    throw new ThawError('file_invalid', `${path} names a folder, not a file.`, { fix: 'Name the file that is to be written.' })
  }
  return [at < 0 ? '.' : path.slice(0, at) || '/', name]
}
