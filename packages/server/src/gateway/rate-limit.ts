import { isIPv6 } from 'node:net'
import { ThawError } from '@thaw/protocol'

export interface RateLimitOptions {
  /** null: 1000 for each key and each address that has to show one, none where no keys are needed. 0: none. */
  requestsPerSecond: number | null
  /** Most requests at once, after a pause. null: those of two seconds. */
  requestBurst: number | null
}

/** Tokens at a moment; they grow back with time and are counted again when somebody asks. */
interface Bucket {
  tokens: number
  at: number
}

const defaultPerSecond = 1000
/** Whoever has more addresses than this gets some requests more: the oldest bucket goes, and comes back full. */
const maxBuckets = 10_000

/** A token bucket for each key or address. In memory, bounded, and counted without timers. */
export class RateLimit {
  readonly #options: RateLimitOptions
  readonly #buckets = new Map<string, Bucket>()

  constructor(options: RateLimitOptions) {
    this.#options = options
  }

  /** Takes a token of `who`. The error to refuse the request with when there is none. `keyed`: requests need a key here. */
  take(who: string, keyed: boolean, now: number = performance.now()): ThawError | null {
    const perSecond = this.#options.requestsPerSecond ?? (keyed ? defaultPerSecond : 0)
    if (perSecond === 0) return null
    const burst = this.#options.requestBurst ?? perSecond * 2
    let bucket = this.#buckets.get(who)
    if (bucket === undefined) {
      bucket = { tokens: burst, at: now }
      const oldest = this.#buckets.size >= maxBuckets ? this.#buckets.keys().next().value : undefined
      if (oldest !== undefined) this.#buckets.delete(oldest)
      this.#buckets.set(who, bucket)
    }
    bucket.tokens = Math.min(burst, bucket.tokens + ((now - bucket.at) / 1000) * perSecond)
    bucket.at = now
    if (bucket.tokens >= 1) {
      bucket.tokens--
      return null
    }
    return new ThawError('rate_limited', `More than ${perSecond} requests per second came with this key, or from this address.`, {
      details: { retry_after_s: Math.max(1, Math.ceil((1 - bucket.tokens) / perSecond)) },
    })
  }

  /** How many buckets are kept. */
  get size(): number {
    return this.#buckets.size
  }
}

/** Whose bucket a request without a key takes from. One customer has a whole /64 of IPv6 addresses (RFC 6177). */
export function addressOf(remote: string | undefined): string {
  if (remote === undefined || !isIPv6(remote) || remote.startsWith('::ffff:')) return remote ?? 'unknown'
  const [head = '', tail] = remote.split('::')
  const groups = head.split(':')
  const after = tail === undefined ? [] : tail.split(':')
  while (tail !== undefined && groups.length + after.length < 8) groups.push('0')
  return [...groups, ...after].slice(0, 4).join(':')
}
