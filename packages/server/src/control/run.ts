import { type BootMethod, type CodeFailure, errorTable, type InvokeMeta, newId, ThawError } from '@thaw/protocol'
import type { InvocationRow } from '../store/store.ts'
import type { Lease } from './group.ts'
import type { LogBook } from './logbook.ts'
import type { Scheduler } from './scheduler.ts'
import type { Version } from './version.ts'

/** What is known of an invocation before it has an instance, whichever contract its function has. */
export interface RunRequest {
  trigger: InvokeMeta['trigger']
  /** Bytes of the body, as far as they are known before it has arrived. */
  bodyBytes: number
  /** Shortens, but never lengthens, the version's own limit. */
  timeoutMs?: number | undefined
}

export interface AnswerInfo {
  invocationId: string
  bootMethod: BootMethod
  timing: { queue_ms: number; boot_ms: number; init_ms: number; run_ms: number }
}

export interface InvokerOptions {
  maxPayloadBytes: number
  maxLogBytes: number
}

export interface RunParts {
  scheduler: Scheduler
  logBook: LogBook
  options: InvokerOptions
  finished(run: Run): void
}

/**
 * After a longer call its instance is looked at before it gets the next one: the kernel may have killed a child of the code
 * for want of memory, and what is left of such a sandbox is not to be trusted. Shorter ones have not filled a memory.
 */
const harmlessMs = 10
/** Further digits of a duration mean nothing, and cost each record some bytes. */
function toMicroseconds(ms: number): number {
  return Math.round(ms * 1000) / 1000
}

/** Larger results are not kept in the record. */
export const maxKeptResultBytes = 16 * 1024

/**
 * One run of a function, from the request to its record: waits for an instance, keeps the time limit, and ends exactly
 * once. What is said to the instance, and how, is for the subclasses.
 */
export abstract class Run {
  readonly id = newId('inv')
  readonly version: Version
  readonly createdAt = Date.now()
  protected readonly parts: RunParts
  protected lease: Lease | undefined
  protected requestBytes: number
  protected resultBytes = 0
  readonly #request: RunRequest
  readonly #t0 = performance.now()
  #settle: (() => void) | undefined
  #done: Promise<void> | undefined
  #waiting: AbortController | undefined
  #timer: NodeJS.Timeout | undefined
  #startedAt: number | null = null
  #tStarted = 0
  #tEnded = 0
  #status: InvocationRow['status'] = 'running'
  #error: InvocationRow['error'] = null
  #result: string | null = null
  #resultIsText = false
  #finalInfo: AnswerInfo | null = null

  constructor(version: Version, request: RunRequest, parts: RunParts) {
    this.version = version
    this.parts = parts
    this.#request = request
    this.requestBytes = request.bodyBytes
  }

  /** The run has an instance. */
  protected abstract begin(lease: Lease, deadlineMs: number): void
  /** The run is over: whoever waits for the answer hears why there is none, or not all of it. */
  protected abstract failed(error: ThawError, info: AnswerInfo | null): void
  /** The run is over: the lease is given back. `clean`: the instance has given its last word on it. */
  protected abstract leave(lease: Lease, status: InvocationRow['status'], clean: boolean): void

  /** It may last as long as somebody listens: a server that stops does not wait for it. */
  get endless(): boolean {
    return false
  }

  /** Resolves when it has ended. */
  get done(): Promise<void> {
    if (this.#tEnded > 0) return Promise.resolve()
    this.#done ??= new Promise((resolve) => {
      this.#settle = resolve
    })
    return this.#done
  }

  get isRunning(): boolean {
    return this.#status === 'running'
  }

  start(): void {
    const limit = Math.min(this.version.config.timeout_ms, this.#request.timeoutMs ?? Number.POSITIVE_INFINITY)
    const lease = this.parts.scheduler.take(this.version)
    if (lease !== null) {
      this.#run(lease, limit)
      return
    }
    this.#waiting = new AbortController()
    this.parts.scheduler.wait(this.version, this.#waiting.signal).then(
      (granted) => {
        if (this.#status !== 'running') this.parts.scheduler.release(granted, true)
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

  get info(): AnswerInfo | null {
    const lease = this.lease
    if (lease === undefined) return null
    if (this.#finalInfo !== null) return this.#finalInfo
    const times = lease.reused ? { boot_ms: 0, init_ms: 0 } : lease.instance.times
    const waited = this.#tStarted - this.#t0
    const info = {
      invocationId: this.id,
      bootMethod: lease.reused ? 'reused' : lease.instance.bootMethod,
      timing: {
        queue_ms: toMicroseconds(Math.max(0, waited - times.boot_ms - times.init_ms)),
        boot_ms: toMicroseconds(times.boot_ms),
        init_ms: toMicroseconds(times.init_ms),
        run_ms: toMicroseconds((this.#tEnded || performance.now()) - this.#tStarted),
      },
    }
    // The record and the answer say the same.
    if (this.#tEnded > 0) this.#finalInfo = info
    return info
  }

  /** The record, as it stands now. */
  row(): InvocationRow {
    const info = this.info
    return {
      id: this.id,
      tenant: this.version.tenant,
      function: this.version.functionName,
      version: this.version.number,
      status: this.#status,
      attempt: 1,
      trigger: this.#request.trigger,
      boot_method: info?.bootMethod ?? null,
      sandbox_id: this.lease?.instance.id ?? null,
      result: this.#result === null ? null : this.#resultIsText ? JSON.stringify(this.#result) : this.#result,
      error: this.#error,
      request_bytes: this.requestBytes,
      result_bytes: this.resultBytes,
      timing: info?.timing ?? null,
      logs_truncated: this.logsTruncated,
      created_at: this.createdAt,
      started_at: this.#startedAt,
      ended_at: this.#tEnded > 0 ? Math.round(this.createdAt + (this.#tEnded - this.#t0)) : null,
    }
  }

  protected get logsTruncated(): boolean {
    return false
  }

  #run(lease: Lease, limit: number): void {
    this.lease = lease
    this.#tStarted = performance.now()
    this.#startedAt = Date.now()
    this.#timer = setTimeout(() => this.#timedOut(limit), limit)
    // Waiting for an instance is the platform's time, not the function's: the limit counts from here.
    this.begin(lease, this.#startedAt + limit)
  }

  /** When it got its instance, on the monotonic clock. */
  protected get startedAt(): number {
    return this.#tStarted
  }

  /** From here on it may last for as long as it likes. */
  protected stopTimer(): void {
    clearTimeout(this.#timer)
  }

  /** Keeps an answer in the record, if it can be read there. */
  protected keepResult(contentType: string, body: Buffer): void {
    if (body.length > maxKeptResultBytes) return
    const json = contentType.startsWith('application/json')
    if (!json && !contentType.startsWith('text/')) return
    this.#resultIsText = !json
    this.#result = body.toString('utf8')
  }

  protected get outOfMemoryError(): ThawError {
    return new ThawError(
      'out_of_memory',
      `The function used more memory than its limit of ${this.version.config.resources.memory_mib} MiB.`,
    )
  }

  #timedOut(limit: number): void {
    this.end('timed_out', new ThawError('timed_out', `The function did not finish within ${limit} ms.`), false)
  }

  #fail(error: ThawError): void {
    this.end(error.code === 'cancelled' || error.code === 'shutting_down' ? 'cancelled' : 'failed', error, false)
  }

  protected end(status: InvocationRow['status'], error: ThawError, clean: boolean): void {
    if (this.#status !== 'running') return
    const details = error.code === 'function_failed' ? (error.details as Partial<CodeFailure>) : undefined
    this.#error = { code: error.code, message: error.message, ...(details === undefined ? {} : { details }) }
    // What the code itself reports, it has said already; what was done to it, only the platform can tell.
    if (errorTable[error.code].blame === 'code' && details === undefined) {
      const line = {
        invocationId: this.id,
        sandboxId: this.lease?.instance.id ?? null,
        source: 'platform',
        message: error.message,
      } as const
      this.parts.logBook.add(this.version, line)
    }
    this.finish(status, clean)
    this.failed(error, this.info)
  }

  protected finish(status: InvocationRow['status'], clean: boolean): void {
    if (this.#status !== 'running') return
    this.#status = status
    this.#tEnded = performance.now()
    clearTimeout(this.#timer)
    if (this.lease === undefined) this.#waiting?.abort(new ThawError('cancelled'))
    else this.leave(this.lease, status, clean)
    this.parts.finished(this)
    this.#settle?.()
  }

  /** Gives back an instance that has answered. */
  protected giveBack(lease: Lease): void {
    if (this.#tEnded - this.#tStarted < harmlessMs) this.parts.scheduler.release(lease, true)
    else void lease.instance.outOfMemory().then((outOfMemory) => this.parts.scheduler.release(lease, !outOfMemory))
  }
}
