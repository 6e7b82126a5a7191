import { timingSafeEqual } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { ThawError, toThawError } from '@thaw/protocol'
import { type E2bSandboxes, type E2bView, e2bState } from '../../control/sandboxes/e2b.ts'
import type { E2bBuilds } from '../../control/sandboxes/e2b-builds.ts'
import type { E2bEntry } from '../../control/sandboxes/e2b-entry.ts'
import type { Admission } from '../auth.ts'
import type { SandboxHosts } from '../sandbox-hosts.ts'
import type { PortProxy } from '../sandbox-ports.ts'
import { isAgentPath, isE2bHeader, passToAgent } from './agent-pass.ts'
import { gatewayMessages, respondE2bError, respondGatewayError, respondJson } from './errors.ts'
import { isProcessStream, readMessage, readProcess, streamProcess } from './process-stream.ts'

/** The port that clients of E2B know the agent by. */
export const agentPort = 49_983

export const uploadPrefix = '/e2b/uploads/'
const uploadPath = /^\/e2b\/uploads\/([A-Za-z0-9_-]{1,64})$/

export interface E2bTrafficParts {
  e2b: E2bSandboxes
  builds: E2bBuilds
  hosts: SandboxHosts
  ports: PortProxy
  admission: Admission
}

interface Target {
  id: string
  port: number
}

/**
 * What clients of E2B send into sandboxes: to the agent, which knows its own token, and to ports. The sandbox is named by the
 * headers E2b-Sandbox-Id and E2b-Sandbox-Port, or by the host name `{port}-{id}.{domain}`. Such requests bring no API key.
 */
export class E2bTraffic {
  readonly #parts: E2bTrafficParts

  constructor(parts: E2bTrafficParts) {
    this.#parts = parts
  }

  /** False: the request is somebody else's. */
  handle(request: IncomingMessage, response: ServerResponse): boolean {
    const upload = uploadPath.exec(request.url ?? '')
    if (upload !== null && request.method === 'PUT') {
      void this.#upload(upload[1] as string, request, response)
      return true
    }
    const target = this.#target(request)
    if (target === null) return false
    void this.#serve(target, request, response, (view) => this.#request(target, view, request, response))
    return true
  }

  /** As `handle`, for a connection that asks for another protocol. */
  upgrade(request: IncomingMessage, response: ServerResponse, socket: Duplex, head: Buffer): boolean {
    const target = this.#target(request)
    if (target === null) return false
    void this.#serve(target, request, response, async () => {
      using entry = await this.#enter(target, new AbortController(), true)
      if (entry === null) return respondGatewayError(request, response, target.id, gatewayMessages.notFound)
      const { ports } = this.#parts
      await ports.upgrade(entry.caller, portTarget(target, request), withoutE2b(request), response, socket, head)
    })
    return true
  }

  /** Files for a template, by a token that a client with a key was given. */
  async #upload(token: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const refused = this.#parts.admission.passage(request, true)
      if (refused !== null) throw refused
      await this.#parts.builds.receive(token, request)
      respondJson(request, response, 200, {})
    } catch (error) {
      respondE2bError(request, response, error)
    }
  }

  #target(request: IncomingMessage): Target | null {
    const { 'e2b-sandbox-id': id, 'e2b-sandbox-port': port } = request.headers
    if (typeof id === 'string') {
      // Clients of E2B may add their cluster behind the id.
      return { id: id.slice(0, 64), port: typeof port === 'string' && /^[0-9]{1,5}$/.test(port) ? Number(port) : agentPort }
    }
    try {
      const hosted = this.#parts.hosts.target(request.headers.host, '/')
      // Names of ports are served to holders of keys for all sandboxes, and openly for those that E2B's clients made.
      if (hosted === null || (hosted.port !== agentPort && !this.#parts.e2b.find(hosted.sandbox)?.facet)) return null
      return { id: hosted.sandbox, port: hosted.port }
    } catch {
      return null
    }
  }

  async #serve(
    target: Target,
    request: IncomingMessage,
    response: ServerResponse,
    answer: (view: E2bView) => Promise<void> | void,
  ): Promise<void> {
    try {
      const view = this.#parts.e2b.find(target.id)
      const needsKey = view !== null && target.port !== agentPort && !mayUsePorts(view, request)
      // No page of another origin may use an agent that asks for no token. Ports are for all pages.
      const checkOrigin = target.port === agentPort && view?.agentToken === null
      const refused = needsKey ? this.#keyed(view, request, response) : this.#parts.admission.passage(request, checkOrigin)
      if (refused !== null) respondE2bError(request, response, refused)
      else if (view === null) respondGatewayError(request, response, target.id, gatewayMessages.notFound)
      else await answer(view)
    } catch (error) {
      respondE2bError(request, response, error)
    }
  }

  /** Ports that are not open to everyone are open to keys of the tenant. */
  #keyed(view: E2bView, request: IncomingMessage, response: ServerResponse): ThawError | null {
    const caller = this.#parts.admission.admit(request, response)
    if (caller instanceof ThawError) return caller
    return this.#parts.e2b.isOf(caller, view.item.id) ? null : new ThawError('sandbox_not_found')
  }

  async #request(target: Target, view: E2bView, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [path = '/'] = (request.url ?? '/').split('?')
    if (target.port === agentPort) {
      if (!isAgentPath(path))
        return respondJson(request, response, 404, { code: 404, message: `There is nothing at ${path.slice(0, 200)}.` })
    }
    const left = new AbortController()
    using entry = await this.#enter(target, left, target.port !== agentPort || mayWake(view, path, request))
    if (entry === null) return respondGatewayError(request, response, target.id, gatewayMessages.notFound)
    if (target.port !== agentPort) {
      await this.#parts.ports.request(entry.caller, portTarget(target, request), withoutE2b(request), response)
      return
    }
    const how = { path: request.url ?? '/', addToken: view.agentToken === null, left: left.signal }
    try {
      if (!isProcessStream(path, request) || !mayUseAgent(view, request)) return await passToAgent(entry, how, request, response)
      const body = await readMessage(request)
      const what = readProcess(path, body)
      if (what === null) await passToAgent(entry, { ...how, body }, request, response)
      else await streamProcess(entry, what, left, request, response)
    } catch (error) {
      if (error instanceof ThawError && error.code === 'payload_too_large') throw error
      const alive = this.#parts.e2b.find(target.id)
      const isUp = alive !== null && e2bState(alive.item) === 'running'
      if (isUp) respondGatewayError(request, response, target.id, gatewayMessages.portClosed, target.port)
      else respondGatewayError(request, response, target.id, gatewayMessages.notFound)
    }
  }

  /** Null: there is none, or it sleeps and wants to be asked. */
  async #enter(target: Target, left: AbortController, wake: boolean): Promise<E2bEntry | null> {
    try {
      return await this.#parts.e2b.enter(target.id, () => left.abort(), wake)
    } catch (error) {
      const { code } = toThawError(error)
      if (code === 'sandbox_not_found' || code === 'sandbox_not_running') return null
      throw error
    }
  }
}

/** What may not use the agent is refused by it, in its own words. */
function mayUseAgent({ agentToken }: E2bView, { headers }: IncomingMessage): boolean {
  return agentToken === null || isSecret(headers['x-access-token'], agentToken)
}

/** To ask whether it runs must not make it run, nor may whoever the agent would refuse. Signed addresses are for the agent to judge. */
function mayWake(view: E2bView, path: string, request: IncomingMessage): boolean {
  return path !== '/health' && (mayUseAgent(view, request) || /[?&]signature=/.test(request.url ?? ''))
}

function isSecret(shown: unknown, secret: string): boolean {
  const [one, other] = [Buffer.from(typeof shown === 'string' ? shown : ''), Buffer.from(secret)]
  return one.length === other.length && timingSafeEqual(one, other)
}

/** Whether a request brings all that the ports of a sandbox ask for. */
function mayUsePorts({ trafficToken }: E2bView, { headers }: IncomingMessage): boolean {
  return trafficToken === null || isSecret(headers['e2b-traffic-access-token'], trafficToken)
}

function portTarget({ id, port }: Target, request: IncomingMessage) {
  return { sandbox: id, port, path: request.url ?? '/', prefix: '' }
}

/** The request as servers inside are to see it. */
function withoutE2b(request: IncomingMessage): IncomingMessage {
  const kept: string[] = []
  const { rawHeaders } = request
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (!isE2bHeader((rawHeaders[i] as string).toLowerCase())) kept.push(rawHeaders[i] as string, rawHeaders[i + 1] as string)
  }
  request.rawHeaders = kept
  return request
}
