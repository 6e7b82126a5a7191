import { type Agent, type ClientRequest, type IncomingMessage, type ServerResponse, request as sendRequest } from 'node:http'
import { ThawError, toThawError } from '@thaw/protocol'
import type { Loan } from '../control/loan.ts'
import type { AnswerInfo } from '../control/run.ts'
import { answerHeaders, endToEnd, requestHeaders } from './headers.ts'
import type { Agents, Target } from './proxy.ts'
import { type ErrorReport, respondRunError } from './respond.ts'
import type { Tunnel } from './upgrade.ts'

/** Methods that may be sent twice (RFC 9110, 9.2.1). */
const safeMethods = new Set(['GET', 'HEAD', 'OPTIONS'])

/** One request on its way to the web server of a function, and the answer on its way back. */
export class Exchange {
  readonly #functionName: string
  readonly #target: Target
  readonly #request: IncomingMessage
  readonly #response: ServerResponse
  readonly #report: ErrorReport
  readonly #tunnel: Tunnel | undefined
  readonly #hasBody: boolean
  #upstream: ClientRequest | undefined

  constructor(
    functionName: string,
    target: Target,
    request: IncomingMessage,
    response: ServerResponse,
    report: ErrorReport,
    tunnel?: Tunnel,
  ) {
    this.#functionName = functionName
    this.#target = target
    this.#request = request
    this.#response = response
    this.#report = report
    this.#tunnel = tunnel
    const { 'content-length': length, 'transfer-encoding': coding } = request.headers
    this.#hasBody = coding !== undefined || (length !== undefined && Number(length) > 0)
  }

  begin(loan: Loan, agents: Agents): void {
    // The server may just be closing a kept connection. Only what may be sent twice takes that risk.
    const repeatable = !this.#hasBody && this.#tunnel === undefined && safeMethods.has(this.#request.method ?? '')
    try {
      const upstream = this.#send(loan, repeatable ? agents.kept : agents.fresh, repeatable ? agents.fresh : null)
      if (this.#hasBody) this.#sendBody(loan, upstream)
    } catch (error) {
      loan.cancel(new ThawError('invalid_request', 'The request cannot be passed on.', { cause: error }))
    }
  }

  /** The loan is over before the answer was complete. */
  revoked(error: ThawError, info: AnswerInfo | null): void {
    if (this.#upstream !== undefined) this.#request.unpipe(this.#upstream)
    this.#upstream?.destroy()
    if (this.#tunnel?.joined) this.#tunnel.destroy()
    else respondRunError(this.#report, this.#functionName, this.#response, error, info)
  }

  #send(loan: Loan, agent: Agent, second: Agent | null): ClientRequest {
    const { method = 'GET' } = this.#request
    const headers = requestHeaders(this.#request, loan.id, this.#target.prefix)
    if (this.#tunnel !== undefined) headers.push('Connection', 'Upgrade', 'Upgrade', this.#request.headers.upgrade ?? '')
    else if (this.#hasBody) {
      if (this.#request.headers['content-length'] === undefined) headers.push('Transfer-Encoding', 'chunked')
    } else if (!safeMethods.has(method) && this.#request.headers['content-length'] === undefined) headers.push('Content-Length', '0')
    const upstream = sendRequest({ agent, method, path: this.#target.path, headers, setHost: false })
    this.#upstream = upstream
    let answered = false
    upstream.once('response', (answer) => {
      answered = true
      this.#answer(loan, answer)
    })
    upstream.on('error', (error) => {
      if (loan.isRunning && !answered && second !== null && upstream.reusedSocket) this.#send(loan, second, null)
      else loan.broken(error)
    })
    if (this.#tunnel !== undefined) {
      upstream.once('upgrade', (answer, stream, head) => this.#tunnel?.join(loan, this.#response, answer, stream, head))
    }
    if (!this.#hasBody) upstream.end()
    return upstream
  }

  #sendBody(loan: Loan, upstream: ClientRequest): void {
    this.#request.on('data', (piece: Buffer) => loan.took(piece.length))
    this.#request.pipe(upstream)
  }

  #answer(loan: Loan, answer: IncomingMessage): void {
    const response = this.#response
    const { 'content-type': contentType = '', 'content-encoding': coding } = answer.headers
    loan.answered(coding === undefined ? contentType : null)
    // After a break nothing is said here that `broken` does not say.
    answer.on('error', (error) => loan.broken(error))
    try {
      response.writeHead(answer.statusCode ?? 502, this.#answerHeaders(loan, answer))
    } catch (error) {
      loan.cancel(new ThawError('function_failed', 'The function answered with a head that is not allowed.', { cause: toThawError(error) }))
      return
    }
    let written = false
    answer.on('data', (piece: Buffer) => {
      written = true
      if (!loan.gave(piece)) return
      if (response.write(piece)) return
      answer.pause()
      response.once('drain', () => answer.resume())
    })
    answer.once('end', () => {
      written = true
      // An answer that ends before its body is complete is not one.
      if (!answer.complete) return
      loan.complete()
      response.end()
    })
    // The head goes out with the first piece of the body if that is here already, else by itself.
    setImmediate(() => {
      if (!written && loan.isRunning) response.flushHeaders()
    })
  }

  #answerHeaders(loan: Loan, answer: IncomingMessage): string[] {
    const headers = endToEnd(answer.rawHeaders)
    if (loan.info !== null) for (const [name, value] of Object.entries(answerHeaders(loan.info))) headers.push(name, String(value))
    // A body that was not read to its end would be taken for the next request.
    if (!this.#request.complete || this.#tunnel !== undefined) headers.push('Connection', 'close')
    return headers
  }
}
