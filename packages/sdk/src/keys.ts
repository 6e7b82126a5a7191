import type { CreatedKeyItem, KeyCreate, KeyItem } from '@thaw/protocol'
import type { CallOptions } from './functions.ts'
import { type Http, isOk, itemOf, pageOf } from './http.ts'
import { type PageQuery, Pages } from './page.ts'

/** API keys of the server, see docs/keys.md. Every call needs an admin key, or a server that has none yet. */
export class Keys {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Makes a key. Its `key` is in this answer and never again. */
  async create(input: KeyCreate, options: CallOptions = {}): Promise<CreatedKeyItem> {
    return itemOf<CreatedKeyItem>(await this.#http.json({ method: 'POST', path: '/v1/api-keys', json: input, signal: options.signal }))
  }

  /** Of all tenants, oldest first. */
  list(query: PageQuery = {}): Pages<KeyItem> {
    return new Pages<KeyItem>(
      async () => pageOf<KeyItem>(await this.#http.json({ method: 'GET', path: '/v1/api-keys', signal: query.signal })),
      query.cursor,
    )
  }

  /** Revokes a key: requests with it are refused from then on, and what is open with it is closed. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: `/v1/api-keys/${encodeURIComponent(id)}`, signal: options.signal }, isOk)
  }
}
