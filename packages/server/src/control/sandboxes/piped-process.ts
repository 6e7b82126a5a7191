import { constants } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { ThawError } from '@thaw/protocol'
import type { AgentClient, ProcessStart } from '../../agent/agent.ts'
import { followProcess } from './follow.ts'
import type { Lease } from './live-sandbox.ts'
import { type ProcessEnd, processEnd } from './process-end.ts'

/** Most input in one call. A sandbox that is about to be snapshotted waits for calls, so they are to be short. */
const inputBytes = 256 * 1024
/** How long a sandbox that does not sleep may not take calls, as while it is snapshotted. */
const awayMs = 120_000
const againMs = 50
/** A sandbox that stands still hears nothing. */
const hangUpMs = 2000

export interface PipedStart {
  argv: string[]
  env: Record<string, string>
  /** A terminal, instead of stdin, stdout and stderr. */
  pty: { cols: number; rows: number } | null
  user: string | undefined
}

export type PipedOutput = (channel: 'stdout' | 'stderr', bytes: Buffer) => Promise<void>

/** A process whose streams are somebody else's: bytes pass as they are, and each side waits for the other. */
export class PipedProcess {
  readonly #lease: Lease
  readonly #wake: () => Promise<AgentClient>
  readonly #start: PipedStart
  readonly #over = new AbortController()
  readonly #started = Promise.withResolvers<number>()
  #size: { cols: number; rows: number } | null = null
  #resizing = false

  /** `wake`: the agent of the sandbox, which is woken where it sleeps. */
  constructor(lease: Lease, wake: () => Promise<AgentClient>, start: PipedStart) {
    this.#lease = lease
    this.#wake = wake
    this.#start = start
    // Whoever writes hears of it.
    this.#started.promise.catch(() => undefined)
  }

  /** Runs it to its end. Nothing is read of it while `output` has not taken what came before. Rejects when it is given up. */
  async run(output: PipedOutput): Promise<ProcessEnd> {
    const { argv, env, pty, user } = this.#start
    const [cmd = '', ...args] = argv
    const what: ProcessStart = {
      process: { cmd, args, envs: env },
      stdin: pty === null,
      ...(pty === null ? {} : { pty: { size: pty } }),
    }
    const { events } = this.#lease.sandbox
    try {
      for await (const { event } of followProcess(this.#lease, what, { user, signal: this.#over.signal })) {
        const { start, data, end } = event ?? {}
        if (start !== undefined) {
          this.#started.resolve(start.pid)
          events.started(start.pid, argv)
        }
        for (const name of ['stdout', 'stderr', 'pty'] as const) {
          const text = data?.[name]
          if (text !== undefined) await output(name === 'stderr' ? 'stderr' : 'stdout', Buffer.from(text, 'base64'))
        }
        if (end !== undefined) {
          const ended = processEnd(end)
          events.ended(await this.#started.promise, ended)
          return ended
        }
      }
      throw new ThawError('sandbox_unavailable', 'The agent of the sandbox did not say how the process ended.')
    } finally {
      this.#started.reject(new ThawError('process_not_found'))
      this.#over.abort()
    }
  }

  /** Resolves when the process has it, or the sandbox keeps it for the process; to be called one after the other. */
  async write(bytes: Buffer): Promise<void> {
    const process = { pid: await this.#started.promise }
    for (let at = 0; at < bytes.length; ) {
      const piece = bytes.subarray(at, at + inputBytes)
      const text = piece.toString('base64')
      const taken = await this.#ask('process.Process/SendInput', {
        process,
        input: this.#start.pty === null ? { stdin: text } : { pty: text },
      })
      at += taken ?? piece.length
    }
  }

  /** The end of its input; a terminal has none. */
  async closeInput(): Promise<void> {
    if (this.#start.pty !== null) return
    await this.#ask('process.Process/CloseStdin', { process: { pid: await this.#started.promise } })
  }

  /** Only the last size counts, and it is to arrive last. */
  async resize(cols: number, rows: number): Promise<void> {
    this.#size = { cols, rows }
    if (this.#resizing || this.#start.pty === null) return
    this.#resizing = true
    try {
      const process = { pid: await this.#started.promise }
      while (this.#size !== null) {
        const size = this.#size
        this.#size = null
        await this.#ask('process.Process/Update', { process, pty: { size } })
      }
    } finally {
      this.#resizing = false
    }
  }

  /** Reaches the process and its group; by number. */
  async signal(signal: number): Promise<void> {
    await this.#ask('process.Process/SendSignal', { process: { pid: await this.#started.promise }, signal, group: true })
  }

  /**
   * As when the line of a terminal is cut: the process and its group end, unless they want to go on without it. `run` rejects
   * with the reason, where it has not ended before.
   */
  async hangUp(reason: unknown): Promise<void> {
    const { sandbox } = this.#lease
    const limit = AbortSignal.timeout(hangUpMs)
    const tooLate = new Promise<null>((resolve) => limit.addEventListener('abort', () => resolve(null), { once: true }))
    const pid = await Promise.race([this.#started.promise.catch(() => null), tooLate])
    if (pid !== null && !this.#over.signal.aborted && sandbox.running !== null) {
      const message = { process: { pid }, signal: constants.signals.SIGHUP, group: true }
      await sandbox.agent.unary('process.Process/SendSignal', message, { signal: limit }).catch(() => undefined)
    }
    this.#over.abort(reason)
  }

  /** Asks again while the sandbox takes no calls. Returns how much of the input the process took where that is not all of it. */
  async #ask(name: string, message: object): Promise<number | undefined> {
    const { sandbox } = this.#lease
    const end = performance.now() + awayMs
    for (;;) {
      this.#over.signal.throwIfAborted()
      try {
        const agent = sandbox.row.state === 'running' && sandbox.running !== null ? sandbox.agent : await this.#wake()
        await agent.unary(name, message, { signal: this.#over.signal })
        return undefined
      } catch (error) {
        const isAway = error instanceof ThawError && error.code === 'sandbox_unavailable' && sandbox.row.ended_at === null
        if (!isAway || performance.now() > end) throw error
        // A call that was cut short for a snapshot says how far it got.
        const taken = /\btook (\d+) of \d+ bytes\b/.exec(error.message)?.[1]
        if (taken !== undefined) return Number(taken)
      }
      await delay(againMs, undefined, { signal: this.#over.signal })
    }
  }
}
