import type { Agent, IncomingMessage, ServerResponse } from 'node:http'
import type { Duplex } from 'node:stream'
import { DialAgent } from '../control/dial-agent.ts'
import type { Instance } from '../control/instance.ts'
import type { Borrower, Loan } from '../control/loan.ts'
import type { RunRequest } from '../control/run.ts'
import type { Version } from '../control/version.ts'
import { Exchange } from './exchange.ts'
import type { ErrorReport } from './respond.ts'
import { Tunnel, type TunnelLimits } from './upgrade.ts'

export interface ProxyParts extends ErrorReport {
  borrow(version: Version, request: RunRequest, borrower: Borrower): Loan
  websocket: TunnelLimits
}

/** Where a request goes, as the web server sees it. */
export interface Target {
  /** With its query. */
  path: string
  /** What was cut off in front of the path. */
  prefix: string
}

export interface Agents {
  /** Keeps connections between requests. */
  kept: Agent
  fresh: Agent
}

/** Web servers close idle connections after some seconds: none of ours is older, so that few requests meet a closing one. */
const keptMs = 1000

/** Passes requests on to the web servers of functions (the http contract), as they come and without keeping anything. */
export class WebProxy {
  readonly #parts: ProxyParts
  readonly #agents = new WeakMap<Instance, Agents>()
  readonly #sockets = new Set<Duplex>()

  constructor(parts: ProxyParts) {
    this.#parts = parts
  }

  request(
    version: Version,
    target: Target,
    how: Pick<RunRequest, 'trigger' | 'timeoutMs'>,
    request: IncomingMessage,
    response: ServerResponse,
  ): void {
    const exchange = new Exchange(version.functionName, target, request, response, this.#parts)
    const loan = this.#parts.borrow(
      version,
      { ...how, bodyBytes: 0 },
      {
        granted: (granted) => exchange.begin(granted, this.#agentsOf(granted.instance)),
        revoked: (error, info) => exchange.revoked(error, info),
      },
    )
    // The client went away before it had the whole answer.
    response.once('close', () => {
      if (!response.writableFinished) loan.cancel()
    })
  }

  /** `response` writes to `socket`, until the function takes the socket over. */
  upgrade(version: Version, target: Target, request: IncomingMessage, response: ServerResponse, socket: Duplex, head: Buffer): void {
    this.#sockets.add(socket)
    socket.once('close', () => this.#sockets.delete(socket))
    const tunnel = new Tunnel(socket, head, this.#parts.websocket)
    const exchange = new Exchange(version.functionName, target, request, response, this.#parts, tunnel)
    const loan = this.#parts.borrow(
      version,
      { trigger: 'http', bodyBytes: 0 },
      {
        granted: (granted) => exchange.begin(granted, this.#agentsOf(granted.instance)),
        revoked: (error, info) => exchange.revoked(error, info),
      },
    )
    socket.once('close', () => {
      if (!tunnel.joined) loan.cancel()
    })
  }

  close(): void {
    for (const socket of this.#sockets) socket.destroy()
  }

  #agentsOf(instance: Instance): Agents {
    let agents = this.#agents.get(instance)
    if (agents === undefined) {
      const dial = () => instance.dial()
      agents = { kept: new DialAgent(dial, { keepAlive: true, timeout: keptMs }), fresh: new DialAgent(dial, { keepAlive: false }) }
      this.#agents.set(instance, agents)
    }
    return agents
  }
}
