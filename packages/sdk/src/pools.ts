import type { PoolItem, PoolUpdate, Prewarm } from '@thaw/protocol'
import type { CallOptions } from './functions.ts'
import { type Http, itemOf, pageOf } from './http.ts'
import { type PageQuery, Pages } from './page.ts'

/** Sandboxes that are started ahead of need, so that the first call of a function does not wait for one. */
export class Pools {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  list(query: PageQuery = {}): Pages<PoolItem> {
    return new Pages<PoolItem>(
      async () => pageOf<PoolItem>(await this.#http.json({ method: 'GET', path: '/v1/pools', signal: query.signal })),
      query.cursor,
    )
  }

  /** Fixes the size of the pool of an image; with `size: null` it follows demand again. The image is made available first. */
  async set(image: string, update: PoolUpdate, options: CallOptions = {}): Promise<PoolItem> {
    const path = `/v1/pools/${encodeURIComponent(image)}`
    return itemOf<PoolItem>(await this.#http.json({ method: 'PUT', path, json: update, signal: options.signal, patient: true }))
  }

  /** Starts sandboxes ahead of a burst. Resolves once `count` of them wait. */
  async prewarm(request: Prewarm, options: CallOptions = {}): Promise<PoolItem> {
    return itemOf<PoolItem>(
      await this.#http.json({ method: 'POST', path: '/v1/prewarm', json: request, signal: options.signal, patient: true }),
    )
  }
}
