import type { ThawError } from '@thaw/protocol'
import type { HttpRequest } from './http.ts'

/** A request that failed, and what is known about sending it again. */
export interface Attempt {
  error: ThawError
  /** The request may have reached the server. */
  sent: boolean
  /** What the server asked for in Retry-After. */
  retryAfterMs: number | undefined
  /** The server answered for good: sending again would change nothing. */
  final: boolean
}

const maxAttempts = 4
const firstPauseMs = 100
const longestPauseMs = 2_000
/** A server that asks for a longer wait is answered by the caller, not by us. */
const longestRetryAfterMs = 10_000

/**
 * Waits and answers true when the request may be sent again, else answers false.
 *
 * A request that never left is always safe to send again. One that may have arrived is only when repeating it changes
 * nothing: GET and DELETE. An invocation or a deploy that may have run is repeated only when it has an
 * Idempotency-Key, which the server knows it by.
 */
export async function pauseBeforeRetry(request: HttpRequest, attempt: Attempt, number: number): Promise<boolean> {
  if (attempt.final || number >= maxAttempts) return false
  const named = request.headers?.['idempotency-key'] !== undefined
  const idempotent = request.method === 'GET' || request.method === 'DELETE' || named
  if (attempt.sent && !idempotent) return false
  // What was read from a stream cannot be read again.
  if (request.body instanceof ReadableStream) return false
  if ((attempt.retryAfterMs ?? 0) > longestRetryAfterMs) return false
  // Full jitter: clients that failed together do not come back together.
  const backoffMs = Math.random() * Math.min(firstPauseMs * 2 ** (number - 1), longestPauseMs)
  await pause(Math.max(attempt.retryAfterMs ?? 0, backoffMs), request.signal)
  return true
}

/** Waits; an abort ends the wait at once with the reason of the signal. */
export function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason)
    const onAbort = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}
