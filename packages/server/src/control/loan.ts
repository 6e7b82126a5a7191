import { ThawError } from '@thaw/protocol'
import type { InvocationRow } from '../store/store.ts'
import type { Lease } from './group.ts'
import type { Instance } from './instance.ts'
import { type AnswerInfo, maxKeptResultBytes, Run, type RunParts, type RunRequest } from './run.ts'
import type { Version } from './version.ts'

/** Whoever borrows an instance. Hears `granted` at most once, and `revoked` only if it has not ended the loan itself. */
export interface Borrower {
  granted(loan: Loan): void
  /** The run is over: no instance, the time limit, cancelled, the instance lost. `info` is null when there was no instance. */
  revoked(error: ThawError, info: AnswerInfo | null): void
}

/** A program that ends closes its connections a moment before the platform hears of its end. */
const endingMs = 200

/**
 * A run whose caller speaks to the instance itself, over connections of its own (the http contract): the platform lends the
 * instance, keeps time and record, and takes it back.
 */
export class Loan extends Run {
  readonly #borrower: Borrower
  #lasting = false
  #breaking = false
  #kept: { contentType: string; pieces: Buffer[] } | null = null

  constructor(version: Version, request: RunRequest, borrower: Borrower, parts: RunParts) {
    super(version, request, parts)
    this.#borrower = borrower
  }

  /** Only of a loan that was granted. */
  get instance(): Instance {
    if (this.lease === undefined) throw new Error('the loan was not granted')
    return this.lease.instance
  }

  override get endless(): boolean {
    return this.#lasting
  }

  /** Counts what went to the instance. False: it is too much, and the loan is over. */
  took(bytes: number): boolean {
    this.requestBytes += bytes
    const limit = this.parts.options.maxPayloadBytes
    if (this.requestBytes <= limit || this.#lasting) return true
    this.end('failed', new ThawError('payload_too_large', `The body is larger than ${limit} bytes.`), true)
    return false
  }

  /** The instance has begun to answer. `contentType`: of an answer that may be kept in the record. */
  answered(contentType: string | null): void {
    this.instance.answeredAt = performance.now()
    if (contentType !== null) this.#kept = { contentType, pieces: [] }
  }

  /** Counts a piece of the answer. False: it is too much, and the loan is over. */
  gave(bytes: Buffer): boolean {
    this.resultBytes += bytes.length
    if (this.resultBytes > maxKeptResultBytes) this.#kept = null
    else this.#kept?.pieces.push(bytes)
    if (this.resultBytes <= this.parts.options.maxPayloadBytes) return true
    this.end('failed', new ThawError('result_too_large'), true)
    return false
  }

  /** Both sides keep the connection for as long as they like: the time limit and that of the size end here. */
  last(): void {
    this.#lasting = true
    this.stopTimer()
  }

  /** What went over a connection that lasted. */
  counted(requestBytes: number, resultBytes: number): void {
    this.requestBytes = requestBytes
    this.resultBytes = resultBytes
  }

  /** The answer is complete. */
  complete(): void {
    if (this.#kept !== null) this.keepResult(this.#kept.contentType, Buffer.concat(this.#kept.pieces))
    this.finish('succeeded', true)
  }

  /** The instance ended a connection, or refused one, before its answer was complete. */
  broken(cause: Error): void {
    const message = 'The function closed the connection before its answer was complete.'
    this.#unlessLost(() => this.end('failed', new ThawError('function_crashed', message, { cause }), true))
  }

  /** The instance ended a connection that lasted: as it may, unless it ended itself. */
  hungUp(): void {
    this.#unlessLost(() => this.complete())
  }

  #unlessLost(then: () => void): void {
    if (!this.isRunning || this.#breaking) return
    this.#breaking = true
    this.stopTimer()
    const { instance } = this
    let timer: NodeJS.Timeout | undefined
    const pause = new Promise<null>((resolve) => {
      timer = setTimeout(resolve, endingMs, null)
    })
    void Promise.race([instance.lost, pause]).then(async (lost) => {
      clearTimeout(timer)
      if (await instance.outOfMemory()) this.end('failed', this.outOfMemoryError, false)
      else if (lost !== null) this.end('failed', lost, false)
      else then()
    })
  }

  protected begin(lease: Lease): void {
    lease.instance.carry(this, this.id)
    this.#borrower.granted(this)
  }

  protected failed(error: ThawError, info: AnswerInfo | null): void {
    this.#borrower.revoked(error, info)
  }

  /**
   * Nobody can tell a web server to stop working on one request, or hear that it did. One that has answered others since
   * goes on; one that answered nobody until the time was over is taken to hang.
   */
  protected leave(lease: Lease, status: InvocationRow['status'], clean: boolean): void {
    lease.instance.finished(this)
    if (clean) this.giveBack(lease)
    else {
      const answersOthers = status === 'timed_out' && lease.instance.answeredAt > this.startedAt
      this.parts.scheduler.release(lease, status === 'cancelled' || answersOthers)
    }
  }
}
