import type { ExecuteRequest, ExecuteResult, SandboxCreate, SandboxItem, SandboxState } from '@thaw/protocol'
import type { CallOptions } from '../functions.ts'
import { type Http, isOk, itemOf, pageOf } from '../http.ts'
import { type PageQuery, Pages } from '../page.ts'
import { pathOf } from './path.ts'
import { Sandbox } from './sandbox.ts'

export interface SandboxQuery extends PageQuery {
  /** One or several. Default: all, ended ones included as long as their records are kept. */
  state?: SandboxState | SandboxState[] | undefined
  name?: string | undefined
  image?: string | undefined
  /** Sandboxes that have all of these. */
  metadata?: Record<string, string> | undefined
}

/** Isolated environments that live as long as you want, see docs/sandboxes.md. */
export class Sandboxes {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Resolves when it runs. With the name of one that exists, that one. The first use of an image takes as long as making it does. */
  async create(input: SandboxCreate = {}, options: CallOptions = {}): Promise<Sandbox> {
    const answer = await this.#http.json({ method: 'POST', path: '/v1/sandboxes', json: input, signal: options.signal, patient: true })
    return new Sandbox(this.#http, itemOf<SandboxItem>(answer))
  }

  /** Throws `sandbox_not_found` when there is none of this id or name. */
  async get(idOrName: string, options: CallOptions = {}): Promise<Sandbox> {
    return new Sandbox(
      this.#http,
      itemOf<SandboxItem>(await this.#http.json({ method: 'GET', path: pathOf(idOrName), signal: options.signal })),
    )
  }

  /** Newest first. */
  list(query: SandboxQuery = {}): Pages<Sandbox> {
    const { state, metadata, name, image, limit, signal } = query
    const filter = {
      limit,
      name,
      image,
      state: state === undefined ? undefined : [state].flat().join(','),
      metadata: metadata === undefined ? undefined : new URLSearchParams(metadata).toString(),
    }
    return new Pages<Sandbox>(async (cursor) => {
      const page = pageOf<SandboxItem>(
        await this.#http.json({ method: 'GET', path: '/v1/sandboxes', query: { ...filter, cursor }, signal }),
      )
      return { items: page.items.map((item) => new Sandbox(this.#http, item)), next: page.next }
    }, query.cursor)
  }

  /** Ends a sandbox, from whatever state, and forgets it. */
  async delete(idOrName: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: pathOf(idOrName), signal: options.signal, patient: true }, isOk)
  }
}

/** POST /v1/execute. */
export async function execute(http: Http, request: ExecuteRequest, { signal }: CallOptions): Promise<ExecuteResult> {
  return (await http.json({ method: 'POST', path: '/v1/execute', json: request, signal, patient: true })) as ExecuteResult
}
