import type { IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { apiKeyPattern, ThawError } from '@thaw/protocol'
import { type Caller, localCaller, requireAdmin } from '../control/caller.ts'
import type { Keys, Open } from '../control/keys.ts'
import { guardLoopback } from './guard.ts'
import { addressOf, type RateLimit } from './rate-limit.ts'

/** An answer or a connection: it ends with the key that it was opened with. */
interface Closing extends Open {
  once(event: 'close', listener: () => void): unknown
}

/** Decides who may come in, before anything of a request but its headers is read. */
export class Admission {
  readonly #keys: Keys
  readonly #limit: RateLimit
  readonly #isOurs: (host: string) => boolean

  /** `isOurs`: names of the server other than those of this machine. */
  constructor(keys: Keys, limit: RateLimit, isOurs: (host: string) => boolean) {
    this.#keys = keys
    this.#isOurs = isOurs
    this.#limit = limit
  }

  /** Who sent the request, or the error to refuse it with: `unauthorized`, `rate_limited`, `forbidden_host`, `forbidden_origin`. */
  admit(request: IncomingMessage, open: Closing): Caller | ThawError {
    if (!this.#keys.required) {
      return (
        guardLoopback(request.headers.host, request.headers.origin, this.#isOurs) ??
        this.#limit.take(addressOf(request.socket.remoteAddress), false) ??
        localCaller
      )
    }
    const key = presentedKey(request.headers)
    const caller = key === null ? null : this.#keys.find(key)
    const limited = this.#limit.take(caller?.keyId ?? addressOf(request.socket.remoteAddress), true)
    if (limited !== null) return limited
    if (caller === null) return this.#unauthorized(key)
    open.once('close', this.#keys.watch(caller, open))
    return caller
  }

  /** Lets in what brings a token of another kind, or needs none. The error to refuse it with, or null. */
  passage(request: IncomingMessage, checkOrigin: boolean): ThawError | null {
    const { host, origin } = request.headers
    const { required } = this.#keys
    const guarded = required ? null : guardLoopback(host, checkOrigin ? origin : undefined, this.#isOurs)
    return guarded ?? this.#limit.take(addressOf(request.socket.remoteAddress), required)
  }

  #unauthorized(key: string | null): ThawError {
    if (this.#keys.lockedOut) {
      return new ThawError('unauthorized', 'Requests need an API key, and this server has none.', {
        fix: 'Stop the server, make a key with `thaw key create admin --data-dir DIR`, and start it again.',
      })
    }
    return new ThawError('unauthorized', key === null ? 'The request has no API key.' : 'The API key is unknown, revoked or expired.')
  }
}

const bearer = /^bearer +(\S+) *$/i

/** The key of a request: in X-API-KEY or as a bearer token. What has not the form of a key is meant for somebody else. */
function presentedKey({ 'x-api-key': header, authorization }: IncomingHttpHeaders): string | null {
  if (typeof header === 'string' && apiKeyPattern.test(header)) return header
  const token = authorization === undefined ? undefined : bearer.exec(authorization)?.[1]
  if (token !== undefined) return token
  return typeof header === 'string' ? header : null
}

/** Whether a header carries one of our keys: such a header is never shown to the code of a function. */
export function carriesKey(name: string, value: string): boolean {
  if (name === 'x-api-key') return apiKeyPattern.test(value)
  return name === 'authorization' && apiKeyPattern.test(bearer.exec(value)?.[1] ?? '')
}

/** Paths that a load balancer asks. They tell nothing of anybody. */
export function isOpenPath(path: string): boolean {
  return path === '/health' || path === '/ready'
}

const callers = new WeakMap<IncomingMessage, Caller>()

/** Hands the caller over to the routes of the framework. */
export function rememberCaller(request: IncomingMessage, caller: Caller): void {
  callers.set(request, caller)
}

/** Who sent the request of a route. */
export function callerOf({ raw }: { raw: IncomingMessage }): Caller {
  const caller = callers.get(raw)
  // A route that forgot to ask who calls must fail, not answer.
  if (caller === undefined) throw new ThawError('internal', 'A request came in without a caller.')
  return caller
}

/** As `callerOf`, for what concerns the whole platform. Throws `forbidden`. */
export function adminOf(request: { raw: IncomingMessage }): Caller {
  const caller = callerOf(request)
  requireAdmin(caller)
  return caller
}
