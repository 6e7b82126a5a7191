import { type BootMethod, type CodeFailure, type InvokeMeta, newId, type ResultMeta, ThawError } from '@thaw/protocol'
import type { CallBody, CallSink, LogSource } from '../runtimes/connection.ts'
import type { InvocationRow } from '../store/store.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { Lease } from './group.ts'
import type { LogBook } from './logbook.ts'
import type { Scheduler } from './scheduler.ts'
import type { Version } from './version.ts'

export interface InvokeRequest {
  body: CallBody
  /** Bytes of the body, as far as they are known before it has arrived. */
  bodyBytes: number
  contentType: string
  trigger: InvokeMeta['trigger']
  http?: InvokeMeta['http']
  /** Shortens, but never lengthens, the version's own limit. */
  timeoutMs?: number | undefined
}

export interface AnswerInfo {
  invocationId: string
  bootMethod: BootMethod
  timing: { queue_ms: number; boot_ms: number; init_ms: number; run_ms: number }
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

export interface InvokerOptions {
  maxPayloadBytes: number
  maxLogBytes: number
}

interface Records {
  invocation(row: InvocationRow): void
}

/** How long code may take to stop once it is told to, before its instance is destroyed. */
const cancelGraceMs = 500
/**
 * After a longer call its instance is looked at before it gets the next one: the kernel may have killed a child of the code
 * for want of memory, and what is left of such a sandbox is not to be trusted. Shorter ones have not filled a memory.
 */
const harmlessMs = 10
/** Larger results are not kept in the record. */
const maxKeptResultBytes = 16 * 1024

/** Runs invocations: finds an instance, enforces the time limit, reports, records. */
export class Invoker {
  readonly #scheduler: Scheduler
  readonly #records: Records
  readonly #logBook: LogBook
  readonly #metrics: Metrics
  readonly #options: InvokerOptions
  readonly #active = new Map<string, Invocation>()

  constructor(options: InvokerOptions, parts: { scheduler: Scheduler; records: Records; logBook: LogBook; metrics: Metrics }) {
    this.#options = options
    this.#scheduler = parts.scheduler
    this.#records = parts.records
    this.#logBook = parts.logBook
    this.#metrics = parts.metrics
  }

  invoke(version: Version, request: InvokeRequest, sink: AnswerSink): Invocation {
    const invocation = new Invocation(version, request, sink, {
      scheduler: this.#scheduler,
      logBook: this.#logBook,
      options: this.#options,
      finished: (ended) => {
        this.#active.delete(ended.id)
        const row = ended.row()
        this.#records.invocation(row)
        this.#metrics.invocation(row)
      },
    })
    this.#active.set(invocation.id, invocation)
    invocation.start()
    return invocation
  }

  /** An invocation that has not ended, or undefined. */
  active(id: string): Invocation | undefined {
    return this.#active.get(id)
  }

  /** All that run now, oldest first. */
  get running(): Invocation[] {
    return [...this.#active.values()]
  }

  cancelAllOf(functionName: string, reason: ThawError): void {
    for (const invocation of this.#active.values()) if (invocation.version.functionName === functionName) invocation.cancel(reason)
  }

  /** Resolves when nothing runs any more; after `timeoutMs` what still runs is cancelled. */
  async drain(timeoutMs: number): Promise<void> {
    const deadline = AbortSignal.timeout(timeoutMs)
    while (this.#active.size > 0 && !deadline.aborted) {
      const settled = Promise.all([...this.#active.values()].map((invocation) => invocation.done))
      await Promise.race([settled, new Promise((resolve) => deadline.addEventListener('abort', resolve, { once: true }))])
    }
    for (const invocation of [...this.#active.values()]) invocation.cancel(new ThawError('shutting_down'))
  }
}

interface InvocationParts {
  scheduler: Scheduler
  logBook: LogBook
  options: InvokerOptions
  finished(invocation: Invocation): void
}

/** One run of a function. */
export class Invocation implements CallSink {
  readonly id = newId('inv')
  readonly version: Version
  readonly createdAt = Date.now()
  readonly #request: InvokeRequest
  readonly #sink: AnswerSink
  readonly #parts: InvocationParts
  readonly #t0 = performance.now()
  #settle: (() => void) | undefined
  #done: Promise<void> | undefined
  #waiting: AbortController | undefined
  #lease: Lease | undefined
  #stream = 0
  #timer: NodeJS.Timeout | undefined
  #deadlineMs = 0
  #startedAt: number | null = null
  #tStarted = 0
  #tEnded = 0
  #status: InvocationRow['status'] = 'running'
  #error: InvocationRow['error'] = null
  #result: string | null = null
  #resultText = false
  #resultBytes = 0
  #logBytes = 0
  #logsTruncated = false
  #streaming = false

  constructor(version: Version, request: InvokeRequest, sink: AnswerSink, parts: InvocationParts) {
    this.version = version
    this.#request = request
    this.#sink = sink
    this.#parts = parts
  }

  /** Resolves when it has ended. */
  get done(): Promise<void> {
    if (this.#tEnded > 0) return Promise.resolve()
    this.#done ??= new Promise((resolve) => {
      this.#settle = resolve
    })
    return this.#done
  }

  start(): void {
    const limit = Math.min(this.version.config.timeout_ms, this.#request.timeoutMs ?? Number.POSITIVE_INFINITY)
    this.#deadlineMs = this.createdAt + limit
    const lease = this.#parts.scheduler.take(this.version)
    if (lease !== null) {
      this.#run(lease, limit)
      return
    }
    this.#waiting = new AbortController()
    this.#parts.scheduler.wait(this.version, this.#waiting.signal).then(
      (granted) => {
        if (this.#status !== 'running') this.#parts.scheduler.release(granted, true)
        else this.#run(granted, limit)
      },
      (error: unknown) => this.#fail(error instanceof ThawError ? error : new ThawError('start_failed', undefined, { cause: error })),
    )
  }

  /** Ends it from outside: the client went away, asked for it, or the server stops. */
  cancel(reason: ThawError = new ThawError('cancelled')): void {
    if (this.#status !== 'running') return
    this.#fail(reason)
  }

  /** After `AnswerSink.chunk` returned false. */
  resume(): void {
    this.#lease?.instance.resume()
  }

  get info(): AnswerInfo | null {
    const lease = this.#lease
    if (lease === undefined) return null
    const times = lease.reused ? { boot_ms: 0, init_ms: 0 } : lease.instance.times
    const waited = this.#tStarted - this.#t0
    return {
      invocationId: this.id,
      bootMethod: lease.reused ? 'reused' : lease.instance.bootMethod,
      timing: {
        queue_ms: Math.max(0, waited - times.boot_ms - times.init_ms),
        ...times,
        run_ms: (this.#tEnded || performance.now()) - this.#tStarted,
      },
    }
  }

  /** The record, as it stands now. */
  row(): InvocationRow {
    const info = this.info
    return {
      id: this.id,
      function: this.version.functionName,
      version: this.version.number,
      status: this.#status,
      attempt: 1,
      trigger: this.#request.trigger,
      boot_method: info?.bootMethod ?? null,
      sandbox_id: this.#lease?.instance.id ?? null,
      result: this.#result === null ? null : this.#resultText ? JSON.stringify(this.#result) : this.#result,
      error: this.#error,
      request_bytes: this.#request.bodyBytes,
      result_bytes: this.#resultBytes,
      timing: info?.timing ?? null,
      logs_truncated: this.#logsTruncated,
      created_at: this.createdAt,
      started_at: this.#startedAt,
      ended_at: this.#tEnded > 0 ? Math.round(this.createdAt + (this.#tEnded - this.#t0)) : null,
    }
  }

  #run(lease: Lease, limit: number): void {
    this.#lease = lease
    this.#tStarted = performance.now()
    this.#startedAt = Date.now()
    // Waiting for an instance is the platform's time, not the function's: the limit counts from here.
    this.#deadlineMs = this.#startedAt + limit
    this.#timer = setTimeout(() => this.#timedOut(limit), limit)
    const request = this.#request
    this.#stream = lease.instance.call(
      {
        id: this.id,
        attempt: 1,
        deadline_ms: this.#deadlineMs,
        content_type: request.contentType,
        trigger: request.trigger,
        ...(request.http === undefined ? {} : { http: request.http }),
      },
      request.body,
      this,
    )
  }

  // What the runtime says (CallSink).

  onResult(meta: ResultMeta, body: Buffer): void {
    this.#resultBytes += body.length
    if (this.#resultBytes > this.#parts.options.maxPayloadBytes) {
      this.#breakOff(new ThawError('result_too_large'))
      return
    }
    if (meta.more) {
      this.#streaming = true
      this.#sink.answer(meta, body, this.info as AnswerInfo)
      return
    }
    this.#keepResult(meta, body)
    this.#finish('succeeded', true)
    this.#sink.answer(meta, body, this.info as AnswerInfo)
  }

  onChunk(bytes: Buffer): boolean {
    this.#resultBytes += bytes.length
    if (this.#resultBytes > this.#parts.options.maxPayloadBytes) {
      this.#breakOff(new ThawError('result_too_large'))
      return true
    }
    return this.#sink.chunk(bytes)
  }

  onEnd(): void {
    this.#finish('succeeded', true)
    this.#sink.end()
  }

  onFailed(failure: CodeFailure & { reason: string }): void {
    const { reason, ...details } = failure
    if (reason === 'invalid_payload') {
      this.#end('failed', new ThawError('invalid_json', `The payload is not what its content type says: ${failure.message}`), true)
      return
    }
    const instance = this.#lease?.instance
    const error = new ThawError('function_failed', `${failure.type}: ${failure.message}`.slice(0, 4096), { details })
    // A program that the kernel killed for want of memory looks like any failure from inside.
    const lease = this.#lease
    if (instance === undefined || lease === undefined) return
    clearTimeout(this.#timer)
    void instance.outOfMemory().then((outOfMemory) => {
      if (outOfMemory) this.#end('failed', this.#outOfMemory(), false)
      else this.#end('failed', error, true)
    })
  }

  onLost(): void {
    const instance = this.#lease?.instance
    if (instance === undefined) return
    clearTimeout(this.#timer)
    void Promise.all([instance.outOfMemory(), instance.lost]).then(([outOfMemory, reason]) => {
      this.#end('failed', outOfMemory ? this.#outOfMemory() : reason, false)
    })
  }

  onLog(source: LogSource, text: string): void {
    if (this.#logsTruncated) return
    this.#logBytes += text.length
    let message = text
    if (this.#logBytes > this.#parts.options.maxLogBytes) {
      this.#logsTruncated = true
      message = `${text.slice(0, Math.max(0, text.length - (this.#logBytes - this.#parts.options.maxLogBytes)))} … (truncated)`
    }
    this.#parts.logBook.add(this.version, { invocationId: this.id, sandboxId: this.#lease?.instance.id ?? null, source, message })
  }

  #outOfMemory(): ThawError {
    return new ThawError(
      'out_of_memory',
      `The function used more memory than its limit of ${this.version.config.resources.memory_mib} MiB.`,
    )
  }

  #timedOut(limit: number): void {
    this.#end('timed_out', new ThawError('timed_out', `The function did not finish within ${limit} ms.`), false)
  }

  #breakOff(error: ThawError): void {
    this.#end('failed', error, false)
  }

  #fail(error: ThawError): void {
    this.#end(error.code === 'cancelled' || error.code === 'shutting_down' ? 'cancelled' : 'failed', error, false)
  }

  #end(status: InvocationRow['status'], error: ThawError, clean: boolean): void {
    if (this.#status !== 'running') return
    const details = error.code === 'function_failed' ? (error.details as Partial<CodeFailure>) : undefined
    this.#error = { code: error.code, message: error.message, ...(details === undefined ? {} : { details }) }
    this.#finish(status, clean)
    this.#sink.error(error, this.info)
  }

  #keepResult(meta: ResultMeta, body: Buffer): void {
    if (body.length > maxKeptResultBytes || this.#streaming) return
    const json = meta.content_type.startsWith('application/json')
    if (!json && !meta.content_type.startsWith('text/')) return
    this.#resultText = !json
    this.#result = body.toString('utf8')
  }

  /** `clean`: the instance has given its last word on this call and can take the next one. */
  #finish(status: InvocationRow['status'], clean: boolean): void {
    if (this.#status !== 'running') return
    this.#status = status
    this.#tEnded = performance.now()
    clearTimeout(this.#timer)
    const lease = this.#lease
    if (lease === undefined) this.#waiting?.abort(new ThawError('cancelled'))
    else {
      lease.instance.finished(this.#stream)
      // A receiver that was slow to the last has no reason any more to say that it caught up.
      if (this.#streaming) lease.instance.resume()
      if (!clean) this.#stop(lease)
      else if (this.#tEnded - this.#tStarted < harmlessMs) this.#parts.scheduler.release(lease, true)
      else void lease.instance.outOfMemory().then((outOfMemory) => this.#parts.scheduler.release(lease, !outOfMemory))
    }
    this.#parts.finished(this)
    this.#settle?.()
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
      this.#parts.scheduler.release(lease, reusable)
    }
    const timer = setTimeout(() => give(false), cancelGraceMs)
    // What a slow receiver held back must not keep the runtime from saying that it stopped.
    lease.instance.resume()
    void lease.instance.cancel(this.#stream).then(give)
  }
}
