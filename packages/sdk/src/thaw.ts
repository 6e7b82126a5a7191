import type { ExecuteRequest, ExecuteResult, Info } from '@thaw/protocol'
import { type CallOptions, Functions } from './functions.ts'
import { type FetchFunction, Http, isOk, itemOf } from './http.ts'
import { Images } from './images.ts'
import { Invocations } from './invocations.ts'
import { Keys } from './keys.ts'
import { Pools } from './pools.ts'
import { execute, Sandboxes } from './sandboxes/sandboxes.ts'
import { Snapshots } from './sandboxes/snapshots.ts'
import { Secrets } from './secrets.ts'
import { SshKeys } from './ssh-keys.ts'

export interface ThawOptions {
  /** Address of the server. Default: the variable THAW_URL, else http://127.0.0.1:8080. */
  url?: string | undefined
  /** Sent as `Authorization: Bearer …`. Default: the variable THAW_API_KEY, else none. */
  apiKey?: string | undefined
  /** Another fetch: with a proxy, other time limits, or for tests. Default: the global one. */
  fetch?: FetchFunction | undefined
  /** Longest wait for calls that answer at once by nature; invocations, builds and followed logs have no such limit. Default 60,000. */
  requestTimeoutMs?: number | undefined
}

export const defaultUrl = 'http://127.0.0.1:8080'

/**
 * A client of one thaw server. Holds no connection and needs no closing.
 *
 *     const thaw = new Thaw()
 *     await thaw.functions.deploy({ name: 'hello', runtime: 'node', code: { inline: 'export const handler = (event) => ({ hello: event })' } })
 *     const { value } = await thaw.functions.invoke('hello', 'world')
 *
 * Every failure is a ThawError with `code`, `message`, `fix` and, when a server answered, `requestId`. An aborted
 * `signal` rejects with the reason of the signal instead, as fetch does.
 */
export class Thaw {
  readonly url: string
  readonly functions: Functions
  readonly invocations: Invocations
  readonly images: Images
  readonly pools: Pools
  readonly sandboxes: Sandboxes
  readonly snapshots: Snapshots
  readonly secrets: Secrets
  readonly keys: Keys
  readonly sshKeys: SshKeys
  readonly #http: Http

  constructor(options: ThawOptions = {}) {
    this.#http = new Http({
      url: options.url ?? variable('THAW_URL') ?? defaultUrl,
      apiKey: options.apiKey ?? variable('THAW_API_KEY'),
      fetch: options.fetch,
      requestTimeoutMs: options.requestTimeoutMs,
    })
    this.url = this.#http.url
    this.functions = new Functions(this.#http)
    this.invocations = new Invocations(this.#http)
    this.images = new Images(this.#http)
    this.pools = new Pools(this.#http)
    this.sandboxes = new Sandboxes(this.#http)
    this.snapshots = new Snapshots(this.#http)
    this.secrets = new Secrets(this.#http)
    this.keys = new Keys(this.#http)
    this.sshKeys = new SshKeys(this.#http)
  }

  /** Runs a command in a sandbox that the server finds or makes for it. */
  async execute(request: ExecuteRequest, options: CallOptions = {}): Promise<ExecuteResult> {
    return execute(this.#http, request, options)
  }

  /** Version, drivers and their probes, limits. */
  async info(options: CallOptions = {}): Promise<Info> {
    return itemOf<Info>(await this.#http.json({ method: 'GET', path: '/v1/info', signal: options.signal }))
  }

  /** Resolves when the server answers; rejects with `unreachable` when there is none. */
  async health(options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'GET', path: '/health', signal: options.signal }, isOk)
  }
}

/** An environment variable, where there is an environment; an empty one counts as absent. */
function variable(name: string): string | undefined {
  const value = (globalThis as { process?: { env?: Record<string, string | undefined> } }).process?.env?.[name]
  return value === '' ? undefined : value
}
