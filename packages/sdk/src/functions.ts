import { type FunctionCreate, type FunctionItem, type LogEntry, ThawError, type VersionItem } from '@thaw/protocol'
import { eventsOf, linesOf, parseLine, piecesOf, textOf } from './bytes.ts'
import { type CodeSource, encodeCode } from './code.ts'
import { brokenConnection, errorOfBody } from './failures.ts'
import { type Http, type HttpRequest, isOk, itemOf, pageOf } from './http.ts'
import { type InvokeOptions, type InvokeResult, invocationOf, invokeRequest, type Payload, readValue } from './invoke.ts'
import { type PageQuery, Pages } from './page.ts'
import { InvocationStream } from './stream.ts'

export interface CallOptions {
  signal?: AbortSignal | undefined
}

/** As POST /v1/functions takes it, but with the code as a source of it. */
export type FunctionInput = Omit<FunctionCreate, 'code'> & { code: CodeSource }
export type FunctionChange = Omit<FunctionInput, 'name'>

export interface DeployOptions extends CallOptions {
  /** false: come back at once, while the version is `building`; follow it with buildLog. Default true. */
  wait?: boolean | undefined
}

export interface CreateOptions extends DeployOptions {
  /** Names this request: sent again with the same key and input, it is answered as before, and nothing is made twice. */
  idempotencyKey?: string | undefined
}

export interface LogOptions extends CallOptions {
  /** How many of the newest entries to begin with. Default 1000. */
  limit?: number | undefined
  /** true: go on with new entries until the loop is left or the signal is aborted. */
  follow?: boolean | undefined
}

export class Functions {
  readonly #http: Http

  constructor(http: Http) {
    this.#http = http
  }

  /** Creates a function. Throws `function_exists` when there is one of this name. */
  async create(input: FunctionInput, options: CreateOptions = {}): Promise<FunctionItem> {
    const { code, ...config } = input
    return this.#upload('POST', '/v1/functions', config, code, options)
  }

  /** Makes a new version of a function. Its configuration is given anew; nothing is taken over from the version before. */
  async update(name: string, change: FunctionChange, options: DeployOptions = {}): Promise<FunctionItem> {
    const { code, ...config } = change
    return this.#upload('PUT', pathOf(name), config, code, options)
  }

  /** Creates the function, or makes a new version of it when it exists. */
  async deploy(input: FunctionInput, options: DeployOptions = {}): Promise<FunctionItem> {
    const { name, ...change } = input
    const update = () => this.update(name, change, options)
    const create = () => this.create(input, options)
    // Asked first, so that the code is not sent for nothing; another deploy in between is met by the other call.
    return (await this.#exists(name, options))
      ? update().catch((error) => onCode(error, 'function_not_found', create))
      : create().catch((error) => onCode(error, 'function_exists', update))
  }

  async get(name: string, options: CallOptions = {}): Promise<FunctionItem> {
    return itemOf<FunctionItem>(await this.#http.json({ method: 'GET', path: pathOf(name), signal: options.signal }))
  }

  /** Ordered by name. */
  list(query: PageQuery = {}): Pages<FunctionItem> {
    return this.#pages<FunctionItem>('/v1/functions', query)
  }

  /** Removes the function, its versions, instances and logs. Throws `function_not_found` when there is none. */
  async delete(name: string, options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: pathOf(name), signal: options.signal }, isOk)
  }

  /** Newest first. */
  versions(name: string, query: PageQuery = {}): Pages<VersionItem> {
    return this.#pages<VersionItem>(`${pathOf(name)}/versions`, query)
  }

  async version(name: string, version: number, options: CallOptions = {}): Promise<VersionItem> {
    const path = `${pathOf(name)}/versions/${version}`
    return itemOf<VersionItem>(await this.#http.json({ method: 'GET', path, signal: options.signal }))
  }

  /** The text of a build, as it is written when `follow` is true; ends when the build has ended. */
  async *buildLog(name: string, version: number, options: CallOptions & { follow?: boolean | undefined } = {}): AsyncGenerator<string> {
    const path = `${pathOf(name)}/versions/${version}/build-log`
    const follow = options.follow === true
    yield* textOf(this.#pieces({ method: 'GET', path, query: { follow: follow ? 1 : undefined }, signal: options.signal, patient: follow }))
  }

  /** Makes an earlier version the active one: the given, or the ready one before. */
  async rollback(name: string, version?: number, options: CallOptions = {}): Promise<FunctionItem> {
    const json = version === undefined ? {} : { version }
    return itemOf<FunctionItem>(await this.#http.json({ method: 'POST', path: `${pathOf(name)}/rollback`, json, signal: options.signal }))
  }

  /**
   * Invokes and waits for the whole answer. What the code does wrong is thrown as `function_failed`, `timed_out`,
   * `out_of_memory`, …, with the type, message and stack of its own language in `details`.
   */
  async invoke<Value = unknown>(name: string, payload?: Payload, options: InvokeOptions = {}): Promise<InvokeResult<Value>> {
    return this.#http.send(invokeRequest(name, payload, 'sync', options), async (response) => {
      const invocation = invocationOf(response.headers)
      const value = await readValue(response).catch(async (error: unknown) => {
        // A handler that streams can fail when its answer has begun, also for those who wait for all of it.
        throw await this.#streamFailure(error, invocation.invocation_id, options.signal)
      })
      return { value: value as Value, ...invocation }
    })
  }

  /** Invokes and comes back with the first piece of the answer. */
  async stream(name: string, payload?: Payload, options: InvokeOptions = {}): Promise<InvocationStream> {
    const onBreak = (error: unknown, invocationId: string) => this.#streamFailure(error, invocationId, options.signal)
    return this.#http.send(invokeRequest(name, payload, 'stream', options), async (response) => new InvocationStream(response, onBreak))
  }

  /** Log entries of all invocations of a function, oldest first. */
  async *logs(name: string, options: LogOptions = {}): AsyncGenerator<LogEntry> {
    const follow = options.follow === true
    const request: HttpRequest = {
      method: 'GET',
      path: `${pathOf(name)}/logs`,
      query: { limit: options.limit, follow: follow ? 1 : undefined },
      signal: options.signal,
    }
    if (!follow) {
      yield* pageOf<LogEntry>(await this.#http.json(request)).items
      return
    }
    for await (const event of eventsOf(linesOf(textOf(this.#pieces({ ...request, patient: true }))))) {
      const value = parseLine<LogEntry>(event.data)
      const error = event.event === 'error' ? errorOfBody(value) : null
      if (error !== null) throw error
      yield value
    }
  }

  async #upload(method: 'POST' | 'PUT', path: string, config: object, source: CodeSource, options: CreateOptions): Promise<FunctionItem> {
    const code = await encodeCode(source, options.signal)
    const request: HttpRequest = { method, path, signal: options.signal, patient: true }
    if (options.idempotencyKey !== undefined) request.headers = { 'idempotency-key': options.idempotencyKey }
    if (options.wait === false) request.query = { wait: 'false' }
    if (code.archive === undefined) {
      request.json = { ...config, code: code.json }
    } else {
      const form = new FormData()
      form.set('config', JSON.stringify(config))
      form.set('archive', new Blob([code.archive as Uint8Array<ArrayBuffer>]), 'code')
      request.body = form
    }
    return itemOf<FunctionItem>(await this.#http.json(request))
  }

  async #exists(name: string, options: CallOptions): Promise<boolean> {
    try {
      await this.get(name, options)
      return true
    } catch (error) {
      return onCode(error, 'function_not_found', async () => false)
    }
  }

  #pages<Item>(path: string, query: PageQuery): Pages<Item> {
    return new Pages<Item>(
      async (cursor) =>
        pageOf<Item>(await this.#http.json({ method: 'GET', path, query: { limit: query.limit, cursor }, signal: query.signal })),
      query.cursor,
    )
  }

  async *#pieces(request: HttpRequest): AsyncGenerator<Uint8Array> {
    const response = await this.#http.send(request, async (answer) => answer)
    yield* piecesOf(response.body, (error) => {
      request.signal?.throwIfAborted()
      return brokenConnection(this.#http.url, error)
    })
  }

  /** A stream that breaks off has no place left for an error body: the record of the invocation says why it ended. */
  async #streamFailure(cause: unknown, invocationId: string, signal: AbortSignal | undefined): Promise<unknown> {
    signal?.throwIfAborted()
    const broken = brokenConnection(this.#http.url, cause, invocationId)
    try {
      const path = `/v1/invocations/${invocationId}`
      const { error } = itemOf<{ error: unknown }>(await this.#http.json({ method: 'GET', path, signal }))
      return errorOfBody({ error }, new Headers({ 'thaw-invocation-id': invocationId })) ?? broken
    } catch {
      return broken
    }
  }
}

function pathOf(name: string): string {
  return `/v1/functions/${encodeURIComponent(name)}`
}

/** Goes on with `otherwise` when the error has this code, else throws it on. */
async function onCode<Result>(error: unknown, code: ThawError['code'], otherwise: () => Promise<Result>): Promise<Result> {
  if (error instanceof ThawError && error.code === code) return otherwise()
  throw error
}
