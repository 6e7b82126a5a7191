import { AsyncLocalStorage } from 'node:async_hooks'
import { encodeFrame, encodeJsonFrame, encodeResultFrame, frameTypes, pieceBytes } from './frames.mjs'
import { LogLines } from './logs.mjs'
import { asHttpAnswer, asStream, decodeEvent, describeFailure, encodePiece, encodeValue, InvalidPayload, streamType } from './mapping.mjs'

const { now } = Date
const { max } = Math
const { byteLength } = Buffer
const { stringify } = JSON
const steadyNow = performance.now.bind(performance)
const afterEvents = setImmediate

/** A stream whose pieces are always ready lets other frames in after this long. */
const maxTurnMs = 10
/** Of the headers of one answer, so that they fit into one frame with its first bytes. */
const maxMetaBytes = 512 * 1024

const simpleMetas = new Map()

/** The meta of a whole answer without status and headers is one of three: encoded once. */
function simpleMeta(contentType) {
  let meta = simpleMetas.get(contentType)
  if (meta === undefined) {
    meta = Buffer.from(stringify({ content_type: contentType, more: false }))
    simpleMetas.set(contentType, meta)
  }
  return meta
}

class Cancelled extends Error {
  name = 'Cancelled'
}

const running = new AsyncLocalStorage()

/** @returns {Invocation | undefined} whose code is running */
export function currentInvocation() {
  return running.getStore()
}

/** The second argument of the handler. */
class Context {
  #invocation

  constructor(invocation, meta, load) {
    this.#invocation = invocation
    this.invocationId = meta.id
    this.attempt = meta.attempt
    this.deadlineMs = meta.deadline_ms
    this.functionName = load.function
    this.functionVersion = load.version
    this.memoryLimitMib = load.memory_mib
  }

  remainingMs() {
    return max(0, this.deadlineMs - now())
  }

  get signal() {
    return this.#invocation.signal
  }
}

/** One invocation, from its first frame to its last. */
export class Invocation {
  done = false
  #stream
  #meta
  #connection
  #started = false
  #cancelled = false
  #controller
  #stopSource
  #body
  #lines

  /** @param connection {{ write(frame): boolean, drained(): Promise<void>, forget(stream): void }} */
  constructor(stream, meta, connection) {
    this.#stream = stream
    this.#meta = meta
    this.#connection = connection
  }

  get lines() {
    this.#lines ??= new LogLines(this.#stream, this.#connection.write)
    return this.#lines
  }

  /** Most code never asks for it, and making one costs as much as a small handler. */
  get signal() {
    if (this.#controller === undefined) {
      this.#controller = new AbortController()
      if (this.#cancelled) this.#controller.abort()
    }
    return this.#controller.signal
  }

  /** A piece of a body that came in several frames. */
  addBody(bytes) {
    this.#body ??= []
    this.#body.push(bytes)
  }

  /** Runs the handler in the context of this invocation. */
  start(handler, load, body) {
    const whole = body ?? Buffer.concat(this.#body ?? [])
    this.#body = undefined
    this.#started = true
    running.run(this, execute, this, handler, load, whole)
  }

  /** Nobody waits any more. The last word comes when the code has stopped; before the body is whole, none has started. */
  cancel() {
    this.#cancelled = true
    if (!this.#started) return this.#answerCancelled()
    running.run(this, () => {
      this.#controller?.abort()
      this.#stopSource?.()
    })
  }

  /** The code failed where no one catches it: a timer, an event, a promise that nobody holds. */
  failDetached(error) {
    this.#fail(error)
    this.#controller?.abort()
  }

  async execute(handler, load, body) {
    try {
      const event = decodeEvent(this.#meta, body)
      let value = handler(event, new Context(this, this.#meta, load))
      if (typeof value === 'object' && value !== null && typeof value.then === 'function') value = await value
      if (this.done) return
      if (this.#cancelled) return this.#answerCancelled()
      await this.#answer(value)
    } catch (error) {
      this.#fail(error)
    }
  }

  /** @returns a promise when the answer takes more than one frame */
  #answer(value) {
    const http = this.#meta.trigger === 'http' ? asHttpAnswer(value) : undefined
    // A status alone, such as 204, has no body at all.
    const content = http === undefined ? value : (http.body ?? '')
    const stream = asStream(content)
    if (stream !== undefined) return this.#answerStream(stream, http)
    const { contentType, body } = encodeValue(content)
    if ((typeof body === 'string' ? byteLength(body) : body.byteLength) > pieceBytes) {
      return this.#answerLarge(contentType, http, typeof body === 'string' ? Buffer.from(body) : body)
    }
    const meta = http === undefined ? simpleMeta(contentType) : encodeMeta(contentType, http, false)
    this.#finish(encodeResultFrame(this.#stream, meta, body))
  }

  async #answerLarge(contentType, http, body) {
    this.#connection.write(encodeResultFrame(this.#stream, encodeMeta(contentType, http, true), ''))
    if (await this.#sendPiece(body)) this.#finish(encodeFrame(frameTypes.end, this.#stream))
    else this.#answerCancelled()
  }

  async #answerStream({ pieces, stop }, http) {
    this.#stopSource = stop
    let contentType
    let turnStart = steadyNow()
    for await (const piece of pieces) {
      if (this.done || this.#cancelled) break
      const isFirst = contentType === undefined
      contentType ??= streamType(piece)
      const bytes = encodePiece(contentType, piece)
      if (isFirst) this.#connection.write(encodeResultFrame(this.#stream, encodeMeta(contentType, http, true), ''))
      if (!(await this.#sendPiece(bytes))) break
      if (steadyNow() - turnStart > maxTurnMs) {
        await new Promise((resolve) => afterEvents(resolve))
        turnStart = steadyNow()
      }
    }
    if (this.done) return
    if (this.#cancelled) return this.#answerCancelled()
    if (contentType === undefined) this.#finish(encodeResultFrame(this.#stream, encodeMeta('application/octet-stream', http, false), ''))
    else this.#finish(encodeFrame(frameTypes.end, this.#stream))
  }

  /** @returns whether somebody still waits for more */
  async #sendPiece(piece) {
    if (piece.length === 0) return true
    if (typeof piece === 'string' && byteLength(piece) <= pieceBytes) {
      if (!this.#connection.write(encodeFrame(frameTypes.chunk, this.#stream, piece))) await this.#connection.drained()
      return !this.done && !this.#cancelled
    }
    const bytes = typeof piece === 'string' ? Buffer.from(piece) : piece
    for (let offset = 0; offset < bytes.length; offset += pieceBytes) {
      // Copied into the frame, so that the code may use its buffer again.
      const frame = encodeFrame(frameTypes.chunk, this.#stream, bytes.subarray(offset, offset + pieceBytes))
      if (!this.#connection.write(frame)) await this.#connection.drained()
      if (this.done || this.#cancelled) return false
    }
    return true
  }

  #answerCancelled() {
    this.#fail(new Cancelled('The invocation was cancelled.'))
  }

  #fail(error) {
    if (this.done) return
    const reason = error instanceof InvalidPayload ? 'invalid_payload' : this.#cancelled ? 'cancelled' : 'error'
    const failure =
      error instanceof InvalidPayload || error instanceof Cancelled
        ? { type: error.constructor.name, message: error.message }
        : describeFailure(error)
    this.#finish(encodeJsonFrame(frameTypes.failed, this.#stream, { reason, ...failure }))
  }

  #finish(frame) {
    this.#lines?.flush()
    this.done = true
    this.#connection.forget(this.#stream)
    this.#connection.write(frame)
  }
}

function execute(invocation, handler, load, body) {
  return invocation.execute(handler, load, body)
}

function encodeMeta(contentType, http, more) {
  const meta = { content_type: http?.contentType ?? contentType, more, status: http?.status, headers: http?.headers }
  const bytes = Buffer.from(stringify(meta))
  if (bytes.length > maxMetaBytes) throw new RangeError('The headers of the answer are larger than 512 KiB.')
  return bytes
}
