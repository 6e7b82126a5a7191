import { ThawError } from '@thaw/protocol'
import type { AgentClient } from '../../agent/agent.ts'
import type { SandboxRow, SandboxStore } from '../../store/store.ts'
import type { AgentSandbox } from './agent-sandbox.ts'
import { SandboxEvents } from './stream-events.ts'

/** A sandbox that has not ended: its row, and what runs of it. */
export class LiveSandbox {
  row: SandboxRow
  /** null while it is being created, and while it is hibernated. */
  running: AgentSandbox | null = null
  /** Calls that use it at this moment. */
  users = 0
  /** Monotonic milliseconds of its last use. */
  usedAt = performance.now()
  /** Abandons its creation. */
  readonly abandoned = new AbortController()
  /** What happens in it, for those who listen. */
  readonly events = new SandboxEvents(() => (this.row.state === 'running' ? (this.running?.agent ?? null) : null))
  /** Called before it falls asleep, for whoever would wait for an answer in vain. */
  readonly onSleep = new Set<() => void>()
  readonly #store: SandboxStore

  constructor(row: SandboxRow, store: SandboxStore) {
    this.row = row
    this.#store = store
  }

  get agent(): AgentClient {
    if (this.running === null) throw new ThawError('sandbox_unavailable', `The sandbox ${this.row.id} is ${this.row.state}.`)
    return this.running.agent
  }

  /** Changes what is kept of it: on disk first. */
  async change(change: Partial<Omit<SandboxRow, 'id' | 'tenant'>>): Promise<void> {
    await this.#store.update(this.row.id, change)
    const before = this.row.state
    this.row = { ...this.row, ...change }
    const { state } = this.row
    if (state !== before && state !== 'creating')
      this.events.emit({ type: 'process_event', event: state === 'running' ? 'resumed' : state })
  }
}

/** A use of a sandbox: while it is held, the sandbox does not fall asleep. */
export class Lease implements Disposable {
  readonly sandbox: LiveSandbox
  #held = true

  constructor(sandbox: LiveSandbox) {
    this.sandbox = sandbox
    sandbox.users++
    sandbox.usedAt = performance.now()
  }

  get agent(): AgentClient {
    return this.sandbox.agent
  }

  release(): void {
    if (!this.#held) return
    this.#held = false
    this.sandbox.users--
    this.sandbox.usedAt = performance.now()
  }

  [Symbol.dispose](): void {
    this.release()
  }
}
