import type { StreamEvent } from '@thaw/protocol'
import type { AgentClient } from '../../agent/agent.ts'
import { processEventSchema, processListSchema, understand } from '../../agent/messages.ts'
import { type ProcessEnd, processEnd } from './process-end.ts'

export type SandboxEvent = Extract<StreamEvent, { type: 'process_event' }>

/** How often processes are looked for that nobody here started or follows. */
const lookMs = 1000
const endMs = 2000
const shownArguments = 32
const shownCharacters = 256

/**
 * What happens in one sandbox, for those who listen. Whoever starts a process here reports its start and its end. The rest,
 * such as those of clients that speak to the agent themselves, or whose client has gone, are looked for while somebody listens.
 */
export class SandboxEvents {
  /** Null while the sandbox does not run. */
  readonly #agent: () => AgentClient | null
  readonly #listeners = new Set<(event: SandboxEvent) => void>()
  /** Processes whose start was reported, or that ran before anybody listened. Kept up to date while somebody listens. */
  readonly #known = new Set<number>()
  /** Those that ended while the agent was being asked. */
  readonly #endedMeanwhile = new Set<number>()
  #timer: NodeJS.Timeout | undefined
  #asking = false
  #primed = false

  constructor(agent: () => AgentClient | null) {
    this.#agent = agent
  }

  /** Returns how to stop listening. */
  listen(listener: (event: SandboxEvent) => void): () => void {
    this.#listeners.add(listener)
    if (this.#timer === undefined) {
      this.#primed = false
      this.#known.clear()
      this.#timer = setInterval(() => void this.#look(), lookMs).unref()
      void this.#look()
    }
    return () => {
      this.#listeners.delete(listener)
      if (this.#listeners.size > 0) return
      clearInterval(this.#timer)
      this.#timer = undefined
    }
  }

  emit(event: SandboxEvent): void {
    for (const listener of [...this.#listeners]) listener(event)
  }

  started(pid: number, command: string[]): void {
    if (this.#listeners.size === 0 || this.#known.has(pid)) return
    this.#known.add(pid)
    this.emit({ type: 'process_event', event: 'started', pid, command: shown(command) })
  }

  ended(pid: number, end: ProcessEnd | null): void {
    if (this.#listeners.size === 0) return
    const isNews = this.#known.delete(pid) || !this.#primed
    if (this.#asking) this.#endedMeanwhile.add(pid)
    if (isNews) this.emit({ type: 'process_event', event: 'ended', pid, exit_code: end?.exit_code ?? null, signal: end?.signal ?? null })
  }

  async #look(): Promise<void> {
    const agent = this.#agent()
    if (agent === null || this.#asking) return
    this.#asking = true
    this.#endedMeanwhile.clear()
    const before = [...this.#known]
    try {
      const answer = await agent.unary('process.Process/List', {}, { signal: AbortSignal.timeout(lookMs * 5) })
      const { processes } = understand(processListSchema, answer)
      const running = new Set(processes.map(({ pid }) => pid))
      for (const { pid, config } of processes) {
        if (this.#endedMeanwhile.has(pid)) continue
        if (this.#primed) this.started(pid, [config.cmd, ...config.args])
        else this.#known.add(pid)
      }
      this.#primed = true
      for (const pid of before) if (!running.has(pid) && this.#known.has(pid)) void this.#tellEnd(agent, pid)
    } catch {
      // An agent that does not answer is asked again. What became of its sandbox is an event of its own.
    } finally {
      this.#asking = false
    }
  }

  /** The agent keeps for a while how a process ended. */
  async #tellEnd(agent: AgentClient, pid: number): Promise<void> {
    let end: ProcessEnd | null = null
    try {
      const connected = agent.stream('process.Process/Connect', { process: { pid } }, { signal: AbortSignal.timeout(endMs) })
      for await (const message of connected) {
        const { event } = understand(processEventSchema, message)
        if (event?.end === undefined) continue
        end = processEnd(event.end)
        break
      }
    } catch {
      // It was forgotten already: that it ended is known all the same.
    }
    this.ended(pid, end)
  }
}

function shown(command: string[]): string[] {
  return command.slice(0, shownArguments).map((text) => (text.length > shownCharacters ? `${text.slice(0, shownCharacters)}…` : text))
}
