import { constants } from 'node:os'
import { StringDecoder } from 'node:string_decoder'
import { type StreamCommandParsed, type StreamSignal, ThawError, toThawError } from '@thaw/protocol'
import type { ProcessStart } from '../../agent/agent.ts'
import type { ProcessEvent } from '../../agent/messages.ts'
import { type Attachment, followProcess } from './follow.ts'
import { processEnd } from './process-end.ts'
import { argvOf } from './sandbox-starter.ts'
import type { StreamLine } from './stream-line.ts'

type Exec = Extract<StreamCommandParsed, { type: 'exec' }>
type Attach = Extract<StreamCommandParsed, { type: 'attach' }>
type Channel = 'stdout' | 'stderr' | 'pty'

/** Input that waits for a process before no more is taken from the client, and the most that is sent at a time. */
const inputBytes = 1024 * 1024

/** One process that a stream follows, from its start or from the attachment to its end. */
export class StreamProcess {
  readonly id: string
  readonly #line: StreamLine
  readonly #request: Exec | Attach
  readonly #over = new AbortController()
  readonly #decoders = { stdout: new StringDecoder('utf8'), stderr: new StringDecoder('utf8') }
  #pid: number | undefined
  #hasTerminal: boolean
  #isClosed = false
  #hasEnded = false
  #input: Buffer[] = []
  #inputBytes = 0
  #eof = false
  #writing = false
  #releaseInput: (() => void) | null = null
  #size: { cols: number; rows: number } | null = null
  #resizing = false
  #held: PromiseWithResolvers<void> | null = null

  constructor(request: Exec | Attach, line: StreamLine) {
    this.id = request.id
    this.#request = request
    this.#line = line
    this.#hasTerminal = request.type === 'exec' && request.pty !== undefined
  }

  /** Resolves when the process has ended, or is not followed any more; says to the client what happened. */
  async run(): Promise<void> {
    const { signal } = this.#over
    try {
      // Wakes the sandbox where it sleeps.
      await this.#line.agent()
      for await (const { event } of followProcess(this.#line.lease, this.#what(), { user: this.#user(), signal })) {
        if (event?.start !== undefined) this.#onStart(event.start)
        if (event?.data !== undefined) {
          this.#onData(event.data)
          await this.#line.room()
          await this.#held?.promise
        }
        if (event?.end !== undefined) this.#onEnd(event.end)
      }
    } catch (error) {
      if (!signal.aborted && !this.#hasEnded) await this.#fail(error)
    } finally {
      this.#over.abort()
      this.#holdInput(false)
    }
  }

  #what(): ProcessStart | Attachment {
    const request = this.#request
    if (request.type === 'attach') {
      const { stdout, stderr } = request.offset ?? {}
      return {
        pid: request.pid,
        offset: { ...(stdout === undefined ? {} : { stdout, pty: stdout }), ...(stderr === undefined ? {} : { stderr }) },
      }
    }
    const [cmd = '', ...args] = argvOf(request.command)
    const { env, cwd, pty, stdin } = request
    const start = { process: { cmd, args, envs: env, ...(cwd === undefined ? {} : { cwd }) }, stdin: stdin && pty === undefined }
    return pty === undefined ? start : { ...start, pty: { size: pty } }
  }

  #user(): string | undefined {
    return this.#request.type === 'exec' ? this.#request.user : undefined
  }

  #onStart({ pid, offset = {} }: NonNullable<ProcessEvent['event']>['start'] & object): void {
    if (!Number.isSafeInteger(pid)) throw new ThawError('protocol_violation', 'The agent of the sandbox named no process.')
    this.#pid = pid
    if (this.#request.type === 'attach') {
      const { stdout = 0, stderr = 0, pty } = offset
      this.#hasTerminal = pty !== undefined
      this.#line.send({ type: 'started', id: this.id, pid, offset: { stdout: pty ?? stdout, stderr } })
    } else {
      this.#line.send({ type: 'started', id: this.id, pid })
      this.#line.events.started(pid, argvOf(this.#request.command))
    }
    // The client was gone before it was known which process to end.
    if (this.#isClosed) void this.close()
    void this.#write()
    void this.#resize()
  }

  #onData(data: { [Name in Channel]?: string | undefined }): void {
    for (const channel of ['stdout', 'stderr', 'pty'] as const) {
      const text = data[channel]
      if (text === undefined) continue
      const name = channel === 'stderr' ? 'stderr' : 'stdout'
      const shown = this.#line.encoding === 'base64' ? text : this.#decoders[name].write(Buffer.from(text, 'base64'))
      if (shown !== '') this.#line.send({ type: name, id: this.id, data: shown })
    }
  }

  #onEnd(end: NonNullable<NonNullable<ProcessEvent['event']>['end']>): void {
    for (const name of ['stdout', 'stderr'] as const) {
      const rest = this.#decoders[name].end()
      if (rest !== '') this.#line.send({ type: name, id: this.id, data: rest })
    }
    const { exit_code, signal } = processEnd(end)
    this.#hasEnded = true
    this.#holdInput(false)
    this.#line.ended(this.id)
    this.#line.send({ type: 'exit', id: this.id, exit_code, signal })
    this.#line.events.ended(this.#pid as number, { exit_code, signal })
  }

  /** Input, in the order in which it came. While too much of it waits, the client is not listened to. */
  write(bytes: Buffer, eof: boolean): void {
    // A terminal has no end of input but the character for it.
    const more = eof && this.#hasTerminal ? Buffer.concat([bytes, Buffer.from([0x04])]) : bytes
    if (more.length > 0) this.#input.push(more)
    this.#inputBytes += more.length
    if (eof && !this.#hasTerminal) this.#eof = true
    this.#holdInput(this.#inputBytes > inputBytes)
    void this.#write()
  }

  async #write(): Promise<void> {
    if (this.#writing || this.#pid === undefined || this.#hasEnded) return
    this.#writing = true
    const process = { pid: this.#pid }
    try {
      while (!this.#hasEnded && (this.#input.length > 0 || this.#eof)) {
        if (this.#input.length === 0) {
          this.#eof = false
          await this.#ask('process.Process/CloseStdin', { process })
          continue
        }
        const bytes = this.#takeInput().toString('base64')
        await this.#ask('process.Process/SendInput', { process, input: this.#hasTerminal ? { pty: bytes } : { stdin: bytes } })
        this.#holdInput(!this.#hasEnded && this.#inputBytes > inputBytes)
      }
    } catch (error) {
      this.#input = []
      this.#inputBytes = 0
      this.#eof = false
      this.#holdInput(false)
      this.#complain(error)
    } finally {
      this.#writing = false
    }
  }

  #takeInput(): Buffer {
    let count = 0
    let bytes = 0
    while (count < this.#input.length && (count === 0 || bytes + (this.#input[count] as Buffer).length <= inputBytes)) {
      bytes += (this.#input[count++] as Buffer).length
    }
    this.#inputBytes -= bytes
    return Buffer.concat(this.#input.splice(0, count))
  }

  #holdInput(held: boolean): void {
    if (held === (this.#releaseInput !== null)) return
    this.#releaseInput?.()
    this.#releaseInput = held ? this.#line.holdInput() : null
  }

  /** While it is held, nothing more is read of what the process writes, and in the end the process waits. */
  hold(held: boolean): void {
    if (held) {
      if (!this.#isClosed) this.#held ??= Promise.withResolvers()
      return
    }
    this.#held?.resolve()
    this.#held = null
  }

  resize(cols: number, rows: number): void {
    this.#size = { cols, rows }
    void this.#resize()
  }

  /** Only the last size counts, and it is to arrive last. */
  async #resize(): Promise<void> {
    if (this.#resizing || this.#pid === undefined) return
    this.#resizing = true
    try {
      while (this.#size !== null) {
        const size = this.#size
        this.#size = null
        await this.#ask('process.Process/Update', { process: { pid: this.#pid }, pty: { size } })
      }
    } catch (error) {
      this.#complain(error)
    } finally {
      this.#resizing = false
    }
  }

  async signal(name: StreamSignal): Promise<void> {
    try {
      if (this.#pid === undefined)
        throw new ThawError('process_not_found', 'The process has not started yet.', { fix: 'Wait for started.' })
      await this.#ask('process.Process/SendSignal', { process: { pid: this.#pid }, signal: constants.signals[name], group: true })
    } catch (error) {
      this.#complain(error)
    }
  }

  /** The client is gone. Processes go on, but for those that were to end with it. */
  async close(): Promise<void> {
    this.#isClosed = true
    this.hold(false)
    if (!this.#request.kill_on_close) return this.#over.abort()
    if (this.#pid === undefined) return
    const kill = { process: { pid: this.#pid }, signal: 'SIGNAL_SIGKILL', group: true }
    await this.#line
      .agent()
      .then((agent) => agent.unary('process.Process/SendSignal', kill))
      .catch(() => undefined)
    this.#over.abort()
  }

  async #ask(name: string, message: object): Promise<void> {
    const agent = await this.#line.agent()
    await agent.unary(name, message, { signal: this.#over.signal })
  }

  async #fail(error: unknown): Promise<void> {
    const why = toThawError(await this.#line.why(error))
    this.#line.send({ type: 'error', id: this.id, ended: true, error: why.toBody().error })
  }

  /** Says what went wrong with something that was asked of a process which goes on. */
  #complain(error: unknown): void {
    if (this.#hasEnded || this.#over.signal.aborted) return
    this.#line.send({ type: 'error', id: this.id, ended: false, error: toThawError(error).toBody().error })
  }
}
