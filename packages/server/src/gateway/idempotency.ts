import type { IncomingMessage, ServerResponse } from 'node:http'
import { errorTable, idempotencyKeySchema, newId, type ResultMeta, ThawError, toThawError } from '@thaw/protocol'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Answer, Attempt, fingerprintOf, type Idempotency, maxKeptAnswerBytes } from '../control/idempotency.ts'
import type { AnswerSink, Invocation } from '../control/invocation.ts'
import type { AnswerInfo } from '../control/run.ts'
import { callerOf } from './auth.ts'
import { answerHeaders, functionHeaders } from './headers.ts'
import { type ErrorReport, refuseUnread, respondError, respondRunError } from './respond.ts'

/** The body has to be there whole before it is known whether it came before. */
export const maxRepeatableBytes = 8 * 1024 * 1024

const replayed = { 'idempotent-replayed': 'true' }

/** The Idempotency-Key of a request, or null. Throws `invalid_request` for one that cannot be. */
export function idempotencyKeyOf(request: IncomingMessage): string | null {
  const header = request.headers['idempotency-key']
  if (header === undefined) return null
  const parsed = idempotencyKeySchema.safeParse(header)
  if (!parsed.success) throw new ThawError('invalid_request', `Idempotency-Key: ${parsed.error.issues[0]?.message}.`)
  return parsed.data
}

/**
 * Does the work of a route and answers with it; for a request with an Idempotency-Key once only. `asked` is what is asked
 * for, all that decides about the work. `token` names the request in what is made, so that it is known after a crash.
 */
export async function answerOnce(
  request: FastifyRequest,
  reply: FastifyReply,
  idempotency: Idempotency,
  asked: () => (string | Uint8Array)[],
  work: (token: string | null) => Promise<{ status: number; body: object }>,
): Promise<FastifyReply> {
  const key = idempotencyKeyOf(request.raw)
  if (key === null) {
    const { status, body } = await work(null)
    return reply.status(status).send(body)
  }
  const caller = callerOf(request)
  const fingerprint = fingerprintOf(request.method, request.url, ...asked())
  const attempt = await idempotency.begin(caller, key)
  if (!(attempt instanceof Attempt)) {
    const answer = attempt.replay(fingerprint)
    return reply
      .status(answer.status)
      .headers({ ...answer.headers, ...replayed })
      .send(answer.body)
  }
  let done: { status: number; body: object }
  try {
    done = await work(fingerprintOf(caller.tenant, key, fingerprint))
  } catch (error) {
    // What was refused or undone may be asked for again.
    attempt.release()
    throw error
  }
  const body = Buffer.from(JSON.stringify(done.body))
  const headers = { 'content-type': 'application/json; charset=utf-8' }
  await attempt.keep(fingerprint, { status: done.status, headers, body })
  return reply.status(done.status).headers(headers).send(body)
}

export interface RepeatableInvoke {
  idempotency: Idempotency
  key: string
  /** Whose key it is, and all that decides about the invocation but the body. */
  caller: Parameters<Idempotency['begin']>[0]
  asked: string[]
  functionName: string
  maxPayloadBytes: number
  report: ErrorReport
  /** The sink of an answer that is passed on as it comes. */
  direct: AnswerSink & { invocation: Invocation | undefined }
  start(body: Buffer, sink: AnswerSink): Invocation
}

/** An invocation with an Idempotency-Key: the first one runs, also when its client goes away; others get its answer. */
export async function invokeOnce(request: IncomingMessage, response: ServerResponse, invoke: RepeatableInvoke): Promise<void> {
  let attempt: Awaited<ReturnType<Idempotency['begin']>>
  try {
    attempt = await invoke.idempotency.begin(invoke.caller, invoke.key)
  } catch (error) {
    refuseUnread(request, response, toThawError(error))
    return
  }
  let body: Buffer
  try {
    body = await readWhole(request, Math.min(invoke.maxPayloadBytes, maxRepeatableBytes))
  } catch (error) {
    if (attempt instanceof Attempt) attempt.release()
    refuseUnread(request, response, toThawError(error))
    return
  }
  const fingerprint = fingerprintOf(...invoke.asked, body)
  if (attempt instanceof Attempt) {
    const sink = new KeptSink(response, fingerprint, attempt, invoke)
    sink.invocation = invoke.start(body, sink)
    invoke.direct.invocation = sink.invocation
    return
  }
  try {
    write(response, attempt.replay(fingerprint), replayed)
  } catch (error) {
    respondError(response, toThawError(error))
  }
}

/** Keeps an answer before it goes out. One that turns out too large to be kept is passed on from there as it comes. */
class KeptSink implements AnswerSink {
  invocation: Invocation | undefined
  readonly #response: ServerResponse
  readonly #fingerprint: string
  readonly #attempt: Attempt
  readonly #invoke: RepeatableInvoke
  #head: { meta: ResultMeta; info: AnswerInfo } | undefined
  #pieces: Buffer[] = []
  #bytes = 0
  /** The answer is too large: kept is that there is one, then it is passed on. */
  #state: 'gathering' | 'marking' | 'passing' = 'gathering'
  /** How it ended while it was being marked. */
  #last: (() => void) | undefined

  constructor(response: ServerResponse, fingerprint: string, attempt: Attempt, invoke: RepeatableInvoke) {
    this.#response = response
    this.#fingerprint = fingerprint
    this.#attempt = attempt
    this.#invoke = invoke
  }

  answer(meta: ResultMeta, body: Buffer, info: AnswerInfo): void {
    this.#head = { meta, info }
    this.chunk(body)
    if (!meta.more) this.end()
  }

  chunk(bytes: Buffer): boolean {
    if (this.#state === 'passing') return this.#invoke.direct.chunk(bytes)
    this.#pieces.push(bytes)
    this.#bytes += bytes.length
    if (this.#state === 'gathering' && this.#bytes > maxKeptAnswerBytes) this.#mark()
    return this.#state === 'gathering'
  }

  end(): void {
    const { direct } = this.#invoke
    if (this.#state === 'passing') direct.end()
    else if (this.#state === 'marking') this.#last = () => direct.end()
    else this.#complete()
  }

  error(error: ThawError, info: AnswerInfo | null): void {
    const { direct } = this.#invoke
    if (this.#state !== 'gathering') {
      const say = () => direct.error(error, info)
      if (this.#state === 'passing') say()
      else this.#last = say
      return
    }
    // The code ran and failed: that is its answer. Whatever else went wrong may go better the next time.
    if (info === null || errorTable[error.code].blame !== 'code') {
      this.#attempt.release()
      respondRunError(this.#invoke.report, this.#invoke.functionName, this.#response, error, info)
      return
    }
    const headers = { 'content-type': 'application/json; charset=utf-8', 'thaw-function': this.#invoke.functionName }
    const body = Buffer.from(JSON.stringify(error.toBody(newId('req'))))
    this.#keep({ status: error.status, headers, body }, info)
  }

  #complete(): void {
    const { meta, info } = this.#head as { meta: ResultMeta; info: AnswerInfo }
    try {
      const own = meta.headers === undefined ? {} : functionHeaders(meta.headers)
      const headers = { ...own, 'content-type': meta.content_type }
      this.#keep({ status: meta.status ?? 200, headers, body: Buffer.concat(this.#pieces) }, info)
    } catch (error) {
      this.error(toThawError(error), info)
    }
  }

  #keep(answer: Answer, info: AnswerInfo): void {
    const all = answerHeaders(info)
    const kept = { 'thaw-invocation-id': String(all['thaw-invocation-id']), 'thaw-boot-method': String(all['thaw-boot-method']) }
    this.#attempt.keep(this.#fingerprint, { ...answer, headers: { ...answer.headers, ...kept } }).then(
      () => write(this.#response, answer, all),
      (error) => this.#notKept(error, info),
    )
  }

  #mark(): void {
    this.#state = 'marking'
    const { meta, info } = this.#head as { meta: ResultMeta; info: AnswerInfo }
    this.#attempt.keep(this.#fingerprint, null).then(
      () => {
        this.#state = 'passing'
        const { direct } = this.#invoke
        direct.answer({ ...meta, more: true }, Buffer.concat(this.#pieces), info)
        this.#pieces = []
        if (this.#last !== undefined) this.#last()
        else this.invocation?.resume()
      },
      (error) => {
        this.invocation?.cancel()
        this.#notKept(error, info)
      },
    )
  }

  /** The function ran, but a second request would not be known: who asks must not take this for an answer that is kept. */
  #notKept(error: unknown, info: AnswerInfo): void {
    respondRunError(this.#invoke.report, this.#invoke.functionName, this.#response, toThawError(error), info)
  }
}

function write(response: ServerResponse, { status, headers, body }: Answer, more: Record<string, string | number>): void {
  if (response.destroyed) return
  response.writeHead(status, { ...headers, ...more, 'content-length': body.length })
  response.end(body)
}

async function readWhole(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new ThawError('payload_too_large', `A body that comes with an Idempotency-Key may have ${maxBytes} bytes.`, {
      fix: 'Send less, or send it without Idempotency-Key.',
    })
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) throw tooLarge()
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of request as AsyncIterable<Buffer>) {
    bytes += piece.length
    if (bytes > maxBytes) throw tooLarge()
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}
