export interface Page<Item> {
  items: Item[]
  /** Cursor of the next page, null on the last one. */
  next: string | null
}

export interface PageQuery {
  /** Items per page, 1 to 1000. Default 100. */
  limit?: number | undefined
  /** Where to begin: `next` of another page. */
  cursor?: string | undefined
  signal?: AbortSignal | undefined
}

/**
 * A list that the server gives page by page.
 *
 *     for await (const item of thaw.functions.list()) …
 *     const { items, next } = await thaw.functions.list({ limit: 20 }).page()
 */
export class Pages<Item> implements AsyncIterable<Item> {
  readonly #load: (cursor: string | undefined) => Promise<Page<Item>>
  readonly #start: string | undefined

  constructor(load: (cursor: string | undefined) => Promise<Page<Item>>, start: string | undefined) {
    this.#load = load
    this.#start = start
  }

  /** One page: the first, or the one that `cursor` names. */
  page(cursor?: string): Promise<Page<Item>> {
    return this.#load(cursor ?? this.#start)
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Item> {
    let cursor = this.#start
    for (;;) {
      const page = await this.#load(cursor)
      yield* page.items
      if (page.next === null) return
      cursor = page.next
    }
  }

  /** Every item of every page. */
  async all(): Promise<Item[]> {
    const items: Item[] = []
    for await (const item of this) items.push(item)
    return items
  }
}
