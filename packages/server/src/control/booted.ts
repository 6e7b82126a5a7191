import { newId, ThawError } from '@thaw/protocol'
import type { CreateSpec, Driver } from '../drivers/driver.ts'
import { type LogSource, RuntimeConnection } from '../runtimes/connection.ts'
import { LineSplitter } from './lines.ts'

export type BootSpec = Omit<CreateSpec, 'id' | 'ready' | 'start_timeout_ms' | 'onOutput'>

/** How much of what a sandbox prints is kept until somebody listens: it explains a start that fails. */
const maxEarlyOutput = 4096

/** A sandbox whose runtime listens and to which no code has been given yet. */
export class BootedSandbox {
  readonly id: string
  readonly driver: Driver
  readonly connection: RuntimeConnection
  /** From nothing to a runtime that listens. */
  readonly boot_ms: number
  readonly #output: Output

  private constructor(id: string, driver: Driver, connection: RuntimeConnection, bootMs: number, output: Output) {
    this.id = id
    this.driver = driver
    this.connection = connection
    this.boot_ms = bootMs
    this.#output = output
  }

  /** Rejects with `start_failed` or what the driver said, and leaves nothing behind. */
  static async start(
    driver: Driver,
    spec: BootSpec,
    options: { timeoutMs: number; signal?: AbortSignal | undefined },
  ): Promise<BootedSandbox> {
    const id = newId('sbx')
    const output = new Output()
    try {
      const full: CreateSpec = {
        ...spec,
        id,
        ready: 'runtime',
        start_timeout_ms: options.timeoutMs,
        onOutput: (source, bytes) => output.raw(source, bytes),
      }
      const handle = await driver.create(full, options.signal)
      const connection = new RuntimeConnection(await driver.dial(id, 'runtime'), (source, text) => output.line(source, text))
      return new BootedSandbox(id, driver, connection, handle.boot_ms, output)
    } catch (error) {
      await driver.destroy(id)
      throw withOutput(error, output.early)
    }
  }

  get lost(): Promise<unknown> {
    return this.connection.closed
  }

  /** Sends what it prints, from now on, to `onLine`. */
  listen(onLine: (source: LogSource, message: string) => void): void {
    this.#output.onLine = onLine
  }

  /** An error of the start, with what the sandbox printed where that says more. */
  explain(error: unknown): unknown {
    return withOutput(error, this.#output.early)
  }

  async destroy(): Promise<void> {
    this.connection.destroy()
    await this.driver.destroy(this.id)
  }
}

class Output {
  onLine: ((source: LogSource, message: string) => void) | undefined
  early = ''
  readonly #splitters = {
    stdout: new LineSplitter((line) => this.line('stdout', line)),
    stderr: new LineSplitter((line) => this.line('stderr', line)),
  }

  raw(source: LogSource, bytes: Buffer): void {
    this.#splitters[source].push(bytes)
  }

  line(source: LogSource, message: string): void {
    if (this.early.length < maxEarlyOutput) this.early += `${message}\n`
    this.onLine?.(source, message)
  }
}

function withOutput(error: unknown, printed: string): unknown {
  const text = printed.trim()
  if (!(error instanceof ThawError) || !['driver_failed', 'start_failed'].includes(error.code) || text === '') return error
  return new ThawError('start_failed', `${error.message} It printed: ${text.slice(-500)}`, { details: { output: text }, cause: error })
}
