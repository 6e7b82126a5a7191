import { ThawError } from '@thaw/protocol'
import { brokenConnection, connectionFailure, responseError } from './failures.ts'
import type { Page } from './page.ts'
import { patientFetch } from './patience.ts'
import { type Attempt, pauseBeforeRetry } from './retry.ts'

export type FetchFunction = (url: string, init: RequestInit) => Promise<Response>

export interface HttpOptions {
  url: string
  apiKey?: string | undefined
  fetch?: FetchFunction | undefined
  requestTimeoutMs?: number | undefined
}

export interface HttpRequest {
  method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  path: string
  query?: Record<string, string | number | undefined>
  headers?: Record<string, string>
  /** Sent as JSON. */
  json?: unknown
  body?: NonNullable<RequestInit['body']>
  signal?: AbortSignal | undefined
  /** true: no time limit of ours, because user code or a build decides how long the answer takes. */
  patient?: boolean
}

/** What is done with an answer. Runs inside the time limit of the request. */
type Reader<Result> = (response: Response) => Promise<Result>

const defaultTimeoutMs = 60_000

/** Sends requests, retries those that may be retried, and turns every failure into a ThawError. */
export class Http {
  readonly url: string
  readonly #apiKey: string | undefined
  readonly #fetch: FetchFunction | undefined
  readonly #timeoutMs: number

  constructor(options: HttpOptions) {
    this.url = normalizeUrl(options.url)
    this.#apiKey = options.apiKey
    this.#fetch = options.fetch
    this.#timeoutMs = options.requestTimeoutMs ?? defaultTimeoutMs
  }

  /** Where a WebSocket of a path leads, and the headers of its handshake. */
  socketTarget(path: string): { url: string; headers: Record<string, string> } {
    return { url: `${this.url.replace(/^http/i, 'ws')}${path}`, headers: this.#credentials() }
  }

  /** Sends a request and reads its JSON answer. */
  json(request: HttpRequest): Promise<unknown> {
    return this.send(request, (response) => this.#readJson(response))
  }

  /** Sends a request until it is answered or may not be sent again. An answer that is not 2xx is thrown as its error. */
  async send<Result>(request: HttpRequest, read: Reader<Result>): Promise<Result> {
    let mayHaveRun = false
    for (let number = 1; ; number++) {
      const attempt: { result: Result } | Attempt = await this.#attempt(request, read, mayHaveRun)
      if ('result' in attempt) return attempt.result
      mayHaveRun ||= attempt.sent
      if (!(await pauseBeforeRetry(request, attempt, number))) throw attempt.error
    }
  }

  async #attempt<Result>(request: HttpRequest, read: Reader<Result>, mayHaveRun: boolean): Promise<{ result: Result } | Attempt> {
    request.signal?.throwIfAborted()
    const limit = request.patient === true ? undefined : AbortSignal.timeout(this.#timeoutMs)
    const signals = [request.signal, limit].filter((signal) => signal !== undefined)
    let response: Response | undefined
    try {
      const send = this.#fetch ?? (request.patient === true ? patientFetch : fetch)
      response = await send(this.#target(request), this.#init(request, AbortSignal.any(signals)))
      // A DELETE that is sent again finds nothing when the first one worked but its answer was lost.
      const goneBefore = mayHaveRun && request.method === 'DELETE' && response.status === 404
      if (!response.ok && !goneBefore) return await responseError(response, this.url)
      return { result: await read(response) }
    } catch (error) {
      request.signal?.throwIfAborted()
      if (error instanceof ThawError) throw error
      if (limit?.aborted) {
        const message = `${this.url} did not answer ${request.method} ${request.path} within ${this.#timeoutMs / 1000} s.`
        const fix = 'Look at the log of the server; if it is only slow, raise requestTimeoutMs of the client.'
        return { error: new ThawError('unreachable', message, { fix, cause: error }), sent: true, retryAfterMs: undefined, final: true }
      }
      if (response !== undefined) throw brokenConnection(this.url, error)
      return connectionFailure(this.url, error)
    }
  }

  #target(request: HttpRequest): string {
    const query = new URLSearchParams()
    for (const [key, value] of Object.entries(request.query ?? {})) if (value !== undefined) query.set(key, String(value))
    const text = query.toString()
    return `${this.url}${request.path}${text === '' ? '' : `?${text}`}`
  }

  #init(request: HttpRequest, signal: AbortSignal): RequestInit {
    const headers: Record<string, string> = { ...request.headers, ...this.#credentials() }
    const init: RequestInit = { method: request.method, headers, signal, redirect: 'manual' }
    if (request.json !== undefined) {
      headers['content-type'] = 'application/json'
      init.body = JSON.stringify(request.json)
    } else if (request.body !== undefined) {
      init.body = request.body
      // fetch demands this of a body whose length it cannot know.
      if (request.body instanceof ReadableStream) init.duplex = 'half'
    }
    return init
  }

  #credentials(): Record<string, string> {
    return this.#apiKey === undefined ? {} : { authorization: `Bearer ${this.#apiKey}` }
  }

  async #readJson(response: Response): Promise<unknown> {
    const text = await response.text()
    try {
      return text === '' ? null : JSON.parse(text)
    } catch (cause) {
      throw new ThawError('unreachable', `${this.url} answered with something that is not JSON.`, {
        fix: 'Check that THAW_URL is the address of a thaw server and not of something else.',
        cause,
      })
    }
  }
}

/** For answers whose body says nothing. Reads it to the end, so that the connection can be used again. */
export async function isOk(response: Response): Promise<void> {
  await response.arrayBuffer()
}

/** `item` of an answer. The server validates what it sends with the same schemas that these types come from. */
export function itemOf<Item>(answer: unknown): Item {
  return (answer as { item: Item }).item
}

export function pageOf<Item>(answer: unknown): Page<Item> {
  return answer as Page<Item>
}

function normalizeUrl(url: string): string {
  const full = /^https?:\/\//i.test(url) ? url : `http://${url}`
  if (!URL.canParse(full)) {
    throw new ThawError('unreachable', `"${url}" is not an address.`, { fix: 'Give an address such as http://127.0.0.1:8080.' })
  }
  return full.replace(/\/+$/, '')
}
