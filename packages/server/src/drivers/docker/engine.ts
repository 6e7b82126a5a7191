import { readFileSync } from 'node:fs'
import { type ClientRequest, type IncomingMessage, type RequestOptions, request as requestHttp } from 'node:http'
import { request as requestHttps } from 'node:https'
import { join } from 'node:path'
import type { Duplex, Readable } from 'node:stream'
import { ThawError } from '@thaw/protocol'

export interface EngineOptions {
  /** unix:///path or tcp://host:port. */
  host: string
  /** Folder with ca.pem, cert.pem and key.pem, for engines that speak TLS. */
  certDir: string | null
}

export interface CallOptions {
  query?: Record<string, string | number | boolean | undefined>
  /** Sent as JSON. */
  body?: unknown
  /** Sent as it is (tar archives). */
  stream?: Readable
  signal?: AbortSignal | undefined
  /** Default: 60 s; null: for ever. */
  timeoutMs?: number | null
}

/** The newest version of the API that this client was written against; older engines get theirs. */
const newestVersion = [1, 47] as const
const defaultTimeoutMs = 60_000
const maxAnswerBytes = 32 * 1024 * 1024

/**
 * The HTTP API of a Docker engine (docs.docker.com/reference/api/engine). A connection per call: on a Unix socket it costs
 * microseconds, and there is none that a restart of the engine could have cut.
 *
 * Errors are `driver_failed`, with the status and what the engine said in details (`statusOf`), or without a status when
 * the engine could not be reached (`isUnreachable`).
 */
export class Engine {
  readonly host: string
  readonly #options: EngineOptions
  #connection: { options: RequestOptions; request: typeof requestHttp } | undefined
  #prefix: Promise<string> | undefined

  constructor(options: EngineOptions) {
    this.host = options.host
    this.#options = options
  }

  /** The JSON that the engine answers; undefined where it answers nothing. */
  async call<Answer = unknown>(method: string, path: string, options: CallOptions = {}): Promise<Answer> {
    const text = await textOf(await this.stream(method, path, options))
    return (text.trim() === '' ? undefined : JSON.parse(text)) as Answer
  }

  /** The body of the answer as it comes, once its status said that all is well. */
  async stream(method: string, path: string, options: CallOptions = {}): Promise<IncomingMessage> {
    const { request, answer } = await this.#send(method, path, options)
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      answer.then(resolve, reject)
      if (options.stream === undefined) return
      options.stream.once('error', (error) => {
        request.destroy(error)
        reject(error)
      })
    })
    await this.#check(method, path, response)
    return response
  }

  /** Turns the connection of a call into a byte stream in both directions (attach, exec). */
  async hijack(path: string, options: CallOptions = {}): Promise<Duplex> {
    const { request, answer } = await this.#send('POST', path, { ...options, timeoutMs: null }, { connection: 'Upgrade', upgrade: 'tcp' })
    const upgraded = new Promise<Duplex>((resolve) =>
      request.once('upgrade', (_response, socket: Duplex, head: Buffer) => {
        if (head.length > 0) socket.unshift(head)
        resolve(socket)
      }),
    )
    const refused = answer.then(async (response) => {
      await this.#check('POST', path, response)
      throw new ThawError('driver_failed', 'The Docker engine does not give its connection away: a proxy may be in between.')
    })
    return Promise.race([upgraded, refused])
  }

  /** Asks for the version of the API, at the next call: after a restart it may be another engine. */
  forget(): void {
    this.#prefix = undefined
  }

  async #send(
    method: string,
    path: string,
    { query = {}, body, stream, signal, timeoutMs = defaultTimeoutMs }: CallOptions,
    headers: Record<string, string> = {},
  ): Promise<{ request: ClientRequest; answer: Promise<IncomingMessage> }> {
    const target = `${await this.#versioned(path)}${queryText(query)}`
    const payload = body === undefined ? undefined : Buffer.from(JSON.stringify(body))
    const stops = [signal, timeoutMs === null ? undefined : AbortSignal.timeout(timeoutMs)].filter((stop) => stop !== undefined)
    // Read at the first call: an address that is none concerns nobody who does not use the engine.
    this.#connection ??= connectionOf(this.#options)
    const request = this.#connection.request({
      ...this.#connection.options,
      agent: false,
      method,
      path: target,
      headers: {
        host: 'docker',
        ...headers,
        ...(payload === undefined ? {} : { 'content-type': 'application/json', 'content-length': payload.length }),
        ...(stream === undefined ? {} : { 'content-type': 'application/x-tar' }),
      },
      ...(stops.length > 0 ? { signal: AbortSignal.any(stops) } : {}),
    })
    const answer = new Promise<IncomingMessage>((resolve, reject) => {
      request.once('response', resolve)
      // Kept for the life of the connection: an error after the answer belongs to whoever reads it.
      request.on('error', (error) => reject(signal?.aborted ? signal.reason : this.#unreachable(error)))
    })
    answer.catch(() => undefined)
    if (stream !== undefined) stream.pipe(request)
    else request.end(payload)
    return { request, answer }
  }

  async #versioned(path: string): Promise<string> {
    if (path === '/_ping' || path === '/version') return path
    this.#prefix ??= this.#negotiate()
    this.#prefix.catch(() => this.forget())
    return `${await this.#prefix}${path}`
  }

  async #negotiate(): Promise<string> {
    const { headers } = await this.stream('GET', '/_ping', { timeoutMs: 10_000 }).then((response) => response.resume())
    const [major = 1, minor = 41] = String(headers['api-version'] ?? '1.41')
      .split('.')
      .map(Number)
    return `/v${major}.${major === newestVersion[0] ? Math.min(minor, newestVersion[1]) : minor}`
  }

  async #check(method: string, path: string, response: IncomingMessage): Promise<void> {
    const status = response.statusCode ?? 0
    if (status < 400) return
    const text = await textOf(response)
    let said = text
    try {
      said = (JSON.parse(text) as { message: string }).message
    } catch {
      // Not from the engine itself but from something in between.
    }
    throw new ThawError('driver_failed', `The Docker engine refused: ${said.trim().slice(0, 500)}`, {
      details: { status, said: said.trim().slice(0, 4000), call: `${method} ${path}` },
    })
  }

  #unreachable(cause: Error): ThawError {
    const code = (cause as NodeJS.ErrnoException).code ?? cause.name
    const { message, fix } = explain(code, this.host)
    return new ThawError('driver_failed', `The Docker engine at ${this.host} ${message}.`, { fix, details: { unreachable: code }, cause })
  }
}

/** What the engine answered with, or null where an error is not an answer of it. */
export function statusOf(error: unknown): number | null {
  return error instanceof ThawError ? ((error.details as { status?: number } | undefined)?.status ?? null) : null
}

/** The system's code of a connection that failed or broke, or null. */
export function isUnreachable(error: unknown): string | null {
  return error instanceof ThawError ? ((error.details as { unreachable?: string } | undefined)?.unreachable ?? null) : null
}

function explain(code: string, host: string): { message: string; fix: string } {
  switch (code) {
    case 'ENOENT':
      return {
        message: 'does not run: there is no such socket',
        fix: 'Install and start it: apt-get install docker.io && systemctl start docker. If it listens elsewhere, set docker.host.',
      }
    case 'ECONNREFUSED':
      return {
        message: 'does not run: nothing listens there',
        fix: 'Start it: systemctl start docker. If it listens elsewhere, set docker.host.',
      }
    case 'EACCES':
    case 'EPERM':
      return {
        message: 'may not be used by this user',
        fix: `Run the server as root, or as a member of the group that owns ${host.replace('unix://', '')}: usermod -aG docker USER, then log in again.`,
      }
    case 'TimeoutError':
    case 'ABORT_ERR':
      return { message: 'did not answer in time', fix: 'Look at its log (journalctl -u docker); restart it if it hangs.' }
    default:
      return { message: `cannot be reached (${code})`, fix: 'Check docker.host, the network in between, and that the engine runs.' }
  }
}

function connectionOf({ host, certDir }: EngineOptions): { options: RequestOptions; request: typeof requestHttp } {
  if (host.startsWith('unix://')) return { options: { socketPath: host.slice('unix://'.length) }, request: requestHttp }
  const url = URL.canParse(host) ? new URL(host) : null
  if (url === null || !['tcp:', 'http:', 'https:'].includes(url.protocol) || url.hostname === '') {
    throw new ThawError('config_invalid', `docker.host is ${JSON.stringify(host)}, which is no address of a Docker engine.`, {
      fix: 'Use unix:///path/to/docker.sock or tcp://host:port. For an engine behind ssh, forward its socket: ssh -L.',
    })
  }
  const tls = certDir !== null || url.protocol === 'https:'
  const options: RequestOptions & { ca?: Buffer; cert?: Buffer; key?: Buffer } = {
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port === '' ? (tls ? 2376 : 2375) : Number(url.port),
  }
  if (certDir !== null) {
    try {
      for (const name of ['ca', 'cert', 'key'] as const) options[name] = readFileSync(join(certDir, `${name}.pem`))
    } catch (cause) {
      throw new ThawError('config_invalid', `docker.cert_dir cannot be read: ${(cause as Error).message}`, {
        fix: 'It must hold ca.pem, cert.pem and key.pem.',
        cause,
      })
    }
  }
  return { options, request: tls ? requestHttps : requestHttp }
}

function queryText(query: NonNullable<CallOptions['query']>): string {
  const entries = Object.entries(query).flatMap(([name, value]): [string, string][] => (value === undefined ? [] : [[name, String(value)]]))
  return entries.length === 0 ? '' : `?${new URLSearchParams(entries)}`
}

async function textOf(response: IncomingMessage): Promise<string> {
  const parts: Buffer[] = []
  let bytes = 0
  try {
    for await (const part of response) {
      bytes += (part as Buffer).length
      if (bytes > maxAnswerBytes) throw new Error('the answer is too long')
      parts.push(part as Buffer)
    }
  } catch (cause) {
    const code = (cause as NodeJS.ErrnoException).code ?? (cause as Error).name
    throw new ThawError('driver_failed', `The connection to the Docker engine broke: ${(cause as Error).message}`, {
      details: { unreachable: code },
      cause,
    })
  }
  return Buffer.concat(parts).toString('utf8')
}
