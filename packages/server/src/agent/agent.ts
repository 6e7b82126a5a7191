import { type ClientRequest, type IncomingMessage, type OutgoingHttpHeaders, request as sendRequest } from 'node:http'
import type { Duplex } from 'node:stream'
import { ThawError } from '@thaw/protocol'
import { broken, type ConnectError, decodeStream, encodeFrame, fromConnect, streamType } from './connect.ts'
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

/** One event of a process, as the agent words it (process.Process). Bytes are base64. */
export interface ProcessEvent {
  event?: {
    /** `offset`: how much of each channel came before. */
    start?: { pid: number; offset?: { stdout?: number; stderr?: number; pty?: number } }
    data?: { stdout?: string; stderr?: string; pty?: string }
    end?: { exitCode?: number; exited?: boolean; status?: string; error?: string }
    keepalive?: object
  }
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
}

const smallAnswerBytes = 4 * 1024 * 1024
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
  #token: string | undefined

  constructor(dial: () => Promise<Duplex>, token?: string) {
    this.#dial = dial
    this.#token = token
    this.connections = new DialAgent(dial, { keepAlive: true, timeout: keptMs })
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
    this.connections.destroy()
  }

  /** The sandbox goes on, or is a clone: `init` is its new identity. */
  async resumeFromSnapshot(init: AgentInit, signal?: AbortSignal): Promise<void> {
    await this.#json({ method: 'POST', path: '/snapshot/resume', signal }, init)
    if (init.accessToken !== undefined) this.#token = init.accessToken
  }

  async stats(signal?: AbortSignal): Promise<Record<string, unknown>> {
    return JSON.parse((await this.call({ method: 'GET', path: '/stats', signal })).toString('utf8')) as Record<string, unknown>
  }

  /** A unary call, such as `filesystem.Filesystem/Stat`. */
  async unary<Answer>(name: string, message: unknown, options: { user?: string | undefined; signal?: AbortSignal } = {}): Promise<Answer> {
    const headers = userHeader(options.user)
    const body = await this.#json({ method: 'POST', path: `/${name}`, headers, signal: options.signal }, message)
    return JSON.parse(body.toString('utf8')) as Answer
  }

  /** A server stream, such as `process.Process/Start`. Ends its connection when the iteration is left early. */
  async *stream<Message>(
    name: string,
    message: unknown,
    options: { user?: string | undefined; signal?: AbortSignal | undefined; headers?: OutgoingHttpHeaders } = {},
  ): AsyncGenerator<Message> {
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
      if (answer.statusCode !== 200) throw await this.#refusal(answer, name)
      yield* decodeStream(answer as AsyncIterable<Buffer>, subjectOf(name)) as AsyncGenerator<Message>
    } catch (error) {
      if (error instanceof ThawError) throw error
      throw options.signal?.aborted === true
        ? options.signal.reason
        : broken('The connection to the agent of the sandbox broke off.', error)
    } finally {
      if (!answer.complete) answer.destroy()
    }
  }

  /** A small call: its whole answer. */
  async call(what: AgentRequest, body?: Buffer): Promise<Buffer> {
    const answer = await this.open(what, (request) => request.end(body))
    const pieces: Buffer[] = []
    let bytes = 0
    try {
      for await (const piece of answer as AsyncIterable<Buffer>) {
        bytes += piece.length
        if (bytes > smallAnswerBytes) throw broken('The answer of the agent is too large.')
        pieces.push(piece)
      }
    } catch (error) {
      throw error instanceof ThawError ? error : broken('The connection to the agent of the sandbox broke off.', error)
    }
    const text = Buffer.concat(pieces)
    if ((answer.statusCode ?? 500) >= 400) throw refusalOf(answer.statusCode ?? 500, text, what.path)
    return text
  }

  /** Sends a request and resolves with the head of its answer. `send` writes the body and ends it. */
  open(what: AgentRequest, send: (request: ClientRequest) => void): Promise<IncomingMessage> {
    return new Promise((resolve, reject) => {
      const { method, path, signal } = what
      const request = sendRequest({
        agent: this.connections,
        method,
        path,
        headers: { host: 'agent', ...this.headers, ...what.headers },
        ...(signal === undefined ? {} : { signal }),
      })
      let answered = false
      request.once('response', (answer) => {
        answered = true
        resolve(answer)
      })
      request.on('error', (error: NodeJS.ErrnoException) => {
        if (answered) return
        if (signal?.aborted === true) reject(signal.reason)
        // The agent closed a kept connection at the moment it was used: nothing of the call arrived.
        else if (request.reusedSocket && error.code === 'ECONNRESET') this.open(what, send).then(resolve, reject)
        else reject(error instanceof ThawError ? error : broken('The agent of the sandbox cannot be reached.', error))
      })
      send(request)
    })
  }

  /** A byte stream to a TCP port inside. `port_unreachable` when nobody listens there. */
  async tunnel(port: number, signal?: AbortSignal): Promise<Duplex> {
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
      request.once('error', (error) =>
        reject(error instanceof ThawError ? error : broken('The agent of the sandbox cannot be reached.', error)),
      )
      request.end()
    })
  }

  /** Ends all connections. */
  close(): void {
    this.connections.destroy()
  }

  #json(what: AgentRequest, message: unknown): Promise<Buffer> {
    const body = Buffer.from(JSON.stringify(message), 'utf8')
    return this.call({ ...what, headers: { ...what.headers, 'content-type': 'application/json', 'content-length': body.length } }, body)
  }

  async #refusal(answer: IncomingMessage, path: string): Promise<ThawError> {
    const pieces: Buffer[] = []
    for await (const piece of answer as AsyncIterable<Buffer>) pieces.push(piece)
    return refusalOf(answer.statusCode ?? 500, Buffer.concat(pieces), path)
  }
}

function userHeader(user: string | undefined): Record<string, string> {
  return user === undefined ? {} : { authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}` }
}

/** What a call is about, by its path or the name of its procedure. */
function subjectOf(path: string): 'file' | 'process' {
  return path.includes('ilesystem') || path.startsWith('/files') ? 'file' : 'process'
}

/** An error answer: of Connect (`code` is a word) or of the file service (`code` is the status). */
export function refusalOf(status: number, text: Buffer, path: string): ThawError {
  const subject = subjectOf(path)
  let error: { code?: unknown; message?: unknown } = {}
  try {
    error = JSON.parse(text.toString('utf8')) as typeof error
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
  return fromConnect({ code, ...(typeof error.message === 'string' ? { message: error.message } : {}) } satisfies ConnectError, subject)
}
