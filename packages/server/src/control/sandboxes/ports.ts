import { Agent, type ClientRequestArgs } from 'node:http'
import type { Duplex } from 'node:stream'
import { ThawError } from '@thaw/protocol'
import type { AgentClient } from '../../agent/agent.ts'
import type { Caller } from '../caller.ts'
import type { Lease } from './live-sandbox.ts'
import type { Sandboxes } from './sandboxes.ts'

/** Connections to the ports of one sandbox, for requests that name `port`. */
export interface PortAgents {
  /** Keeps connections between requests. */
  kept: Agent
  fresh: Agent
}

/** Web servers close idle connections after some seconds: none of ours is older, so that few requests meet a closing one. */
const keptMs = 1000
/** How long the agent may take to show that it, at least, still lives. */
const healthMs = 1000

/** Leads to the ports inside of sandboxes that these list. */
export class SandboxPorts {
  readonly #sandboxes: Sandboxes
  readonly #agents = new WeakMap<AgentClient, PortAgents>()

  constructor(sandboxes: Sandboxes) {
    this.#sandboxes = sandboxes
  }

  /** Wakes the sandbox and keeps it awake. Throws `port_not_listed`, and what `Sandboxes.use` throws. */
  async use(caller: Caller, idOrName: string, port: number): Promise<PortUse> {
    const { id, ports } = await this.#sandboxes.get(caller, idOrName)
    if (ports !== 'all' && !ports.includes(port)) throw new ThawError('port_not_listed', `The sandbox ${id} does not list port ${port}.`)
    const lease = await this.#sandboxes.use(caller, id)
    try {
      return new PortUse(lease, port, this.#agentsOf(lease.agent))
    } catch (error) {
      lease.release()
      throw error
    }
  }

  #agentsOf(agent: AgentClient): PortAgents {
    let agents = this.#agents.get(agent)
    if (agents === undefined) {
      agents = {
        kept: new TunnelAgent(agent, { keepAlive: true, timeout: keptMs }),
        fresh: new TunnelAgent(agent, { keepAlive: false }),
      }
      this.#agents.set(agent, agents)
    }
    return agents
  }
}

/** A use of a port: while it is held, the sandbox does not fall asleep. */
export class PortUse implements Disposable {
  readonly agents: PortAgents
  readonly #lease: Lease
  readonly #port: number

  constructor(lease: Lease, port: number, agents: PortAgents) {
    this.#lease = lease
    this.#port = port
    this.agents = agents
  }

  /** A byte stream to the port. `port_unreachable` when nobody listens there. */
  async connect(): Promise<Duplex> {
    return this.#lease.agent.tunnel(this.#port)
  }

  /** What it means that a connection broke: that of the server inside, or of the whole sandbox. */
  async explain(error: unknown): Promise<ThawError> {
    if (error instanceof ThawError && error.code === 'port_unreachable') return error
    const { sandbox } = this.#lease
    try {
      await sandbox.agent.health(AbortSignal.timeout(healthMs))
    } catch (cause) {
      return new ThawError(
        'sandbox_unavailable',
        `The sandbox ${sandbox.row.id} ended, or stopped answering, in the middle of the request.`,
        {
          fix: 'Look at its state with GET /v1/sandboxes/{id}.',
          cause,
        },
      )
    }
    const isHttp = (error as { code?: unknown } | null)?.code?.toString().startsWith('HPE_') !== true
    const what = isHttp ? 'ended the connection before it had answered' : 'did not answer in HTTP/1.1'
    return new ThawError('port_unreachable', `The server on port ${this.#port} of the sandbox ${what}.`, {
      fix: 'Look at what the server inside prints.',
      cause: error,
    })
  }

  [Symbol.dispose](): void {
    this.#lease.release()
  }
}

/** Connects to the port that a request names, inside. Keeps connections apart by port, as every Agent does. */
class TunnelAgent extends Agent {
  readonly #agent: AgentClient

  constructor(agent: AgentClient, options: { keepAlive: boolean; timeout?: number }) {
    super(options)
    this.#agent = agent
  }

  createConnection({ port }: ClientRequestArgs, callback?: (error: Error | null, stream: Duplex) => void): undefined {
    this.#agent.tunnel(Number(port)).then(
      (stream) => callback?.(null, stream),
      // An error comes without a stream, which the type does not know.
      (error: Error) => (callback as ((error: Error) => void) | undefined)?.(error),
    )
  }
}
