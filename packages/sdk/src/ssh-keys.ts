import type { CreatedSshKeyItem, SshKeyCreate, SshKeyItem, SshKeyRotate } from '@thaw/protocol'
import type { CallOptions } from './functions.ts'
import { type Http, isOk, itemOf, pageOf } from './http.ts'
import { type PageQuery, Pages } from './page.ts'

/** Keys that log in to sandboxes over SSH, see docs/ssh.md. */
export class SshKeys {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Registers a public key; with `generate: true` a pair is made, and `private_key` is in this answer and never again. */
  async create(input: SshKeyCreate, options: CallOptions = {}): Promise<CreatedSshKeyItem> {
    return itemOf<CreatedSshKeyItem>(await this.#http.json({ method: 'POST', path: '/v1/ssh-keys', json: input, signal: options.signal }))
  }

  async get(id: string, options: CallOptions = {}): Promise<SshKeyItem> {
    return itemOf<SshKeyItem>(await this.#http.json({ method: 'GET', path: pathOf(id), signal: options.signal }))
  }

  /** Oldest first. */
  list(query: PageQuery = {}): Pages<SshKeyItem> {
    return new Pages<SshKeyItem>(
      async () => pageOf<SshKeyItem>(await this.#http.json({ method: 'GET', path: '/v1/ssh-keys', signal: query.signal })),
      query.cursor,
    )
  }

  /** Puts another key in the place of this one, which stops: what is open with it is closed. */
  async rotate(id: string, input: SshKeyRotate, options: CallOptions = {}): Promise<CreatedSshKeyItem> {
    const call = { method: 'POST' as const, path: `${pathOf(id)}/rotate`, json: input, signal: options.signal }
    return itemOf<CreatedSshKeyItem>(await this.#http.json(call))
  }

  /** Revokes a key: it opens nothing from then on, and what is open with it is closed. */
  async delete(id: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: pathOf(id), signal: options.signal }, isOk)
  }
}

function pathOf(id: string): string {
  return `/v1/ssh-keys/${encodeURIComponent(id)}`
}
