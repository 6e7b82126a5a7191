import { type BootMethod, bootMethods, ThawError } from '@thaw/protocol'
import type { HttpRequest } from './http.ts'
import { parseTiming, type Timing } from './timing.ts'

/**
 * What a function is invoked with. Text goes as text/plain, bytes as application/octet-stream, undefined as an empty
 * body (the event is null), anything else as JSON. `contentType` overrides what it is called, not how it is encoded.
 */
export type Payload = unknown

export interface InvokeOptions {
  signal?: AbortSignal | undefined
  /** Shorter limit than the function's own timeout_ms; the invocation then ends as `timed_out`. */
  timeoutMs?: number | undefined
  contentType?: string | undefined
  /** Names this invocation: sent again with the same key and payload, it is answered as before and does not run twice. */
  idempotencyKey?: string | undefined
}

export interface InvokeResult<Value = unknown> {
  /** Parsed when the answer is JSON, text when it is text, else bytes. */
  value: Value
  invocation_id: string
  boot_method: BootMethod | null
  /** Of the server's own stages, without the network between. */
  timing: Timing | null
  content_type: string
}

/** What the headers of an answer say about its invocation. */
export function invocationOf(headers: Headers): Omit<InvokeResult, 'value'> {
  const method = headers.get('thaw-boot-method')
  return {
    invocation_id: headers.get('thaw-invocation-id') ?? '',
    boot_method: bootMethods.find((known) => known === method) ?? null,
    timing: parseTiming(headers.get('server-timing')),
    content_type: headers.get('content-type') ?? 'application/octet-stream',
  }
}

export function invokeRequest(name: string, payload: Payload, mode: 'sync' | 'stream', options: InvokeOptions): HttpRequest {
  const headers: Record<string, string> = { 'thaw-mode': mode }
  if (options.timeoutMs !== undefined) headers['thaw-timeout-ms'] = String(options.timeoutMs)
  if (options.idempotencyKey !== undefined) headers['idempotency-key'] = options.idempotencyKey
  const request: HttpRequest = {
    method: 'POST',
    path: `/v1/functions/${encodeURIComponent(name)}/invoke`,
    headers,
    signal: options.signal,
    patient: true,
  }
  const encoded = encodePayload(payload)
  if (encoded !== null) {
    headers['content-type'] = checkedType(options.contentType) ?? encoded.contentType
    request.body = encoded.body
  }
  return request
}

type Body = NonNullable<RequestInit['body']>

/** fetch would refuse it too, but in words that sound like a broken connection. */
function checkedType(contentType: string | undefined): string | undefined {
  if (contentType === undefined || /^[\w!#$%&'*+.^`|~-]+\/[\w!#$%&'*+.^`|~-]+[ \t]*(?:;[\t\x20-\x7e]*)?$/.test(contentType))
    return contentType
  throw new ThawError('invalid_request', `${JSON.stringify(contentType)} is no content type.`, {
    fix: 'Give one such as application/json or text/plain; charset=utf-8.',
  })
}

function encodePayload(payload: Payload): { body: Body; contentType: string } | null {
  if (payload === undefined) return null
  if (typeof payload === 'string') return { body: payload, contentType: 'text/plain; charset=utf-8' }
  if (payload instanceof Blob) return { body: payload, contentType: payload.type === '' ? 'application/octet-stream' : payload.type }
  if (payload instanceof ReadableStream || payload instanceof ArrayBuffer || ArrayBuffer.isView(payload)) {
    return { body: payload as Body, contentType: 'application/octet-stream' }
  }
  const json: string | undefined = JSON.stringify(payload)
  if (json === undefined) throw new ThawError('invalid_request', `A payload of type ${typeof payload} cannot be sent.`)
  return { body: json, contentType: 'application/json' }
}

/** Reads the whole answer by its content type. */
export async function readValue(response: Response): Promise<unknown> {
  const type = mediaType(response.headers.get('content-type'))
  if (type === 'application/json' || type.endsWith('+json')) return parsedOrText(await response.text())
  if (type.startsWith('text/') || type === 'application/x-ndjson') return response.text()
  return new Uint8Array(await response.arrayBuffer())
}

/** Functions may call JSON what is none; the text says more than an error would. */
function parsedOrText(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

function mediaType(contentType: string | null): string {
  return (contentType ?? '').split(';', 1)[0]?.trim().toLowerCase() ?? ''
}
