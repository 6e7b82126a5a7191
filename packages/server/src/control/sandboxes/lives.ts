import { setTimeout as delay } from 'node:timers/promises'
import { type BootMethod, type SandboxState, ThawError, toThawError } from '@thaw/protocol'
import type { SandboxRow, SandboxStore } from '../../store/store.ts'
import type { Logger } from '../../telemetry/log.ts'
import type { Budget } from '../budget.ts'
import type { Drivers } from '../drivers.ts'
import { KeyedLock } from '../keyed-lock.ts'
import { AgentSandbox } from './agent-sandbox.ts'
import { reclaim } from './capture.ts'
import type { Hibernation } from './hibernation.ts'
import { LiveSandbox } from './live-sandbox.ts'
import type { SandboxStarter } from './sandbox-starter.ts'

export interface LivesParts {
  store: SandboxStore
  drivers: Drivers
  budget: Budget
  hibernation: Hibernation
  starter: SandboxStarter
  /** Gives up something that waits in a pool; false: there is nothing. */
  makeRoom: () => Promise<boolean>
  log: Logger
}

export interface Started {
  sandbox: AgentSandbox
  bootMethod: BootMethod
}

/** A sandbox that an earlier server left, as its driver found it. */
interface Found {
  sandbox: LiveSandbox
  running: AgentSandbox
  state: 'running' | 'paused'
}

/** How long a start waits for the agents of sandboxes that were there before. */
const patienceMs = 3000
/** How often the removal of a sandbox that ended is tried again. */
const removalPauseMs = 1000

/**
 * The sandboxes that have not ended, and how they change: created, paused, hibernated, woken, ended. Every change of one
 * sandbox happens under its lock.
 */
export class Lives {
  readonly #parts: LivesParts
  readonly #live = new Map<string, LiveSandbox>()
  readonly #locks = new KeyedLock()
  readonly #closing = new AbortController()

  constructor(parts: LivesParts) {
    this.#parts = parts
  }

  get closed(): boolean {
    return this.#closing.signal.aborted
  }

  find(id: string): LiveSandbox | undefined {
    return this.#live.get(id)
  }

  all(): Iterable<LiveSandbox> {
    return this.#live.values()
  }

  /** Runs a change of one sandbox, after those that came before. */
  locked<Result>(sandbox: LiveSandbox, change: () => Promise<Result>): Promise<Result> {
    return this.#locks.run(sandbox.row.id, change)
  }

  /**
   * Takes over what an earlier server left. An agent that does not answer holds up neither the others nor the start of the
   * server: it is tried on behind it, and its sandbox can be deleted all the while.
   */
  async open(): Promise<void> {
    const rows = await this.#parts.store.live()
    const found = await Promise.all(rows.map((row) => this.#find(row)))
    const taken = found.filter((one) => one !== null).map((one) => this.locked(one.sandbox, () => this.#take(one)))
    const patience = new AbortController()
    await Promise.race([Promise.all(taken), delay(patienceMs, undefined, { signal: patience.signal })])
    patience.abort()
  }

  /** What runs of a row. Null: nothing does, and the row says so. */
  async #find(row: SandboxRow): Promise<Found | null> {
    const sandbox = new LiveSandbox(row, this.#parts.store)
    if (row.state === 'hibernated') {
      this.#live.set(row.id, sandbox)
      return null
    }
    const driver = this.#parts.drivers.all().find((candidate) => candidate.kind === row.driver)
    const status = row.state === 'creating' ? null : await driver?.inspect(row.id).catch(() => null)
    if (driver === undefined || !status || status.state === 'exited') {
      await driver?.destroy(row.id).catch(() => undefined)
      const message = row.state === 'creating' ? 'The server ended while it was being created.' : 'It was gone when the server started.'
      await sandbox.change({ state: 'failed', ended_at: Date.now(), error: { code: 'sandbox_not_running', message } })
      return null
    }
    this.#parts.budget.force(row.spec.resources.memory_mib)
    this.#live.set(row.id, sandbox)
    const running = new AgentSandbox(row.id, driver, 0, row.access_token)
    this.#watch(sandbox, running)
    return { sandbox, running, state: status.state }
  }

  async #take({ sandbox, running, state }: Found): Promise<void> {
    const { row } = sandbox
    try {
      await this.#takeOver(sandbox, running, state)
      this.#parts.log.info({ sandbox: row.id, state: sandbox.row.state }, 'sandbox taken over')
    } catch (error) {
      if (sandbox.running !== running || sandbox.abandoned.signal.aborted || this.closed) return
      this.#parts.log.warn({ err: error, sandbox: row.id }, 'a sandbox of an earlier server cannot be reached; it can be deleted')
    }
  }

  /** The earlier server may have ended in the middle of a change. */
  async #takeOver({ row, abandoned }: LiveSandbox, running: AgentSandbox, found: 'running' | 'paused'): Promise<void> {
    if (row.state === 'paused' && found === 'paused') return
    if (found === 'paused') await running.driver.resume?.(row.id)
    const signal = AbortSignal.any([abandoned.signal, this.#closing.signal])
    await reclaim(running, await this.#parts.starter.imageOf(row), row, signal)
    if (row.state === 'paused') await running.driver.pause?.(row.id)
  }

  /**
   * Makes a sandbox of a row in state `creating`: `start` starts it. When that fails, the row says why, and nothing else is
   * left. The caller has reserved its memory; it is given back with the end of the sandbox.
   */
  async create(row: SandboxRow, start: (signal: AbortSignal) => Promise<Started>): Promise<SandboxRow> {
    const sandbox = new LiveSandbox(row, this.#parts.store)
    try {
      if (this.closed) throw new ThawError('shutting_down')
      await this.#parts.store.create(row)
    } catch (error) {
      this.#parts.budget.give(row.spec.resources.memory_mib)
      throw error
    }
    this.#live.set(row.id, sandbox)
    return this.locked(sandbox, async () => {
      const { signal } = sandbox.abandoned
      try {
        signal.throwIfAborted()
        const started = await start(signal)
        await this.#begin(sandbox, started)
        return sandbox.row
      } catch (error) {
        const failure = signal.aborted
          ? new ThawError('sandbox_not_running', 'The sandbox was deleted while it was being created.')
          : toThawError(error)
        await this.end(sandbox, 'failed', failure)
        throw failure
      }
    })
  }

  async #begin(sandbox: LiveSandbox, { sandbox: running, bootMethod }: Started): Promise<void> {
    const now = Date.now()
    const { timeout_ms } = sandbox.row.spec
    try {
      await sandbox.change({
        state: 'running',
        boot_method: bootMethod,
        started_at: now,
        ends_at: timeout_ms === null ? null : now + timeout_ms,
      })
    } catch (error) {
      await running.destroy()
      throw error
    }
    this.#watch(sandbox, running)
  }

  /** Called under the lock. */
  async wake(sandbox: LiveSandbox): Promise<void> {
    const { row, running } = sandbox
    switch (row.state) {
      case 'running':
        return
      case 'paused':
        if (running === null) throw new ThawError('sandbox_unavailable')
        await running.driver.resume?.(row.id)
        await sandbox.change({ state: 'running', boot_method: 'warm' })
        return
      case 'hibernated': {
        await this.reserve(row.spec.resources.memory_mib)
        let woken: AgentSandbox
        try {
          woken = await this.#parts.hibernation.restore(sandbox)
        } catch (error) {
          this.#parts.budget.give(row.spec.resources.memory_mib)
          throw error
        }
        const slept = row.hibernation_id
        try {
          await sandbox.change({ state: 'running', boot_method: 'warm', hibernation_id: null })
        } catch (error) {
          await woken.destroy()
          this.#parts.budget.give(row.spec.resources.memory_mib)
          throw error
        }
        this.#watch(sandbox, woken)
        // What was woken goes its own way: the image of its sleep is of no use any more.
        if (slept !== null) void this.#parts.hibernation.drop(slept)
        return
      }
      default:
        throw endedError(row)
    }
  }

  /** Called under the lock. */
  async pause(sandbox: LiveSandbox): Promise<void> {
    const { row, running } = sandbox
    if (row.state === 'paused' || row.state === 'hibernated') return
    if (running === null) throw endedError(row)
    if (running.driver.pause === undefined) {
      throw new ThawError('sandbox_state_conflict', `The driver ${row.driver} cannot pause sandboxes.`, { fix: 'Choose another driver.' })
    }
    for (const leave of [...sandbox.onSleep]) leave()
    await running.driver.pause(row.id)
    await sandbox.change({ state: 'paused', used_at: Date.now() })
  }

  /** Called under the lock. Memory goes to disk, and no process is left. When that fails, the sandbox is as it was. */
  async hibernate(sandbox: LiveSandbox): Promise<void> {
    const { row, running } = sandbox
    if (row.state === 'hibernated') return
    if (running === null) throw endedError(row)
    for (const leave of [...sandbox.onSleep]) leave()
    sandbox.running = null
    let id: string
    try {
      id = await this.#parts.hibernation.capture(sandbox, running)
      await sandbox.change({ state: 'hibernated', hibernation_id: id, used_at: Date.now() })
    } catch (error) {
      sandbox.running = running
      const status = await running.driver.inspect(row.id).catch(() => null)
      if (status === null || status.state === 'exited') await this.end(sandbox, 'failed', toThawError(error))
      throw error
    }
    await running.destroy()
    this.#parts.budget.give(row.spec.resources.memory_mib)
  }

  /** Called under the lock. What sleeps takes less room from now on, and longer to wake. */
  async archive({ row }: LiveSandbox): Promise<void> {
    const { hibernation } = this.#parts
    if (row.hibernation_id !== null && !(await hibernation.isArchived(row.hibernation_id))) await hibernation.archive(row.hibernation_id)
  }

  /** Called under the lock. Nothing of it is left afterwards but its record. */
  async end(sandbox: LiveSandbox, state: Extract<SandboxState, 'stopped' | 'failed'>, error: ThawError | null): Promise<void> {
    if (sandbox.row.ended_at !== null) return
    // Where that fails it is still there, and whoever ends it the next time finds it.
    await sandbox.running?.destroy()
    await this.#ended(sandbox, state, error)
  }

  async #ended(sandbox: LiveSandbox, state: Extract<SandboxState, 'stopped' | 'failed'>, error: ThawError | null): Promise<void> {
    const { row } = sandbox
    sandbox.running = null
    if (row.hibernation_id !== null) await this.#parts.hibernation.drop(row.hibernation_id)
    this.#live.delete(row.id)
    if (row.state !== 'hibernated') this.#parts.budget.give(row.spec.resources.memory_mib)
    await sandbox.change({
      state,
      ended_at: Date.now(),
      hibernation_id: null,
      error: error === null ? null : { code: error.code, message: error.message },
    })
  }

  /** Takes a share of the host's memory. Throws when there is none left. */
  async reserve(memoryMib: number): Promise<void> {
    const { budget, makeRoom } = this.#parts
    while (!budget.take(memoryMib)) {
      if (budget.couldEverFit(memoryMib) && (await makeRoom())) continue
      throw new ThawError('too_many_requests', 'The host has no room for another sandbox.', {
        fix: 'Delete sandboxes that are not needed, ask for less memory, or raise limits.max_instances and limits.memory_mib.',
      })
    }
  }

  /** Lets go of all sandboxes, which go on running; the next server takes them over. */
  async close(): Promise<void> {
    this.#closing.abort()
    const all = [...this.#live.values()]
    for (const sandbox of all) if (sandbox.row.state === 'creating') sandbox.abandoned.abort()
    await Promise.all(all.map((sandbox) => this.locked(sandbox, async () => sandbox.running?.agent.close())))
  }

  /** From now on the sandbox ends when its first process does. */
  #watch(sandbox: LiveSandbox, running: AgentSandbox): void {
    sandbox.running = running
    const ended = async () => {
      if (sandbox.running !== running || this.closed) return
      const status = await running.driver.inspect(running.id).catch(() => null)
      const error =
        status?.out_of_memory === true
          ? new ThawError('out_of_memory', 'The sandbox ran out of memory.')
          : new ThawError('sandbox_not_running', 'The first process of the sandbox ended.')
      try {
        await this.end(sandbox, 'failed', error)
      } catch (cause) {
        // An engine that is gone took its sandboxes along: whoever waits for one is told, and what is left of it goes later.
        this.#parts.log.error({ err: cause, sandbox: sandbox.row.id }, 'a sandbox that ended could not be removed yet')
        await this.#ended(sandbox, 'failed', error)
        void this.#removeLater(running)
      }
    }
    running.lost
      .then(() => this.locked(sandbox, ended))
      .catch((error) => this.#parts.log.error({ err: error, sandbox: sandbox.row.id }, 'the end of a sandbox was not understood'))
  }

  /** Until it is done, or the next server does it. */
  async #removeLater(running: AgentSandbox): Promise<void> {
    const { signal } = this.#closing
    for (let isLeft = true; isLeft && !this.closed; ) {
      await delay(removalPauseMs, undefined, { signal, ref: false }).catch(() => undefined)
      isLeft = await running.destroy().then(
        () => false,
        () => true,
      )
    }
  }
}

export function endedError(row: SandboxRow): ThawError {
  const why = row.error === null ? '' : ` ${row.error.message}`
  return new ThawError('sandbox_not_running', `The sandbox ${row.id} is ${row.state}.${why}`, { details: { state: row.state } })
}
