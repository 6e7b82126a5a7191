import { Writable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import { encodeLogFrame } from './frames.mjs'

const { nextTick } = process
const { isView } = ArrayBuffer

/** A line is sent when it is complete; one that grows beyond this is sent in parts. In UTF-16 units. */
const maxHeldLength = 16 * 1024
/** Of the text of one frame, so that its UTF-8 stays under the limit of a frame. */
const maxFrameLength = 64 * 1024

/** What one invocation, or the instance itself, has written: its unfinished lines by source (1 stdout, 2 stderr). */
export class LogLines {
  #stream
  #send
  #held = ['', '', '']
  #decoders = [undefined, undefined, undefined]

  constructor(stream, send) {
    this.#stream = stream
    this.#send = send
  }

  write(source, chunk, encoding) {
    const text = typeof chunk === 'string' ? (encoding ? fromEncoded(chunk, encoding) : chunk) : this.#decode(source, chunk)
    const lineEnd = text.lastIndexOf('\n') + 1
    if (lineEnd === 0) {
      this.#held[source] += text
      if (this.#held[source].length > maxHeldLength) this.#flush(source)
      return
    }
    // Sent at once rather than gathered: these lines must be out when the code hangs or ends the process next.
    const lines = lineEnd === text.length ? text : text.slice(0, lineEnd)
    this.#emit(source, this.#held[source] === '' ? lines : this.#held[source] + lines)
    this.#held[source] = lineEnd === text.length ? '' : text.slice(lineEnd)
  }

  flush() {
    this.#flush(1)
    this.#flush(2)
  }

  #flush(source) {
    const text = this.#held[source]
    if (text === '') return
    this.#held[source] = ''
    this.#emit(source, text)
  }

  #emit(source, text) {
    let start = 0
    while (text.length - start > maxFrameLength) {
      const last = text.charCodeAt(start + maxFrameLength - 1)
      const end = start + maxFrameLength - (last >= 0xd800 && last <= 0xdbff ? 1 : 0)
      this.#send(encodeLogFrame(this.#stream, source, text.slice(start, end)))
      start = end
    }
    this.#send(encodeLogFrame(this.#stream, source, start === 0 ? text : text.slice(start)))
  }

  /** Bytes may end within a character. */
  #decode(source, bytes) {
    this.#decoders[source] ??= new StringDecoder('utf8')
    return this.#decoders[source].write(bytes)
  }
}

function fromEncoded(text, encoding) {
  return encoding === 'utf8' || encoding === 'utf-8' ? text : Buffer.from(text, encoding).toString()
}

/**
 * Puts streams in the place of process.stdout and process.stderr, which `console` looks up when it is first used, whose
 * text goes to `linesOf()`: the log of whoever is running.
 */
export function captureOutput(linesOf) {
  capture('stdout', 1, linesOf)
  capture('stderr', 2, linesOf)
}

function capture(name, source, linesOf) {
  const stream = new Writable({ decodeStrings: false })
  // Replaces the whole of Writable's buffering: a log line never waits for an earlier one.
  stream.write = (chunk, encoding, callback) => {
    const done = typeof encoding === 'function' ? encoding : callback
    if (typeof chunk !== 'string' && !isView(chunk)) {
      throw new TypeError('The "chunk" argument must be of type string or an instance of Buffer, TypedArray, or DataView.')
    }
    linesOf().write(source, chunk, typeof encoding === 'string' ? encoding : undefined)
    if (typeof done === 'function') nextTick(done, null)
    return true
  }
  stream.end = () => stream
  stream.destroy = () => stream
  stream.fd = source
  Object.defineProperty(process, name, { configurable: true, enumerable: true, get: () => stream })
}
