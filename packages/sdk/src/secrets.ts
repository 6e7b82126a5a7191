import type { SecretItem } from '@thaw/protocol'
import type { CallOptions } from './functions.ts'
import { type Http, isOk, itemOf, pageOf } from './http.ts'
import { type PageQuery, Pages } from './page.ts'

/** Values go in and never come out: functions get them as variables or files, see docs/secrets.md. */
export class Secrets {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Throws `secret_exists` when there is one of this name. */
  async create(name: string, value: string, options: CallOptions = {}): Promise<SecretItem> {
    return itemOf<SecretItem>(await this.#http.json({ method: 'POST', path: '/v1/secrets', json: { name, value }, signal: options.signal }))
  }

  /** Gives a secret another value, which instances that start from then on get. Throws `secret_not_found` when there is none. */
  async set(name: string, value: string, options: CallOptions = {}): Promise<SecretItem> {
    return itemOf<SecretItem>(await this.#http.json({ method: 'PUT', path: pathOf(name), json: { value }, signal: options.signal }))
  }

  /** Ordered by name. */
  list(query: PageQuery = {}): Pages<SecretItem> {
    return new Pages<SecretItem>(
      async () => pageOf<SecretItem>(await this.#http.json({ method: 'GET', path: '/v1/secrets', signal: query.signal })),
      query.cursor,
    )
  }

  async get(name: string, options: CallOptions = {}): Promise<SecretItem> {
    return itemOf<SecretItem>(await this.#http.json({ method: 'GET', path: pathOf(name), signal: options.signal }))
  }

  /** Throws `secret_in_use` while a function is given it. */
  async delete(name: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: pathOf(name), signal: options.signal }, isOk)
  }
}

function pathOf(name: string): string {
  return `/v1/secrets/${encodeURIComponent(name)}`
}
