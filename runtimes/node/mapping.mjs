import { Buffer, isUtf8 } from 'node:buffer'

const { parse, stringify } = JSON
const { isView } = ArrayBuffer
const { isInteger } = Number
const { entries, fromEntries } = Object

const textType = 'text/plain; charset=utf-8'
const bytesType = 'application/octet-stream'
const jsonType = 'application/json'
const ndjsonType = 'application/x-ndjson'

/** The caller sent a body that is not what its content type says. */
export class InvalidPayload extends Error {}

/** The body of a request as the handler sees it: the first table of "Payload and event". */
export function decodeBody(contentType, body) {
  if (body.length === 0) return null
  const type = contentType === jsonType ? contentType : mediaType(contentType)
  if (type === jsonType || type.endsWith('+json')) return parseStrictly(body)
  if (type === '' || type === 'application/x-www-form-urlencoded') {
    const text = decodeText(body)
    if (text === undefined) return body
    try {
      return parse(text)
    } catch {
      return text
    }
  }
  if (!type.startsWith('text/')) return body
  const text = decodeText(body)
  if (text === undefined) throw new InvalidPayload('The body is not UTF-8 text.')
  return text
}

/** @returns the argument of the handler. Throws InvalidPayload. */
export function decodeEvent(meta, body) {
  const value = decodeBody(meta.content_type, body)
  if (meta.trigger !== 'http') return value
  const { method, path, query, headers } = meta.http
  return { method, path, query: query === '' ? {} : fromEntries(new URLSearchParams(query)), headers, body: value }
}

function mediaType(contentType) {
  const end = contentType.indexOf(';')
  return (end === -1 ? contentType : contentType.slice(0, end)).trim().toLowerCase()
}

/** Decoding puts U+FFFD in the place of bytes that are not UTF-8; only then is a second look needed. */
function decodeText(body) {
  const text = body.toString('utf8')
  return text.includes('\ufffd') && !isUtf8(body) ? undefined : text
}

function parseStrictly(body) {
  const text = decodeText(body)
  if (text === undefined) throw new InvalidPayload('The body is not valid JSON: it is not UTF-8.')
  try {
    return parse(text)
  } catch (error) {
    throw new InvalidPayload(`The body is not valid JSON: ${error.message}`)
  }
}

/** @returns {{ contentType: string, body: string | Uint8Array }} the answer for a value that is no stream */
export function encodeValue(value) {
  if (typeof value === 'string') return { contentType: textType, body: value }
  if (value === undefined || value === null) return { contentType: jsonType, body: 'null' }
  const bytes = asBytes(value)
  if (bytes !== undefined) return { contentType: bytesType, body: bytes }
  return { contentType: jsonType, body: encodeJson(value) }
}

/** One piece of a stream whose first piece had `contentType`. JSON is one line, whatever it is among. */
export function encodePiece(contentType, value) {
  if (typeof value === 'string' && contentType === ndjsonType) return `${stringify(value)}\n`
  const piece = encodeValue(value)
  return piece.contentType === jsonType ? `${piece.body}\n` : piece.body
}

function encodeJson(value) {
  const json = stringify(value)
  if (json !== undefined) return json
  if (value === undefined) return 'null'
  throw new TypeError(`A ${typeof value} cannot be the answer of a function: it has no JSON form.`)
}

function asBytes(value) {
  if (typeof value !== 'object') return undefined
  if (value instanceof Uint8Array) return value
  if (isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
  if (value instanceof ArrayBuffer || value instanceof SharedArrayBuffer) return new Uint8Array(value)
  return undefined
}

/** The content type of a stream that begins with this value. */
export function streamType(first) {
  const { contentType } = encodeValue(first)
  return contentType === jsonType ? ndjsonType : contentType
}

/**
 * What there is to iterate over when the answer is a stream: an (async) generator, a Node.js Readable, a web
 * ReadableStream. `stop` ends a source that waits for data, which a generator's own code cannot be made to do.
 */
export function asStream(value) {
  if (typeof value !== 'object' || value === null) return undefined
  if (typeof value.getReader === 'function') return readerStream(value.getReader())
  if (typeof value[Symbol.asyncIterator] === 'function') {
    return { pieces: value, stop: typeof value.destroy === 'function' ? () => value.destroy() : undefined }
  }
  if (typeof value.next === 'function' && typeof value[Symbol.iterator] === 'function') return { pieces: value, stop: undefined }
  return undefined
}

function readerStream(reader) {
  async function* read() {
    try {
      for (;;) {
        const { done, value } = await reader.read()
        if (done) return
        yield value
      }
    } finally {
      await reader.cancel()
    }
  }
  return { pieces: read(), stop: () => reader.cancel().catch(() => {}) }
}

/** The HTTP answer that a handler described, or undefined when it returned something else. */
export function asHttpAnswer(value) {
  if (typeof value !== 'object' || value === null) return undefined
  const status = isInteger(value.status) ? value.status : value.statusCode
  if (!isInteger(status)) return undefined
  if (status < 100 || status > 599) throw new RangeError(`The status must be between 100 and 599, not ${status}.`)
  const { contentType, headers } = readHeaders(value.headers ?? {})
  const body = value.isBase64Encoded === true && typeof value.body === 'string' ? Buffer.from(value.body, 'base64') : value.body
  return { status, headers, contentType, body }
}

function readHeaders(source) {
  const headers = {}
  let contentType
  // Headers and Map answer entries() themselves.
  for (const [key, value] of typeof source.entries === 'function' ? source.entries() : entries(source)) {
    if (value === undefined || value === null) continue
    const name = String(key).toLowerCase()
    const texts = Array.isArray(value) ? value.map(String) : [String(value)]
    if (name === 'content-type') {
      contentType = checkContentType(texts.join(', '))
      continue
    }
    // Headers gives each set-cookie as an entry of its own.
    const all = headers[name] === undefined ? texts : [...headers[name], ...texts]
    checkHeader(name, all)
    headers[name] = all
  }
  for (const name in headers) if (headers[name].length === 1) headers[name] = headers[name][0]
  return { contentType, headers }
}

// The worker destroys an instance that sends what the protocol forbids, or HTTP could not carry; the code is told instead.

function checkContentType(value) {
  if (/^[\x20-\x7e]{0,256}$/.test(value)) return value
  throw new RangeError('The content type must be at most 256 printable ASCII characters.')
}

function checkHeader(name, values) {
  if (!/^[!#$%&'*+.^_`|~0-9a-z-]{1,256}$/.test(name)) throw new TypeError(`"${name.slice(0, 256)}" cannot be the name of a header.`)
  if (values.length > 64) throw new RangeError(`The header ${name} has more than 64 values.`)
  if (!values.every((value) => value.length <= 8192 && /^[\t\x20-\x7e\x80-\xff]*$/.test(value))) {
    throw new TypeError(`The value of the header ${name} is longer than 8192 characters or has characters that HTTP does not carry.`)
  }
}

/** Both in UTF-16 units; well under the limits of the protocol, also when JSON escapes every one of them. */
const maxMessageLength = 16 * 1024
const maxStackLength = 64 * 1024
const maxCauses = 4

const ownFolder = new URL('.', import.meta.url)
const ownFrames = [ownFolder.href, decodeURIComponent(ownFolder.pathname), '(node:', 'at node:', 'at async node:']

/** @returns {{ type: string, message: string, stack?: string }} of anything that code can throw. Never throws. */
export function describeFailure(thrown) {
  try {
    if (!(thrown instanceof Error) && !looksLikeError(thrown)) {
      return { type: 'Error', message: clip(describeThrown(thrown), maxMessageLength) }
    }
    const failure = { type: clip(typeOf(thrown), 256), message: clip(String(thrown.message), maxMessageLength) }
    const stack = stackOf(thrown)
    return stack === '' ? failure : { ...failure, stack: clip(stack, maxStackLength) }
  } catch {
    return { type: 'Error', message: 'The code threw something that cannot be read.' }
  }
}

/** Errors of other realms, such as node:vm contexts. */
function looksLikeError(thrown) {
  return typeof thrown === 'object' && thrown !== null && typeof thrown.message === 'string'
}

function typeOf(error) {
  const name = typeof error.name === 'string' ? error.name : ''
  if (name !== '' && name !== 'Error') return name
  return error.constructor?.name || name || 'Error'
}

function describeThrown(thrown) {
  if (typeof thrown !== 'object' || thrown === null) return String(thrown)
  try {
    return stringify(thrown) ?? String(thrown)
  } catch {
    return Object.prototype.toString.call(thrown)
  }
}

function stackOf(error) {
  let stack = userFrames(error.stack)
  let cause = error.cause
  for (let depth = 0; depth < maxCauses && cause instanceof Error; depth++) {
    stack += `\nCaused by: ${userFrames(cause.stack)}`
    cause = cause.cause
  }
  return stack
}

/** Without the frames of this runtime and of Node.js itself. */
function userFrames(stack) {
  if (typeof stack !== 'string') return ''
  return stack
    .split('\n')
    .filter((line) => !/^\s+at /.test(line) || !ownFrames.some((own) => line.includes(own)))
    .join('\n')
}

function clip(text, length) {
  return text.length <= length ? text : `${text.slice(0, length - 1)}…`
}
