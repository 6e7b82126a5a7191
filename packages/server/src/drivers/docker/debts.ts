/** How often an engine that was gone is asked to do what was asked of it meanwhile. */
const pauseMs = 1000

/** Sandboxes that could not be destroyed because the engine was gone: whoever asked for it may not ask again. */
export class Debts {
  readonly #destroy: (id: string) => Promise<void>
  readonly #ids = new Set<string>()
  #timer: NodeJS.Timeout | undefined

  constructor(destroy: (id: string) => Promise<void>) {
    this.#destroy = destroy
  }

  add(id: string): void {
    this.#ids.add(id)
    this.#timer ??= setInterval(() => void this.#settle(), pauseMs).unref()
  }

  remove(id: string): void {
    this.#ids.delete(id)
  }

  /** Tries once more, then gives up: the next server finds what is left. */
  async close(): Promise<void> {
    await this.#settle()
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  async #settle(): Promise<void> {
    await Promise.allSettled([...this.#ids].map((id) => this.#destroy(id)))
    if (this.#ids.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}
