import type { Duplex } from 'node:stream'
import {
  bodyChunkBytes,
  type CodeFailure,
  codeFailureSchema,
  encodeFrame,
  encodeFrameHead,
  encodeJsonFrame,
  encodeMetaFrame,
  type Frame,
  FrameDecoder,
  FrameError,
  failedSchema,
  frameTypes,
  type HookMessage,
  helloSchema,
  hookDoneSchema,
  type InvokeMeta,
  type LoadMessage,
  logSources,
  parseJson,
  protocolVersion,
  type ResultMeta,
  readySchema,
  resultMetaSchema,
  splitMetaPayload,
  ThawError,
} from '@thaw/protocol'

export type LogSource = keyof typeof logSources

/** What becomes of one call. Exactly one of `onResult` without `more`, `onEnd`, `onFailed` and `onLost` comes last. */
export interface CallSink {
  onResult(meta: ResultMeta, body: Buffer): void
  /** A further piece. False: stop reading until `resume`, because whoever takes the answer is slower. */
  onChunk(bytes: Buffer): boolean
  onEnd(): void
  onFailed(failure: CodeFailure & { reason: 'error' | 'invalid_payload' | 'cancelled' }): void
  /** The connection ended first. */
  onLost(): void
  onLog(source: LogSource, text: string): void
}

/** A body: whole, or in pieces as they arrive. */
export type CallBody = Buffer | AsyncIterable<Buffer>

/** Frames about the instance, of which one at most is waited for. */
type Awaited = 'hello' | 'ready' | 'hook_done'

/** Bounds what an instance can make us keep. */
const maxKnownMetas = 16
const maxKnownMetaBytes = 128

interface Call {
  sink: CallSink
  /** A result with `more` has come: only chunks and the end may follow. */
  streaming: boolean
  cancelled: boolean
  /** Of a cancelled call: hears whether the runtime gave its last word on it. */
  onSettled?: (answered: boolean) => void
}

/**
 * The worker's end of the runtime protocol (docs/runtime-protocol.md): one connection to the runtime in an instance.
 * Whatever arrives is untrusted. A violation ends the connection, and with it all calls; the owner of the instance
 * watches `closed` and destroys it.
 */
export class RuntimeConnection {
  /** Why the connection ended. Never rejects. */
  readonly closed: Promise<ThawError>
  readonly #socket: Duplex
  readonly #decoder = new FrameDecoder()
  readonly #calls = new Map<number, Call>()
  /** Log lines that belong to no call. */
  #onLog: (source: LogSource, text: string) => void = () => {}
  #nextStream = 1
  #reason: ThawError | undefined
  #waiting: { expect: Awaited; resolve: (frame: Frame) => void; reject: (error: Error) => void } | undefined
  #early: Frame | undefined
  #greeted = false
  #gathering = false
  /** Metas of results that have been checked, by their bytes: nearly all calls of an instance have the same one. */
  readonly #knownMetas = new Map<string, ResultMeta>()

  constructor(socket: Duplex, onLog: (source: LogSource, text: string) => void) {
    this.#socket = socket
    this.#onLog = onLog
    socket.on('data', (bytes: Buffer) => this.#receive(bytes))
    socket.on('error', () => {})
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        const reason = this.#reason ?? new ThawError('function_crashed')
        this.#waiting?.reject(reason)
        const calls = [...this.#calls.values()]
        this.#calls.clear()
        for (const call of calls) {
          if (call.cancelled) call.onSettled?.(false)
          else call.sink.onLost()
        }
        resolve(reason)
      })
    })
  }

  /** Waits for the runtime's hello, loads the code, and resolves with how long that took inside. */
  async load(message: LoadMessage, signal: AbortSignal): Promise<{ init_ms: number }> {
    await this.#greeting(signal)
    const answer = this.#expect('ready', signal)
    this.#socket.write(encodeJsonFrame(frameTypes.load, 0, message))
    const frame = await answer
    const payload = parseJson(frame.payload)
    if (frame.type === frameTypes.loadFailed) {
      const failure = codeFailureSchema.safeParse(payload).data ?? { type: 'Error', message: 'unknown' }
      throw new ThawError('handler_invalid', `The handler could not be loaded: ${failure.type}: ${failure.message}`, { details: failure })
    }
    const ready = readySchema.safeParse(payload)
    if (!ready.success) throw this.#violation('The runtime sent a malformed ready.')
    return ready.data
  }

  /**
   * Lets the code make itself ready for a snapshot, and takes leave of the runtime, which goes on to wait for another worker.
   * Resolves when nothing of the connection is left. Rejects with `snapshot_failed`, and what the code says.
   */
  async leaveForSnapshot(signal: AbortSignal): Promise<void> {
    await this.#hook({ hook: 'before_snapshot' }, signal)
    this.#reason = new ThawError('snapshot_failed', 'The connection ended for a snapshot.')
    this.#socket.end()
    await Promise.race([this.closed, aborted(signal)])
  }

  /** Takes over a runtime that was snapshotted after its load. Rejects with `snapshot_failed`, and what the code says. */
  async wake(message: HookMessage, signal: AbortSignal): Promise<void> {
    await this.#greeting(signal)
    await this.#hook(message, signal)
  }

  async #greeting(signal: AbortSignal): Promise<void> {
    const hello = helloSchema.safeParse(parseJson((await this.#expect('hello', signal)).payload))
    if (!hello.success || hello.data.protocol !== protocolVersion) {
      throw this.#violation(`The runtime speaks another protocol than ${protocolVersion}.`)
    }
  }

  async #hook(message: HookMessage, signal: AbortSignal): Promise<void> {
    const answer = this.#expect('hook_done', signal)
    this.#socket.write(encodeJsonFrame(frameTypes.hook, 0, message))
    const done = hookDoneSchema.safeParse(parseJson((await answer).payload))
    if (!done.success || done.data.hook !== message.hook) throw this.#violation('The runtime sent a malformed hook_done.')
    const { error } = done.data
    if (error === undefined) return
    throw new ThawError('snapshot_failed', `The ${message.hook} hook failed: ${error.type}: ${error.message}`, { details: error })
  }

  /** Starts a call. The sink hears of everything that follows; the returned number identifies the call. */
  call(meta: Omit<InvokeMeta, 'more'>, body: CallBody, sink: CallSink): number {
    const stream = this.#nextStream++
    this.#calls.set(stream, { sink, streaming: false, cancelled: false })
    if (Buffer.isBuffer(body) && body.length <= bodyChunkBytes) {
      this.#writeSoon(encodeMetaFrame(frameTypes.invoke, stream, { ...meta, more: false }, body))
    } else {
      this.#socket.write(encodeMetaFrame(frameTypes.invoke, stream, { ...meta, more: true }, Buffer.alloc(0)))
      void this.#sendBody(stream, Buffer.isBuffer(body) ? [body] : body)
    }
    return stream
  }

  /**
   * Nobody waits for this call any more: its sink hears nothing further. Resolves with true once the runtime has given
   * its last word on it, with false when the connection ended first.
   */
  cancel(stream: number): Promise<boolean> {
    const call = this.#calls.get(stream)
    if (call === undefined) return Promise.resolve(!this.#socket.destroyed)
    if (!call.cancelled) {
      call.cancelled = true
      this.#socket.write(encodeFrame(frameTypes.cancel, stream))
    }
    return new Promise((resolve) => {
      call.onSettled = resolve
    })
  }

  /** After an `onChunk` that returned false. */
  resume(): void {
    this.#socket.resume()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  async #sendBody(stream: number, pieces: Iterable<Buffer> | AsyncIterable<Buffer>): Promise<void> {
    try {
      for await (const piece of pieces) {
        for (let offset = 0; offset < piece.length; offset += bodyChunkBytes) {
          if (!this.#calls.has(stream)) return
          if (!this.#writeBody(stream, piece.subarray(offset, offset + bodyChunkBytes))) await this.#drained()
        }
      }
      if (this.#calls.has(stream)) this.#socket.write(encodeFrame(frameTypes.bodyEnd, stream))
    } catch {
      // The sender of the body went away or broke a limit: whoever made the call hears of it from its own side.
      void this.cancel(stream)
    }
  }

  /**
   * Calls that arrive together, on as many connections of clients, leave in one system call. A call that is alone does
   * not wait for others.
   */
  #writeSoon(frame: Buffer): void {
    if (!this.#gathering && this.#calls.size > 1) {
      this.#gathering = true
      this.#socket.cork()
      setImmediate(this.#flush)
    }
    this.#socket.write(frame)
  }

  readonly #flush = (): void => {
    this.#gathering = false
    this.#socket.uncork()
  }

  /** Head and piece go out in one system call, and the piece is not copied into a frame first. */
  #writeBody(stream: number, piece: Buffer): boolean {
    this.#socket.cork()
    this.#socket.write(encodeFrameHead(frameTypes.body, stream, piece.length))
    const flushed = this.#socket.write(piece)
    this.#socket.uncork()
    return flushed
  }

  #drained(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        this.#socket.off('drain', done)
        this.#socket.off('close', done)
        resolve()
      }
      this.#socket.once('drain', done)
      this.#socket.once('close', done)
    })
  }

  #expect(expect: Awaited, signal: AbortSignal): Promise<Frame> {
    const early = this.#early
    this.#early = undefined
    if (expect === 'hello') this.#greeted = true
    if (early !== undefined && expect === 'hello') return Promise.resolve(early)
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason)
      signal.addEventListener('abort', abort, { once: true })
      if (signal.aborted) abort()
      const settle = () => {
        signal.removeEventListener('abort', abort)
        this.#waiting = undefined
      }
      this.#waiting = {
        expect,
        resolve: (frame) => {
          settle()
          resolve(frame)
        },
        reject: (error) => {
          settle()
          reject(error)
        },
      }
      if (this.#reason !== undefined || this.#socket.destroyed) this.#waiting.reject(this.#reason ?? new ThawError('function_crashed'))
    })
  }

  #receive(bytes: Buffer): void {
    try {
      this.#decoder.push(bytes, (frame) => this.#dispatch(frame))
    } catch (error) {
      if (!(error instanceof FrameError) && !(error instanceof ThawError)) throw error
      this.#violation(error.message)
    }
  }

  #dispatch(frame: Frame): void {
    if (this.#reason !== undefined) return
    switch (frame.type) {
      case frameTypes.result:
        this.#result(frame)
        return
      case frameTypes.chunk: {
        const call = this.#callOf(frame, true)
        if (!call.cancelled && !call.sink.onChunk(frame.payload)) this.#socket.pause()
        return
      }
      case frameTypes.end: {
        const call = this.#finish(frame, true)
        if (!call.cancelled) call.sink.onEnd()
        return
      }
      case frameTypes.failed: {
        const failure = failedSchema.safeParse(parseJson(frame.payload))
        if (!failure.success) throw new FrameError('malformed failed')
        const call = this.#finish(frame, undefined)
        if (!call.cancelled) call.sink.onFailed(failure.data)
        return
      }
      case frameTypes.log:
        this.#log(frame)
        return
      case frameTypes.hello:
        if (this.#greet('hello', frame)) return
        break
      case frameTypes.ready:
      case frameTypes.loadFailed:
        if (this.#greet('ready', frame)) return
        break
      case frameTypes.hookDone:
        if (this.#greet('hook_done', frame)) return
        break
      case frameTypes.pong:
        return
    }
    throw new FrameError(`unexpected frame of type ${frame.type}`)
  }

  /** A frame of the start. A hello may come before anyone waits for it; each comes once. */
  #greet(expected: Awaited, frame: Frame): boolean {
    if (this.#waiting?.expect === expected) {
      this.#waiting.resolve(frame)
      return true
    }
    if (expected !== 'hello' || this.#early !== undefined || this.#greeted) return false
    this.#early = frame
    return true
  }

  #result(frame: Frame): void {
    const { meta: metaBytes, body } = splitMetaPayload(frame.payload)
    const meta = this.#resultMeta(metaBytes)
    const call = meta.more ? this.#callOf(frame, false) : this.#finish(frame, false)
    call.streaming = true
    if (!call.cancelled) call.sink.onResult(meta, body)
  }

  #resultMeta(bytes: Buffer): ResultMeta {
    const key = bytes.length <= maxKnownMetaBytes ? bytes.toString('latin1') : null
    const known = key === null ? undefined : this.#knownMetas.get(key)
    if (known !== undefined) return known
    const parsed = resultMetaSchema.safeParse(parseJson(bytes))
    if (!parsed.success) throw new FrameError('malformed result')
    if (key !== null && this.#knownMetas.size < maxKnownMetas) this.#knownMetas.set(key, Object.freeze(parsed.data))
    return parsed.data
  }

  #log(frame: Frame): void {
    const source = frame.payload[0] === logSources.stderr ? 'stderr' : 'stdout'
    const text = frame.payload.toString('utf8', 1)
    const call = frame.stream === 0 ? undefined : this.#calls.get(frame.stream)
    // A line that was on its way when its call ended is kept, but belongs to the instance.
    if (call === undefined) this.#onLog(source, text)
    else call.sink.onLog(source, text)
  }

  /** The call that this frame ends. */
  #finish(frame: Frame, streaming: boolean | undefined): Call {
    const call = this.#callOf(frame, streaming)
    this.#calls.delete(frame.stream)
    call.onSettled?.(true)
    return call
  }

  #callOf(frame: Frame, streaming: boolean | undefined): Call {
    const call = this.#calls.get(frame.stream)
    if (call === undefined) throw new FrameError(`an answer to call ${frame.stream}, which this instance does not hold`)
    if (streaming !== undefined && call.streaming !== streaming) throw new FrameError('an answer out of order')
    return call
  }

  #violation(what: string): ThawError {
    this.#reason ??= new ThawError('protocol_violation', `The instance broke the runtime protocol: ${what}.`)
    this.#socket.destroy()
    return this.#reason
  }
}

function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const abort = () => reject(signal.reason)
    if (signal.aborted) abort()
    else signal.addEventListener('abort', abort, { once: true })
  })
}
