import { type CodeFailure, type InvokeMeta, type ResultMeta, ThawError } from '@thaw/protocol'
import type { CallBody, CallSink, LogSource } from '../runtimes/connection.ts'
import type { InvocationRow } from '../store/store.ts'
import type { Lease } from './group.ts'
import { type AnswerInfo, Run, type RunParts, type RunRequest } from './run.ts'
import type { Version } from './version.ts'

export interface InvokeRequest extends RunRequest {
  body: CallBody
  contentType: string
  http?: InvokeMeta['http']
}

/** Where the answer goes. Exactly one of `answer` without `more`, `end` and `error` comes last. */
export interface AnswerSink {
  answer(meta: ResultMeta, body: Buffer, info: AnswerInfo): void
  /** False: the receiver is slow; nothing more is read until `Invocation.resume`. */
  chunk(bytes: Buffer): boolean
  end(): void
  /** `info` is null when no instance was reached. After `answer` with `more`, the answer is broken off. */
  error(error: ThawError, info: AnswerInfo | null): void
}

/** How long code may take to stop once it is told to, before its instance is destroyed. */
const cancelGraceMs = 500

/** A run that goes through the runtime protocol: one call, one answer. */
export class Invocation extends Run implements CallSink {
  readonly #request: InvokeRequest
  readonly #sink: AnswerSink
  #stream = 0
  #logBytes = 0
  #logsTruncated = false
  #streaming = false

  constructor(version: Version, request: InvokeRequest, sink: AnswerSink, parts: RunParts) {
    super(version, request, parts)
    this.#request = request
    this.#sink = sink
  }

  /** After `AnswerSink.chunk` returned false. */
  resume(): void {
    this.lease?.instance.resume()
  }

  protected override get logsTruncated(): boolean {
    return this.#logsTruncated
  }

  protected begin(lease: Lease, deadlineMs: number): void {
    const request = this.#request
    this.#stream = lease.instance.call(
      {
        id: this.id,
        attempt: 1,
        deadline_ms: deadlineMs,
        content_type: request.contentType,
        trigger: request.trigger,
        ...(request.http === undefined ? {} : { http: request.http }),
      },
      request.body,
      this,
    )
  }

  protected failed(error: ThawError, info: AnswerInfo | null): void {
    this.#sink.error(error, info)
  }

  protected leave(lease: Lease, _status: InvocationRow['status'], clean: boolean): void {
    lease.instance.finished(this.#stream)
    // A receiver that was slow to the last has no reason any more to say that it caught up.
    if (this.#streaming) lease.instance.resume()
    if (clean) this.giveBack(lease)
    else this.#stop(lease)
  }

  // What the runtime says (CallSink).

  onResult(meta: ResultMeta, body: Buffer): void {
    this.resultBytes += body.length
    if (this.resultBytes > this.parts.options.maxPayloadBytes) {
      this.end('failed', new ThawError('result_too_large'), false)
      return
    }
    if (meta.more) {
      this.#streaming = true
      this.#sink.answer(meta, body, this.info as AnswerInfo)
      return
    }
    this.keepResult(meta.content_type, body)
    this.finish('succeeded', true)
    this.#sink.answer(meta, body, this.info as AnswerInfo)
  }

  onChunk(bytes: Buffer): boolean {
    this.resultBytes += bytes.length
    if (this.resultBytes > this.parts.options.maxPayloadBytes) {
      this.end('failed', new ThawError('result_too_large'), false)
      return true
    }
    return this.#sink.chunk(bytes)
  }

  onEnd(): void {
    this.finish('succeeded', true)
    this.#sink.end()
  }

  onFailed(failure: CodeFailure & { reason: string }): void {
    const { reason, ...details } = failure
    if (reason === 'invalid_payload') {
      this.end('failed', new ThawError('invalid_json', `The payload is not what its content type says: ${failure.message}`), true)
      return
    }
    const instance = this.lease?.instance
    if (instance === undefined) return
    const error = new ThawError('function_failed', `${failure.type}: ${failure.message}`.slice(0, 4096), { details })
    // A program that the kernel killed for want of memory looks like any failure from inside.
    this.stopTimer()
    void instance.outOfMemory().then((outOfMemory) => {
      if (outOfMemory) this.end('failed', this.outOfMemoryError, false)
      else this.end('failed', error, true)
    })
  }

  onLost(): void {
    const instance = this.lease?.instance
    if (instance === undefined) return
    this.stopTimer()
    void Promise.all([instance.outOfMemory(), instance.lost]).then(([outOfMemory, reason]) => {
      this.end('failed', outOfMemory ? this.outOfMemoryError : reason, false)
    })
  }

  onLog(source: LogSource, text: string): void {
    if (this.#logsTruncated) return
    this.#logBytes += text.length
    const { maxLogBytes } = this.parts.options
    let message = text
    if (this.#logBytes > maxLogBytes) {
      this.#logsTruncated = true
      message = `${text.slice(0, Math.max(0, text.length - (this.#logBytes - maxLogBytes)))} … (truncated)`
    }
    this.parts.logBook.add(this.version, { invocationId: this.id, sandboxId: this.lease?.instance.id ?? null, source, message })
  }

  /**
   * The code may still be at work on a call that is over. It is told to stop; if it does not within the grace, its
   * instance is destroyed, and with it, where an instance carries several, calls that could not have trusted it.
   */
  #stop(lease: Lease): void {
    let given = false
    const give = (reusable: boolean) => {
      if (given) return
      given = true
      clearTimeout(timer)
      this.parts.scheduler.release(lease, reusable)
    }
    const timer = setTimeout(() => give(false), cancelGraceMs)
    // What a slow receiver held back must not keep the runtime from saying that it stopped.
    lease.instance.resume()
    void lease.instance.cancel(this.#stream).then(give)
  }
}
