import { type ImageItem, type pruneResultSchema, ThawError } from '@thaw/protocol'
import { jsonLinesOf, linesOf, piecesOf, textOf } from './bytes.ts'
import { brokenConnection, errorOfBody } from './failures.ts'
import type { CallOptions } from './functions.ts'
import { type Http, type HttpRequest, isOk, itemOf, pageOf } from './http.ts'
import { packBuildContext } from './pack.ts'
import { type PageQuery, Pages } from './page.ts'

export interface ImageCreateOptions extends CallOptions {
  /** Called with each line that building or pulling reports. */
  onProgress?: ((line: string) => void) | undefined
}

export interface ImageBuildOptions extends ImageCreateOptions {
  /** Path of the Dockerfile in the folder. */
  dockerfile?: string | undefined
}

export type PruneResult = ReturnType<(typeof pruneResultSchema)['parse']>

interface ImageLine {
  progress?: string
  item?: ImageItem
  error?: unknown
}

export class Images {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  list(query: PageQuery = {}): Pages<ImageItem> {
    return new Pages<ImageItem>(
      async (cursor) =>
        pageOf<ImageItem>(
          await this.#http.json({ method: 'GET', path: '/v1/images', query: { limit: query.limit, cursor }, signal: query.signal }),
        ),
      query.cursor,
    )
  }

  /** Builds a runtime image (`python`, `node`, `go`) or pulls an OCI reference. Takes as long as that takes. */
  async create(ref: string, options: ImageCreateOptions = {}): Promise<ImageItem> {
    const request = {
      method: 'POST',
      path: '/v1/images',
      query: { progress: 1 },
      json: { ref },
      signal: options.signal,
      patient: true,
    } as const
    return this.#made(request, options)
  }

  /**
   * Builds an image from a Dockerfile, by the server's Docker engine, for use with any driver. `source`: a folder, packed
   * without what its .dockerignore names, or a tar or tar.gz of it. Throws `build_failed` with the end of the log in details.
   */
  async build(ref: string, source: string | Uint8Array, options: ImageBuildOptions = {}): Promise<ImageItem> {
    const archive = typeof source === 'string' ? (await packBuildContext(source, { signal: options.signal })).archive : source
    const request = {
      method: 'POST',
      path: '/v1/images/build',
      query: { ref, dockerfile: options.dockerfile, progress: 1 },
      headers: { 'content-type': 'application/octet-stream' },
      body: archive as Uint8Array<ArrayBuffer>,
      signal: options.signal,
      patient: true,
    } as const
    return this.#made(request, options)
  }

  /** What became of an image that is being made. */
  async #made(request: HttpRequest, options: ImageCreateOptions): Promise<ImageItem> {
    const response = await this.#http.send(request, async (answer) => answer)
    const broken = (error: unknown) => {
      options.signal?.throwIfAborted()
      return brokenConnection(this.#http.url, error)
    }
    for await (const line of jsonLinesOf<ImageLine>(linesOf(textOf(piecesOf(response.body, broken))))) {
      if (line.progress !== undefined) options.onProgress?.(line.progress)
      if (line.item !== undefined) return line.item
      const error = errorOfBody(line, response.headers)
      if (error !== null) throw error
    }
    throw new ThawError('unreachable', `The answer of ${this.#http.url} ended without saying what became of the image.`)
  }

  /** Removes an image from the disk. Throws `image_in_use` while a function uses it. */
  async delete(ref: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: '/v1/images', query: { ref }, signal: options.signal }, isOk)
  }

  /** Removes what no function uses. */
  async prune(options: CallOptions = {}): Promise<PruneResult> {
    return itemOf<PruneResult>(await this.#http.json({ method: 'POST', path: '/v1/images/prune', signal: options.signal, patient: true }))
  }
}
