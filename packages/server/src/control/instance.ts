import { type BootMethod, newId, ThawError } from '@thaw/protocol'
import type { CreateSpec, Driver } from '../drivers/driver.ts'
import { type CallBody, type CallSink, type LogSource, RuntimeConnection } from '../runtimes/connection.ts'
import type { Launch } from './launch.ts'
import { LineSplitter } from './lines.ts'
import type { Version } from './version.ts'

/** Where an instance sends what its code prints outside of a call. */
export type InstanceLog = (entry: { sandboxId: string; invocationId: string | null; source: LogSource; message: string }) => void

export interface InstanceTimes {
  /** From nothing to a runtime that listens. */
  boot_ms: number
  /** Loading the code. */
  init_ms: number
}

/**
 * A sandbox that serves one version. It is made by `start`, carries up to `concurrency` calls at a time, and ends by
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
  readonly #driver: Driver
  readonly #connection: RuntimeConnection
  #destroyed: Promise<void> | undefined

  private constructor(id: string, version: Version, driver: Driver, connection: RuntimeConnection, times: InstanceTimes) {
    this.id = id
    this.version = version
    this.times = times
    this.bootMethod = 'cold'
    this.lost = connection.closed
    this.#driver = driver
    this.#connection = connection
  }

  /**
   * Starts a sandbox and loads the code. Rejects with `handler_invalid`, `out_of_memory`, `start_failed` or what the
   * driver said, and leaves nothing behind.
   */
  static async start(
    driver: Driver,
    version: Version,
    launch: Launch,
    log: InstanceLog,
    options: { timeoutMs: number; signal?: AbortSignal },
  ): Promise<Instance> {
    const id = newId('sbx')
    const deadline = AbortSignal.timeout(options.timeoutMs)
    const signal = options.signal === undefined ? deadline : AbortSignal.any([deadline, options.signal])
    let instance: Instance | undefined
    const onLine = (source: LogSource, message: string) =>
      log({ sandboxId: id, invocationId: instance?.onlyInvocation ?? null, source, message })
    const lines = { stdout: new LineSplitter((line) => onLine('stdout', line)), stderr: new LineSplitter((line) => onLine('stderr', line)) }
    // What was printed before there was an instance: it explains why there is none.
    let printed = ''
    const spec: CreateSpec = {
      ...launch.spec,
      id,
      ready: 'runtime',
      start_timeout_ms: options.timeoutMs,
      onOutput: (source, bytes) => {
        if (instance === undefined) printed = (printed + bytes.toString('utf8')).slice(-4096)
        lines[source].push(bytes)
      },
    }
    try {
      const handle = await driver.create(spec, options.signal)
      const connection = new RuntimeConnection(await driver.dial(id, 'runtime'), onLine)
      const loaded = await connection.load(launch.load, signal)
      instance = new Instance(id, version, driver, connection, { boot_ms: handle.boot_ms, init_ms: loaded.init_ms })
      return instance
    } catch (error) {
      const outOfMemory = (await driver.inspect(id).catch(() => null))?.out_of_memory === true
      await driver.destroy(id)
      if (outOfMemory) {
        throw new ThawError('out_of_memory', `Loading the code used more than ${version.config.resources.memory_mib} MiB.`, {
          cause: error,
        })
      }
      if (deadline.aborted)
        throw new ThawError('start_failed', `Loading the code took longer than ${options.timeoutMs} ms.`, { cause: error })
      if (error instanceof ThawError && error.code === 'function_crashed') {
        throw new ThawError('handler_invalid', 'The code ended its process while it was loaded.', { cause: error })
      }
      if (error instanceof ThawError && error.code === 'driver_failed' && printed !== '') {
        throw new ThawError('start_failed', `${error.message} It printed: ${printed.trim().slice(-500)}`, {
          details: { output: printed },
          cause: error,
        })
      }
      throw error
    }
  }

  /** Invocations by the stream that carries them. */
  readonly #invocations = new Map<number, string>()

  /** The invocation that raw output can be blamed on: there is just one. */
  get onlyInvocation(): string | null {
    if (this.#invocations.size !== 1) return null
    return this.#invocations.values().next().value ?? null
  }

  call(meta: Parameters<RuntimeConnection['call']>[0], body: CallBody, sink: CallSink): number {
    const stream = this.#connection.call(meta, body, sink)
    this.#invocations.set(stream, meta.id)
    return stream
  }

  /** The call has had its last word. */
  finished(stream: number): void {
    this.#invocations.delete(stream)
  }

  /** Tells the code to stop. Resolves with true once it has, with false when the connection ended first. */
  cancel(stream: number): Promise<boolean> {
    return this.#connection.cancel(stream)
  }

  resume(): void {
    this.#connection.resume()
  }

  /** Whether the kernel killed something in it for want of memory. */
  async outOfMemory(): Promise<boolean> {
    return (await this.#driver.inspect(this.id).catch(() => null))?.out_of_memory === true
  }

  /** Ends the sandbox. Idempotent; resolves when nothing of it is left. */
  destroy(): Promise<void> {
    this.#destroyed ??= (async () => {
      this.#connection.destroy()
      await this.#driver.destroy(this.id)
    })()
    return this.#destroyed
  }
}
