import { type ClientRequest, type IncomingMessage, type OutgoingHttpHeaders, request as sendRequest } from 'node:http'
import type { Duplex } from 'node:stream'
import { ThawError } from '@thaw/protocol'
import { broken, decodeStream, encodeFrame, fromConnect, NotUnderstood, parseMessage, streamType } from './connect.ts'
import { DialAgent } from './dial-agent.ts'

/** What an agent is told when its sandbox begins a life: at the start, and again as a clone. */
export interface AgentInit {
  accessToken?: string
  envVars?: Record<string, string>
  hostname?: string
  /** ISO 8601; clones set their clocks' offset by it where they can. */
  timestamp?: string
  defaultUser?: string
  /** The default user is made where the image does not have it. */
  makeUser?: boolean
  defaultWorkdir?: string
  files?: { path: string; contentBase64: string; mode?: number; owner?: string }[]
  /** To a clone, whose hooks run then. */
  restored?: boolean
  main?: { cmd: string; args: string[]; envs: Record<string, string>; cwd?: string }
}

export interface ProcessStart {
  process: { cmd: string; args: string[]; envs: Record<string, string>; cwd?: string }
  pty?: { size: { cols: number; rows: number } }
  tag?: string
  stdin?: boolean
}

export interface AgentRequest {
  method: string
  /** With its query. */
  path: string
  headers?: OutgoingHttpHeaders
  signal?: AbortSignal | undefined
  /** The body is a stream that cannot be sent a second time. */
  isOneWay?: boolean
  /** Largest answer that is taken, where it is taken as a whole. */
  maxBytes?: number
  /** Default: kept connections. */
  agent?: DialAgent
}

const smallAnswerBytes = 4 * 1024 * 1024
/** Large answers of all sandboxes together, as far as they are here: a sandbox decides how large its answer is, and how slow. */
const maxLargeBytes = 256 * 1024 * 1024
let largeBytes = 0
/** No refusal says more. */
const refusalBytes = 64 * 1024
const keptMs = 30_000

/**
 * The server's end of an agent: what runs inside a sandbox and starts its processes, moves its files and leads to its
 * ports. Everything that comes back is untrusted input. Errors are ThawErrors: `sandbox_unavailable` when the agent cannot
 * be reached or breaks off, else what it says.
 */
export class AgentClient {
  /** Connections to the agent, for whoever passes requests on to it. */
  readonly connections: DialAgent
  readonly #dial: () => Promise<Duplex>
  /** A kept connection may be closing at the moment it is used; what can be sent once only gets one of its own. */
  readonly #fresh: DialAgent
  readonly #resuming: DialAgent
  #token: string | undefined
  /** While the sandbox is captured nobody connects: a connection that comes or goes at that moment makes the capture fail. */
  #still: PromiseWithResolvers<void> | null = null

  constructor(dial: () => Promise<Duplex>, token?: string) {
    this.#dial = async () => {
      await this.#still?.promise
      return dial()
    }
    this.#token = token
    this.connections = new DialAgent(this.#dial, { keepAlive: true, timeout: keptMs })
    this.#resuming = new DialAgent(dial, { keepAlive: false })
    this.#fresh = new DialAgent(this.#dial, { keepAlive: false })
  }

  /** What every call to the agent carries. */
  get headers(): Record<string, string> {
    return this.#token === undefined ? {} : { 'x-access-token': this.#token }
  }

  /** Waits until the agent answers. */
  async health(signal?: AbortSignal): Promise<void> {
    await this.call({ method: 'GET', path: '/health', signal })
  }

  /** Gives it identity, environment and files; replaces what it had. */
  async init(init: AgentInit, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: 'POST', path: '/init', signal }, init)
    if (init.accessToken !== undefined) this.#token = init.accessToken
  }

  /** Ends all connections but this one's, and takes no other calls until `resumeFromSnapshot`, which `token` opens then. */
  async prepareSnapshot(token: string, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: 'POST', path: '/snapshot/prepare', signal }, { accessToken: token })
    this.#token = token
    this.#still ??= Promise.withResolvers()
    // Waited for by those who connect, and by nobody where none does.
    this.#still.promise.catch(() => undefined)
    this.connections.destroy()
  }

  /** The sandbox goes on, or is a clone: `init` is its new identity. */
  async resumeFromSnapshot(init: AgentInit, signal?: AbortSignal): Promise<void> {
    const [headers, before] = [this.headers, this.#token]
    // The agent obeys the new token before its answer is here: who calls it in between must have it already.
    if (init.accessToken !== undefined) this.#token = init.accessToken
    try {
      await this.#json({ method: 'POST', path: '/snapshot/resume', headers, signal, agent: this.#resuming }, init)
    } catch (error) {
      this.#token = before
      throw error
    } finally {
      this.#still?.resolve()
      this.#still = null
    }
  }

  async stats(signal?: AbortSignal): Promise<Record<string, unknown>> {
    return parseMessage(await this.call({ method: 'GET', path: '/stats', signal })) as Record<string, unknown>
  }

  /** A unary call, such as `filesystem.Filesystem/Stat`. That the answer is an object is all that is known of it. */
  async unary(
    name: string,
    message: unknown,
    options: { user?: string | undefined; signal?: AbortSignal; maxBytes?: number } = {},
  ): Promise<object> {
    const { user, ...rest } = options
    return parseMessage(await this.#json({ method: 'POST', path: `/${name}`, headers: userHeader(user), ...rest }, message))
  }

  /**
   * A server stream, such as `process.Process/Start`. Ends its connection when the iteration is left early. That messages are
   * objects is all that is known of them.
   */
  async *stream(
    name: string,
    message: unknown,
    options: { user?: string | undefined; signal?: AbortSignal | undefined; headers?: OutgoingHttpHeaders } = {},
  ): AsyncGenerator<object> {
    const body = encodeFrame(message)
    const answer = await this.open(
      {
        method: 'POST',
        path: `/${name}`,
        headers: {
          'content-type': streamType,
          'connect-protocol-version': '1',
          'content-length': body.length,
          ...userHeader(options.user),
          ...options.headers,
        },
        signal: options.signal,
      },
      (request) => request.end(body),
    )
    try {
      if (answer.statusCode !== 200) throw await refusalOf(answer, name)
      yield* decodeStream(answer as AsyncIterable<Buffer>, subjectOf(name))
    } catch (error) {
      throw error instanceof ThawError ? error : brokenOff(error, options.signal)
    } finally {
      if (!answer.complete) answer.destroy()
    }
  }

  /** A small call: its whole answer. */
  async call(what: AgentRequest, body?: Buffer): Promise<Buffer> {
    const { maxBytes = smallAnswerBytes, path, signal } = what
    const answer = await this.open(what, (request) => request.end(body))
    if (!isFine(answer)) throw await refusalOf(answer, path)
    const pieces: Buffer[] = []
    let bytes = 0
    let claimed = 0
    try {
      for await (const piece of answer as AsyncIterable<Buffer>) {
        bytes += piece.length
        if (bytes > maxBytes) throw new NotUnderstood('The answer of the agent is too large.')
        if (bytes > smallAnswerBytes) claimed += claimLarge(piece.length)
        pieces.push(piece)
      }
      return Buffer.concat(pieces)
    } catch (error) {
      throw error instanceof ThawError ? error : brokenOff(error, signal)
    } finally {
      largeBytes -= claimed
    }
  }

  /**
   * Sends a request and resolves with the head of its answer. `send` writes the body and ends it; unless the request is one-way
   * it may be called twice. Rejects at once when `signal` aborts.
   */
  open(what: AgentRequest, send: (request: ClientRequest) => void): Promise<IncomingMessage> {
    // The token that is shown afterwards is another one.
    if (this.#still !== null && what.agent === undefined) return this.#still.promise.then(() => this.open(what, send))
    return new Promise((resolve, reject) => {
      const { method, path, signal, isOneWay = false } = what
      if (signal?.aborted === true) return reject(reasonOf(signal))
      const request = sendRequest({
        agent: what.agent ?? (isOneWay ? this.#fresh : this.connections),
        method,
        path,
        headers: { host: 'agent', ...this.headers, ...what.headers },
        ...(signal === undefined ? {} : { signal }),
      })
      // A request that has no connection yet says nothing when it is aborted.
      const abort = () => reject(reasonOf(signal as AbortSignal))
      signal?.addEventListener('abort', abort, { once: true })
      let answered = false
      request.once('response', (answer) => {
        answered = true
        signal?.removeEventListener('abort', abort)
        resolve(answer)
      })
      const refuse = () => request.destroy(new NotUnderstood('The agent of the sandbox answered what no agent answers.'))
      request.on('information', refuse)
      request.once('upgrade', (_answer, stream) => {
        stream.destroy()
        signal?.removeEventListener('abort', abort)
        reject(new NotUnderstood('The agent of the sandbox changed the protocol without being asked.'))
      })
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (answered) return
        signal?.removeEventListener('abort', abort)
        if (signal?.aborted === true) reject(reasonOf(signal))
        // The agent closed a kept connection at the moment it was used: nothing of the call arrived.
        else if (request.reusedSocket && error.code === 'ECONNRESET') this.open(what, send).then(resolve, reject)
        else reject(unreachable(error))
      })
      send(request)
    })
  }

  /** A byte stream to a TCP port inside. `port_unreachable` when nobody listens there. */
  async tunnel(port: number, signal?: AbortSignal): Promise<Duplex> {
    await this.#still?.promise
    return new Promise((resolve, reject) => {
      const request = sendRequest({
        createConnection: ((_options: unknown, callback: (error: Error | null, stream?: Duplex) => void) => {
          this.#dial().then((stream) => callback(null, stream), callback)
          return undefined
        }) as never,
        path: `/tunnel?port=${port}`,
        headers: { host: 'agent', connection: 'upgrade', upgrade: 'tcp', ...this.headers },
        ...(signal === undefined ? {} : { signal }),
      })
      const abort = () => reject(reasonOf(signal as AbortSignal))
      if (signal?.aborted === true) abort()
      signal?.addEventListener('abort', abort, { once: true })
      request.once('close', () => signal?.removeEventListener('abort', abort))
      request.once('upgrade', (_answer, stream, head) => {
        if (head.length > 0) stream.unshift(head)
        resolve(stream)
      })
      request.once('response', (answer) => {
        answer.resume()
        reject(
          answer.statusCode === 502
            ? new ThawError('port_unreachable', `Nothing listens on port ${port} of the sandbox.`)
            : broken('The agent of the sandbox refused the connection.'),
        )
        request.destroy()
      })
      request.once('error', (error) => reject(unreachable(error)))
      request.end()
    })
  }

  /** Ends all connections. */
  close(): void {
    this.#still?.reject(broken('The sandbox has fallen asleep, or ended.'))
    this.#still = null
    this.connections.destroy()
    this.#fresh.destroy()
  }

  #json(what: AgentRequest, message: unknown): Promise<Buffer> {
    const body = Buffer.from(JSON.stringify(message), 'utf8')
    return this.call({ ...what, headers: { ...what.headers, 'content-type': 'application/json', 'content-length': body.length } }, body)
  }
}

function claimLarge(bytes: number): number {
  if (largeBytes + bytes > maxLargeBytes) {
    throw new ThawError('too_many_requests', 'Too many large answers of sandboxes are under way.', {
      fix: 'Ask again in a moment, or for less.',
    })
  }
  largeBytes += bytes
  return bytes
}

function isFine({ statusCode = 500 }: IncomingMessage): boolean {
  return statusCode >= 200 && statusCode < 300
}

/** Drivers say that they have no way into the sandbox. What that means is the same as that nobody answers. */
function unreachable(error: Error): ThawError {
  if (error instanceof ThawError && error.code !== 'driver_failed') return error
  return broken('The agent of the sandbox cannot be reached.', error)
}

function brokenOff(error: unknown, signal: AbortSignal | undefined): unknown {
  return signal?.aborted === true ? reasonOf(signal) : broken('The connection to the agent of the sandbox broke off.', error)
}

/** That the time of a call is over is a failure of the agent; any other reason belongs to whoever aborted. */
function reasonOf(signal: AbortSignal): unknown {
  const { reason } = signal
  return reason instanceof DOMException && reason.name === 'TimeoutError'
    ? broken('The agent of the sandbox does not answer.', reason)
    : reason
}

function userHeader(user: string | undefined): Record<string, string> {
  return user === undefined ? {} : { authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}` }
}

/** What a call is about, by its path or the name of its procedure. */
function subjectOf(path: string): 'file' | 'process' {
  return path.includes('ilesystem') || path.startsWith('/files') ? 'file' : 'process'
}

/** Reads an answer that is none: an error of Connect (`code` is a word) or of the file service (`code` is the status). */
export async function refusalOf(answer: IncomingMessage, path: string): Promise<ThawError> {
  const { statusCode: status = 500 } = answer
  const pieces: Buffer[] = []
  let bytes = 0
  try {
    for await (const piece of answer as AsyncIterable<Buffer>) {
      pieces.push(piece)
      bytes += piece.length
      // Leaving ends the connection.
      if (bytes > refusalBytes) break
    }
  } catch {
    // It broke off: the status says enough.
  }
  let error: { code?: unknown; message?: unknown; details?: unknown } = {}
  try {
    error = parseMessage(Buffer.concat(pieces))
  } catch {
    // An agent that says nothing readable is judged by its status.
  }
  const byStatus: Record<number, string> = {
    400: 'invalid_argument',
    401: 'unauthenticated',
    403: 'permission_denied',
    404: 'not_found',
    409: 'already_exists',
    507: 'resource_exhausted',
  }
  const code = typeof error.code === 'string' ? error.code : (byStatus[status] ?? 'unavailable')
  return fromConnect({ code, message: error.message, details: error.details }, subjectOf(path))
}
