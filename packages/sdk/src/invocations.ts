import type { InvocationItem, InvocationStatus, LogEntry } from '@thaw/protocol'
import type { CallOptions } from './functions.ts'
import { type Http, itemOf, pageOf } from './http.ts'
import { type PageQuery, Pages } from './page.ts'

export interface InvocationQuery extends PageQuery {
  function?: string | undefined
  status?: InvocationStatus | undefined
}

export class Invocations {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  async get(id: string, options: CallOptions = {}): Promise<InvocationItem> {
    return itemOf<InvocationItem>(await this.#http.json({ method: 'GET', path: pathOf(id), signal: options.signal }))
  }

  /** Newest first. */
  list(query: InvocationQuery = {}): Pages<InvocationItem> {
    const { signal, cursor: start, ...filter } = query
    return new Pages<InvocationItem>(
      async (cursor) =>
        pageOf<InvocationItem>(await this.#http.json({ method: 'GET', path: '/v1/invocations', query: { ...filter, cursor }, signal })),
      start,
    )
  }

  /** What the code wrote during one invocation, oldest first. */
  async logs(id: string, options: CallOptions = {}): Promise<LogEntry[]> {
    return pageOf<LogEntry>(await this.#http.json({ method: 'GET', path: `${pathOf(id)}/logs`, signal: options.signal })).items
  }

  /** Cancels an invocation that runs. One that has ended stays as it is. */
  async cancel(id: string, options: CallOptions = {}): Promise<InvocationItem> {
    return itemOf<InvocationItem>(await this.#http.json({ method: 'POST', path: `${pathOf(id)}/cancel`, signal: options.signal }))
  }
}

function pathOf(id: string): string {
  return `/v1/invocations/${encodeURIComponent(id)}`
}
