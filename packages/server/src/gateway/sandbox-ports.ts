import { type Agent, type ClientRequest, type IncomingMessage, type ServerResponse, STATUS_CODES, request as sendRequest } from 'node:http'
import type { Socket } from 'node:net'
import { type Duplex, pipeline } from 'node:stream'
import { ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../control/caller.ts'
import type { PortUse, SandboxPorts } from '../control/sandboxes/ports.ts'
import { checkHeader, endToEnd, forwardedHeaders } from './headers.ts'
import { refuseUnread, respondError } from './respond.ts'
import type { PortTarget } from './sandbox-hosts.ts'
import type { TunnelLimits } from './upgrade.ts'
import { joinWebSocket } from './websocket-join.ts'

/** Methods that may be sent twice (RFC 9110, 9.2.1). */
const safeMethods = new Set(['GET', 'HEAD', 'OPTIONS'])

/**
 * What belongs to an origin, and so must not pass where the sandbox shares that of the API: its cookies, and what a server
 * says about all pages of its host.
 */
const ofOrigin = new Set(['cookie', 'set-cookie', 'clear-site-data', 'service-worker-allowed', 'strict-transport-security'])
/** A page under a path of the API gets an origin of its own, so that its scripts cannot call the API as the user's. */
const ownOrigin = 'sandbox allow-scripts allow-forms allow-popups allow-downloads'

/** A connection that asks for another protocol. */
interface Upgrade {
  socket: Duplex
  /** What the client sent behind its request. */
  head: Buffer
}

/** Passes requests on to servers inside of sandboxes, as they come, with back-pressure both ways. */
export class PortProxy {
  readonly #ports: SandboxPorts
  readonly #limits: TunnelLimits
  readonly #sockets = new Set<Duplex>()

  constructor(ports: SandboxPorts, limits: TunnelLimits) {
    this.#ports = ports
    this.#limits = limits
  }

  async request(caller: Caller, target: PortTarget, request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      using use = await this.#ports.use(caller, target.sandbox, target.port)
      await new PortExchange(target, request, response, use, null, this.#limits).finished
    } catch (error) {
      if (request.complete) respondError(response, toThawError(error))
      else refuseUnread(request, response, toThawError(error))
    }
  }

  /** `response` writes to `socket`, until the server inside takes the socket over. */
  async upgrade(
    caller: Caller,
    target: PortTarget,
    request: IncomingMessage,
    response: ServerResponse,
    socket: Duplex,
    head: Buffer,
  ): Promise<void> {
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    try {
      using use = await this.#ports.use(caller, target.sandbox, target.port)
      await new PortExchange(target, request, response, use, { socket, head }, this.#limits).finished
    } catch (error) {
      if (response.socket === null) socket.destroy()
      else respondError(response, toThawError(error))
    }
  }

  /** Ends connections that are no longer HTTP's, which the server does not know. */
  close(): void {
    for (const socket of this.#sockets) socket.destroy()
  }
}

/** One request on its way into a sandbox, and the answer on its way back. */
class PortExchange {
  /** Resolves when nothing of it is left. Rejects with what the client is to be told. */
  readonly finished: Promise<void>
  readonly #target: PortTarget
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #upgrade: Upgrade | null
  readonly #limits: TunnelLimits
  readonly #hasBody: boolean
  #answered = false
  #upstream: ClientRequest | undefined
  #resolve: () => void = () => undefined
  #reject: (error: ThawError) => void = () => undefined

  constructor(
    target: PortTarget,
    request: IncomingMessage,
    response: ServerResponse,
    use: PortUse,
    upgrade: Upgrade | null,
    limits: TunnelLimits,
  ) {
    this.#target = target
    this.#request = request
    this.#response = response
    this.#upgrade = upgrade
    this.#limits = limits
    const { 'content-length': length, 'transfer-encoding': coding } = request.headers
    this.#hasBody = coding !== undefined || (length !== undefined && Number(length) > 0)
    this.finished = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.#begin(use)
  }

  #begin(use: PortUse): void {
    const client = this.#upgrade?.socket ?? this.#response
    if (client.destroyed) {
      this.#resolve()
      return
    }
    // Whoever went away gets no answer: the server inside is told by the end of its connection.
    client.once('close', () => {
      if (this.#upstream?.writableFinished !== true || !this.#answered || !this.#response.writableFinished) this.#upstream?.destroy()
      this.#resolve()
    })
    // The server may just be closing a kept connection. Only what may be sent twice takes that risk.
    const repeatable = !this.#hasBody && this.#upgrade === null && safeMethods.has(this.#request.method ?? '')
    try {
      const upstream = this.#send(use, repeatable ? use.agents.kept : use.agents.fresh, repeatable ? use.agents.fresh : null)
      if (this.#hasBody) this.#request.pipe(upstream)
    } catch (cause) {
      this.#reject(new ThawError('invalid_request', 'The request cannot be passed on.', { cause }))
    }
  }

  #send(use: PortUse, agent: Agent, second: Agent | null): ClientRequest {
    const { method = 'GET' } = this.#request
    const { path, port } = this.#target
    const upstream = sendRequest({ agent, host: 'sandbox', port, method, path, headers: this.#requestHeaders(), setHost: false })
    this.#upstream = upstream
    upstream.once('response', (answer) => this.#answer(answer))
    upstream.once('upgrade', (answer, stream, head) => this.#join(answer, stream, head))
    upstream.on('error', (error) => {
      this.#request.unpipe(upstream)
      if (this.#answered || (this.#upgrade?.socket ?? this.#response).destroyed) return
      if (second !== null && upstream.reusedSocket) this.#send(use, second, null)
      else void use.explain(error).then(this.#reject)
    })
    if (!this.#hasBody) upstream.end()
    return upstream
  }

  #requestHeaders(): string[] {
    const { method = 'GET', headers } = this.#request
    const { prefix } = this.#target
    const kept = withoutOrigin(forwardedHeaders(this.#request, prefix), prefix)
    if (this.#upgrade !== null) kept.push('Connection', 'Upgrade', 'Upgrade', headers.upgrade ?? '')
    else if (this.#hasBody) {
      if (headers['content-length'] === undefined) kept.push('Transfer-Encoding', 'chunked')
    } else if (!safeMethods.has(method) && headers['content-length'] === undefined) kept.push('Content-Length', '0')
    return kept
  }

  #answer(answer: IncomingMessage): void {
    this.#answered = true
    const response = this.#response
    const { prefix } = this.#target
    const headers = withoutOrigin(endToEnd(answer.rawHeaders), prefix)
    if (prefix !== '') headers.push('Content-Security-Policy', ownOrigin)
    // A body that was not read to its end would be taken for the next request.
    if (!this.#request.complete || this.#upgrade !== null) headers.push('Connection', 'close')
    try {
      response.writeHead(answer.statusCode ?? 502, headers)
    } catch (cause) {
      answer.destroy()
      this.#reject(new ThawError('port_unreachable', 'The server inside answered with a head that is not allowed.', { cause }))
      return
    }
    let written = false
    answer.once('data', () => {
      written = true
    })
    // An answer that breaks off breaks that of the client off, so that nobody takes it for whole.
    pipeline(answer, response, () => undefined)
    // The head goes out with the first piece of the body if that is here already, else by itself.
    setImmediate(() => {
      if (!written && !response.destroyed) response.flushHeaders()
    })
  }

  /** The server inside agreed: `stream` is its end, `head` what it sent behind its answer. */
  #join(answer: IncomingMessage, stream: Duplex, head: Buffer): void {
    this.#answered = true
    stream.on('error', () => stream.destroy())
    if (this.#upgrade === null) {
      stream.destroy()
      this.#reject(new ThawError('port_unreachable', 'The server inside changed to another protocol, for which nobody had asked.'))
      return
    }
    const { socket, head: early } = this.#upgrade
    const client = socket as Socket
    if (client.destroyed) {
      stream.destroy()
      return
    }
    try {
      const text = switching(answer)
      this.#response.detachSocket(client)
      client.write(text, 'latin1')
    } catch (cause) {
      stream.destroy()
      this.#reject(new ThawError('port_unreachable', 'The server inside answered with a head that is not allowed.', { cause }))
      return
    }
    // All bytes of both directions pass the client's end, so it knows how long there were none.
    client.setTimeout(this.#limits.idleMs, () => client.destroy())
    client.once('close', () => stream.destroy())
    stream.once('close', () => client.destroySoon())
    if (isWebSocket(this.#request)) joinWebSocket({ stream: client, early }, { stream, early: head }, this.#limits)
    else joinBytes({ stream: client, early }, { stream, early: head })
  }
}

function joinBytes(client: { stream: Duplex; early: Buffer }, server: { stream: Duplex; early: Buffer }): void {
  if (server.early.length > 0) client.stream.write(server.early)
  if (client.early.length > 0) server.stream.write(client.early)
  client.stream.pipe(server.stream)
  server.stream.pipe(client.stream)
}

function isWebSocket({ headers }: IncomingMessage): boolean {
  return headers.upgrade?.toLowerCase() === 'websocket'
}

/** Name and value by turns. A host name of its own is an origin of its own: there, nothing is left out. */
function withoutOrigin(headers: string[], prefix: string): string[] {
  if (prefix === '') return headers
  const kept: string[] = []
  for (let i = 0; i < headers.length; i += 2) {
    const name = headers[i] as string
    if (!ofOrigin.has(name.toLowerCase())) kept.push(name, headers[i + 1] as string)
  }
  return kept
}

/** The head of a 101 answer. Throws for what must not stand in one. */
function switching(answer: IncomingMessage): string {
  const headers = [...endToEnd(answer.rawHeaders), 'Connection', 'Upgrade', 'Upgrade', answer.headers.upgrade ?? 'websocket']
  let text = `HTTP/1.1 101 ${STATUS_CODES[101]}\r\n`
  for (let i = 0; i < headers.length; i += 2) {
    checkHeader(headers[i] as string, headers[i + 1] as string)
    text += `${headers[i]}: ${headers[i + 1]}\r\n`
  }
  return `${text}\r\n`
}
