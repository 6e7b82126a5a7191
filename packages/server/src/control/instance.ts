import { randomBytes } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { type AfterRestoreMessage, type BootMethod, type LoadMessage, ThawError } from '@thaw/protocol'
import type { SnapshotResult } from '../drivers/driver.ts'
import type { CallBody, CallSink, LogSource, RuntimeConnection } from '../runtimes/connection.ts'
import type { BootedSandbox } from './booted.ts'
import type { Version } from './version.ts'

/** Where an instance sends what its code prints outside of a call. */
export type InstanceLog = (entry: { sandboxId: string; invocationId: string | null; source: LogSource; message: string }) => void

/** Longest time for the hooks before a snapshot. */
const hookMs = 10_000

export interface InstanceTimes {
  /** From nothing to a runtime that listens. */
  boot_ms: number
  /** Loading the code. */
  init_ms: number
}

/**
 * A sandbox that serves one version. It is made by `load`, carries up to `concurrency` calls at a time, and ends by
 * `destroy`. Whoever holds it watches `lost`: its connection ended, by a crash or by a violation of the protocol.
 */
export class Instance {
  readonly id: string
  readonly version: Version
  readonly times: InstanceTimes
  /** How the first call got this instance; later ones reuse it. */
  readonly bootMethod: BootMethod
  readonly lost: Promise<ThawError>
  /** Monotonic milliseconds since when it has had nothing to do. */
  idleSince = performance.now()
  /** Calls that it carries. Kept by its group. */
  busy = 0
  /** It has answered a call before. */
  used = false
  /** Monotonic milliseconds at which it last began to answer a request that did not go through the runtime's socket. */
  answeredAt = 0
  readonly #booted: BootedSandbox
  #destroyed: Promise<void> | undefined

  private constructor(booted: BootedSandbox, version: Version, bootMethod: BootMethod, times: InstanceTimes) {
    this.id = booted.id
    this.version = version
    this.times = times
    this.bootMethod = bootMethod
    this.lost = booted.connection.closed
    this.#booted = booted
  }

  /**
   * Loads the code of a version into a sandbox, which is this instance's from then on. Rejects with `handler_invalid`,
   * `out_of_memory` or `start_failed`; the sandbox is destroyed then.
   */
  static async load(
    booted: BootedSandbox,
    version: Version,
    message: LoadMessage,
    log: InstanceLog,
    options: { timeoutMs: number; bootMs: number; bootMethod: BootMethod; signal?: AbortSignal | undefined },
  ): Promise<Instance> {
    const deadline = AbortSignal.timeout(options.timeoutMs)
    const signal = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal])
    let instance: Instance | undefined
    booted.listen((source, text) => log({ sandboxId: booted.id, invocationId: instance?.onlyInvocation ?? null, source, message: text }))
    try {
      const loaded = await booted.connection.load(message, signal)
      instance = new Instance(booted, version, options.bootMethod, { boot_ms: options.bootMs, init_ms: loaded.init_ms })
      return instance
    } catch (error) {
      const outOfMemory = (await booted.driver.inspect(booted.id).catch(() => null))?.out_of_memory === true
      await booted.destroy()
      if (outOfMemory) {
        throw new ThawError('out_of_memory', `Loading the code used more than ${version.config.resources.memory_mib} MiB.`, {
          cause: error,
        })
      }
      if (deadline.aborted) {
        const what = version.config.contract === 'http' ? 'The program did not listen on PORT within' : 'Loading the code took longer than'
        throw booted.explain(new ThawError('start_failed', `${what} ${options.timeoutMs} ms.`, { cause: error }))
      }
      if (error instanceof ThawError && error.code === 'function_crashed') {
        throw new ThawError('handler_invalid', 'The code ended its process while it was loaded.', { cause: error })
      }
      throw booted.explain(error)
    }
  }

  /**
   * The instance of a version that a restored sandbox is. Its code hears of it before its first call, and gets what is its own.
   * Rejects with `snapshot_failed`; the sandbox is destroyed then.
   */
  static async wake(
    booted: BootedSandbox,
    version: Version,
    own: Pick<AfterRestoreMessage, 'env' | 'files'>,
    log: InstanceLog,
    options: { bootMs: number; signal: AbortSignal },
  ): Promise<Instance> {
    let instance: Instance | undefined
    booted.listen((source, text) => log({ sandboxId: booted.id, invocationId: instance?.onlyInvocation ?? null, source, message: text }))
    const started = performance.now()
    const entropy = randomBytes(32).toString('base64')
    try {
      await booted.connection.wake({ hook: 'after_restore', ...own, time_ms: Date.now(), entropy, sandbox_id: booted.id }, options.signal)
      instance = new Instance(booted, version, 'warm', { boot_ms: options.bootMs, init_ms: performance.now() - started })
      return instance
    } catch (error) {
      await booted.destroy()
      throw booted.explain(error)
    }
  }

  /**
   * Writes its memory into an empty folder, and ends it. Its code hears of it before, and its connection is left: nothing of
   * this server is part of what is kept. The caller destroys it, whatever comes of this.
   */
  async keep(dir: string, signal: AbortSignal): Promise<SnapshotResult> {
    const { driver, connection } = this.#booted
    if (driver.snapshot === undefined) throw new ThawError('snapshot_unsupported')
    await connection.leaveForSnapshot(AbortSignal.any([signal, AbortSignal.timeout(hookMs)]))
    return driver.snapshot(this.id, { dir, kind: 'memory', stop: true, signal })
  }

  /** Invocations by the stream that carries them, or by whoever carries them on a connection of their own. */
  readonly #invocations = new Map<number | object, string>()

  /** The invocation that raw output can be blamed on: there is just one. */
  get onlyInvocation(): string | null {
    if (this.#invocations.size !== 1) return null
    return this.#invocations.values().next().value ?? null
  }

  call(meta: Parameters<RuntimeConnection['call']>[0], body: CallBody, sink: CallSink): number {
    const stream = this.#booted.connection.call(meta, body, sink)
    this.#invocations.set(stream, meta.id)
    return stream
  }

  /** The call, or what `carry` was given, has had its last word. */
  finished(carrier: number | object): void {
    this.#invocations.delete(carrier)
  }

  /** An invocation that goes over connections of its own (`dial`), until `finished`. */
  carry(carrier: object, invocationId: string): void {
    this.#invocations.set(carrier, invocationId)
  }

  /** A connection to the web server inside (the http contract). */
  dial(): Promise<Duplex> {
    return this.#booted.driver.dial(this.id, 'http')
  }

  /** Tells the code to stop. Resolves with true once it has, with false when the connection ended first. */
  cancel(stream: number): Promise<boolean> {
    return this.#booted.connection.cancel(stream)
  }

  resume(): void {
    this.#booted.connection.resume()
  }

  /** Whether the kernel killed something in it for want of memory. */
  async outOfMemory(): Promise<boolean> {
    return (await this.#booted.driver.inspect(this.id).catch(() => null))?.out_of_memory === true
  }

  /** Ends the sandbox. Idempotent; resolves when nothing of it is left. */
  destroy(): Promise<void> {
    this.#destroyed ??= this.#booted.destroy()
    return this.#destroyed
  }
}
