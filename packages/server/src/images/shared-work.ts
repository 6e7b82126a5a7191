/** What a caller brings to work that several callers may wait for. */
export interface Watcher {
  signal?: AbortSignal | undefined
  onProgress?: ((line: string) => void) | undefined
}

/** All watchers of one piece of work as one. */
export interface Watchers {
  signal: AbortSignal
  onProgress: (line: string) => void
}

interface Running<Result> {
  promise: Promise<Result>
  watchers: Set<Watcher>
  abandon: AbortController
}

/**
 * Work by key, done once for all that ask for it at the same time. A caller that gives up leaves the others their
 * result; when the last one gives up, the work is aborted.
 */
export class SharedWork<Result> {
  readonly #running = new Map<string, Running<Result>>()

  async run(key: string, watcher: Watcher, work: (shared: Watchers) => Promise<Result>): Promise<Result> {
    watcher.signal?.throwIfAborted()
    const running = this.#running.get(key) ?? this.#start(key, work)
    running.watchers.add(watcher)
    const { signal } = watcher
    if (!signal) return running.promise
    const given = Promise.withResolvers<never>()
    const leave = () => {
      running.watchers.delete(watcher)
      given.reject(signal.reason)
      if (running.watchers.size > 0) return
      // Who asks from now on gets new work instead of the one that is being abandoned.
      if (this.#running.get(key) === running) this.#running.delete(key)
      running.abandon.abort(signal.reason)
    }
    signal.addEventListener('abort', leave, { once: true })
    try {
      return await Promise.race([running.promise, given.promise])
    } finally {
      signal.removeEventListener('abort', leave)
    }
  }

  #start(key: string, work: (shared: Watchers) => Promise<Result>): Running<Result> {
    const abandon = new AbortController()
    const watchers = new Set<Watcher>()
    const onProgress = (line: string) => {
      for (const watcher of watchers) watcher.onProgress?.(line)
    }
    const promise = Promise.resolve().then(() => work({ signal: abandon.signal, onProgress }))
    const running: Running<Result> = { promise, watchers, abandon }
    this.#running.set(key, running)
    const end = () => {
      if (this.#running.get(key) === running) this.#running.delete(key)
    }
    promise.then(end, end)
    return running
  }
}
