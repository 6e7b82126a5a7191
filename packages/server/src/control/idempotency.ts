import { createHash } from 'node:crypto'
import { ThawError } from '@thaw/protocol'
import type { IdempotencyStore } from '../store/store.ts'
import { type Caller, qualified } from './caller.ts'

export interface Answer {
  status: number
  headers: Record<string, string | string[]>
  body: Buffer
}

/** Larger answers are not kept: it is only known that there was one. */
export const maxKeptAnswerBytes = 1024 * 1024

/**
 * Answers by Idempotency-Key, for a time: a request that comes again gets the answer of the first one, and nothing is done
 * twice. Kept per tenant, and on disk before the first answer goes out. Which requests are running is in memory only: after
 * a crash none is, so that whoever asks again is not told to wait for nobody.
 */
export class Idempotency {
  readonly #store: IdempotencyStore
  readonly #retentionMs: number
  readonly #running = new Set<string>()
  readonly #writing = new Set<Promise<void>>()

  constructor(store: IdempotencyStore, options: { retentionMs: number }) {
    this.#store = store
    this.#retentionMs = options.retentionMs
  }

  /**
   * The first request with this key gets an attempt, which it has to end; one that comes again gets what was kept. Throws
   * `idempotency_in_flight` while the first one is running.
   */
  async begin({ tenant }: Caller, key: string): Promise<Attempt | Kept> {
    const name = qualified(tenant, key)
    if (this.#running.has(name)) throw new ThawError('idempotency_in_flight', undefined, { details: { retry_after_s: 1 } })
    this.#running.add(name)
    let attempt: Attempt | undefined
    try {
      const row = await this.#store.get(tenant, key)
      if (row !== null && row.created_at > Date.now() - this.#retentionMs) {
        const answer = row.body === null ? null : { status: row.status, headers: row.headers, body: Buffer.from(row.body) }
        return new Kept(row.fingerprint, answer)
      }
      attempt = new Attempt(
        (fingerprint, answer) => this.#keep(tenant, key, fingerprint, answer),
        () => this.#running.delete(name),
      )
      return attempt
    } finally {
      if (attempt === undefined) this.#running.delete(name)
    }
  }

  /** Forgets what is too old. Returns how many answers. */
  prune(): Promise<number> {
    return this.#store.prune(Date.now() - this.#retentionMs)
  }

  /** Resolves when what is being written is on disk. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#writing])
  }

  #keep(tenant: string, key: string, fingerprint: string, answer: Answer | null): Promise<void> {
    const { status, headers, body } = answer ?? { status: 0, headers: {}, body: null }
    const written = this.#store
      .put({ tenant, key, fingerprint, status, headers, body, created_at: Date.now() })
      .finally(() => this.#writing.delete(written))
    this.#writing.add(written)
    return written
  }
}

/** The first request with a key. Ends exactly once: by `keep`, or by `release` when there is nothing to keep. */
export class Attempt {
  readonly #write: (fingerprint: string, answer: Answer | null) => Promise<void>
  readonly #end: () => void

  constructor(write: (fingerprint: string, answer: Answer | null) => Promise<void>, end: () => void) {
    this.#write = write
    this.#end = end
  }

  /** Resolves once the answer is on disk; only then may it go out. null, or too large: only that there was one. */
  async keep(fingerprint: string, answer: Answer | null): Promise<void> {
    try {
      await this.#write(fingerprint, answer === null || answer.body.length > maxKeptAnswerBytes ? null : answer)
    } finally {
      this.#end()
    }
  }

  /** Nothing was done, or what was done may be done again: the next request with this key is a first one. */
  release(): void {
    this.#end()
  }
}

/** What an earlier request with this key was answered. */
export class Kept {
  readonly #fingerprint: string
  readonly #answer: Answer | null

  constructor(fingerprint: string, answer: Answer | null) {
    this.#fingerprint = fingerprint
    this.#answer = answer
  }

  /** Throws `idempotency_mismatch` for another request, and `idempotency_answer_too_large` where the answer was not kept. */
  replay(fingerprint: string): Answer {
    if (fingerprint !== this.#fingerprint) throw new ThawError('idempotency_mismatch')
    if (this.#answer === null) throw new ThawError('idempotency_answer_too_large')
    return this.#answer
  }
}

/** A hash of what is asked for. The lengths go in, so that no two lists of parts read the same. */
export function fingerprintOf(...parts: (string | Uint8Array)[]): string {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(`${Buffer.byteLength(part)}:`).update(part)
  return hash.digest('hex')
}
