import { setTimeout as delay } from 'node:timers/promises'
import { type StreamEvent, ThawError } from '@thaw/protocol'
import type { AgentClient } from '../../agent/agent.ts'
import type { Caller } from '../caller.ts'
import type { Lease } from './live-sandbox.ts'
import { endedError } from './lives.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { SandboxEvents } from './stream-events.ts'

/** The client's end of a stream. */
export interface StreamOutput {
  send(event: StreamEvent): void
  /** Resolves when the client has taken enough that there is room for more; null: there is room. */
  room(): Promise<void> | null
  /** Takes nothing more from the client, until what it returns is called. */
  holdInput(): () => void
}

/** How long a sandbox that runs may not answer. */
const awayMs = 60_000
const againMs = 50
/** How often a sandbox that sleeps, or is just changing, is looked at. */
const asleepMs = 100
const healthMs = 1000

/** What the processes and watches of one stream share: the way to the client, and the way to the agent. */
export class StreamLine {
  readonly encoding: 'utf8' | 'base64'
  readonly #sandboxes: Sandboxes
  readonly #caller: Caller
  readonly lease: Lease
  readonly #output: StreamOutput
  readonly #onEnded: (id: string) => void

  constructor(parts: {
    encoding: 'utf8' | 'base64'
    sandboxes: Sandboxes
    caller: Caller
    lease: Lease
    output: StreamOutput
    /** An id is free again. */
    onEnded: (id: string) => void
  }) {
    this.encoding = parts.encoding
    this.#sandboxes = parts.sandboxes
    this.#caller = parts.caller
    this.lease = parts.lease
    this.#output = parts.output
    this.#onEnded = parts.onEnded
  }

  get events(): SandboxEvents {
    return this.lease.sandbox.events
  }

  send(event: StreamEvent): void {
    this.#output.send(event)
  }

  ended(id: string): void {
    this.#onEnded(id)
  }

  async room(): Promise<void> {
    const room = this.#output.room()
    if (room !== null) await room
  }

  holdInput(): () => void {
    return this.#output.holdInput()
  }

  /** The agent of the sandbox, which is woken where it sleeps. */
  async agent(): Promise<AgentClient> {
    const { sandbox } = this.lease
    if (sandbox.row.state === 'running' && sandbox.running !== null) return sandbox.agent
    using woken = await this.#sandboxes.use(this.#caller, sandbox.row.id)
    return woken.agent
  }

  /** Resolves when the agent answers again after its connections ended. It is not woken for that. Rejects when it is over. */
  async whenBack(signal: AbortSignal): Promise<void> {
    const { sandbox } = this.lease
    let awake = performance.now()
    while (performance.now() - awake < awayMs) {
      const { row, running } = sandbox
      if (row.ended_at !== null) throw endedError(row)
      if (row.state !== 'running' || running === null) {
        await delay(asleepMs, undefined, { signal })
        awake = performance.now()
        continue
      }
      try {
        await running.agent.health(AbortSignal.any([signal, AbortSignal.timeout(healthMs)]))
        await delay(againMs, undefined, { signal })
        return
      } catch {
        await delay(againMs, undefined, { signal })
      }
    }
    throw new ThawError('sandbox_unavailable', 'The agent of the sandbox does not answer any more.')
  }

  /** A connection that broke may be the end of the sandbox, which is told a moment later. */
  async why(error: unknown): Promise<unknown> {
    if (!(error instanceof ThawError) || error.code !== 'sandbox_unavailable') return error
    const { sandbox } = this.lease
    for (let i = 0; i < 20 && sandbox.row.ended_at === null; i++) await delay(againMs)
    return sandbox.row.ended_at === null ? error : endedError(sandbox.row)
  }
}
