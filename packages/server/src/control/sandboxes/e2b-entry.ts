import type { ProcessStart } from '../../agent/agent.ts'
import type { SandboxRow } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import { followProcess } from './follow.ts'
import type { Lease } from './live-sandbox.ts'

/** A process to start, or one to join. */
export type E2bProcess = ProcessStart | { pid: number }

/** Traffic that is inside of a sandbox. While it is held, the sandbox does not fall asleep by itself. */
export class E2bEntry implements Disposable {
  readonly #lease: Lease
  readonly #onSleep: () => void

  constructor(lease: Lease, onSleep: () => void) {
    this.#lease = lease
    this.#onSleep = onSleep
    lease.sandbox.onSleep.add(onSleep)
  }

  get connections() {
    return this.#lease.agent.connections
  }

  /** What the server itself shows to the agent. */
  get agentHeaders(): Record<string, string> {
    return this.#lease.agent.headers
  }

  get caller(): Caller {
    return ownerOf(this.#lease.sandbox.row)
  }

  /** It has ended, or sleeps. */
  get isOver(): boolean {
    return this.#lease.sandbox.row.state !== 'running'
  }

  /** All that happens to a process, across snapshots of the sandbox. */
  async *follow(
    what: E2bProcess,
    options: { user: string | undefined; headers: Record<string, string>; signal: AbortSignal },
  ): AsyncGenerator<object> {
    for await (const { event = {} } of followProcess(this.#lease, what, options)) {
      const { start, data, end } = event
      // Where its output began is a word of thaw alone.
      if (start !== undefined) yield { event: { start: { pid: start.pid } } }
      // Silence is passed on too: proxies and clients close connections on which nothing comes.
      else yield data === undefined && end === undefined ? { event: { keepalive: {} } } : { event }
    }
  }

  [Symbol.dispose](): void {
    this.#lease.sandbox.onSleep.delete(this.#onSleep)
    this.#lease.release()
  }
}

/** Traffic without a key comes on behalf of whoever owns the sandbox. */
export function ownerOf({ tenant }: SandboxRow): Caller {
  return { tenant, role: 'member', keyId: null }
}
