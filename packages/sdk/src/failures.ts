import { isErrorCode, ThawError } from '@thaw/protocol'
import type { Attempt } from './retry.ts'

/** Codes of failures in which no byte of the request left this machine. */
const neverSent = new Set(['ECONNREFUSED', 'EAI_AGAIN', 'ENETUNREACH', 'EHOSTUNREACH', 'ETIMEDOUT', 'UND_ERR_CONNECT_TIMEOUT'])
/** As above, and trying again would not help either. */
const noSuchHost = new Set(['ENOTFOUND', 'ERR_INVALID_URL'])

/** The failure of a fetch that got no answer. */
export function connectionFailure(url: string, cause: unknown): Attempt {
  if (isBadPort(cause)) {
    const error = new ThawError('unreachable', `fetch refuses the port of ${url}.`, {
      fix: 'Let the server listen on another port.',
      cause,
    })
    return { error, sent: false, retryAfterMs: undefined, final: true }
  }
  const code = systemCode(cause)
  if (code === undefined || !(neverSent.has(code) || noSuchHost.has(code))) {
    return { error: brokenConnection(url, cause), sent: true, retryAfterMs: undefined, final: false }
  }
  const error = new ThawError('unreachable', `No thaw server answers at ${url} (${code}).`, { cause })
  return { error, sent: false, retryAfterMs: undefined, final: noSuchHost.has(code) }
}

/** The connection was there and ended before the answer was complete. */
export function brokenConnection(url: string, cause: unknown, invocationId: string | null = null): ThawError {
  const code = systemCode(cause)
  return new ThawError(
    'unreachable',
    `The connection to ${url} broke before the answer was complete${code === undefined ? '' : ` (${code})`}.`,
    {
      fix: 'Look whether the server still runs, and in its log; what was asked for may have been done.',
      details: withInvocation(undefined, invocationId === '' ? null : invocationId),
      cause,
    },
  )
}

/** Reads an answer that is not 2xx. */
export async function responseError(response: Response, url: string): Promise<Attempt> {
  const retryAfterMs = retryAfter(response.headers.get('retry-after'))
  const text = await response.text()
  const error = errorOfBody(parsed(text), response.headers)
  if (error !== null) {
    const busy = error.retryable && [409, 429, 503].includes(response.status)
    return { error, sent: true, retryAfterMs, final: !busy || retryAfterMs === undefined }
  }
  return {
    error: new ThawError('unreachable', `${url} answered ${response.status} ${response.statusText}, which no thaw server does.`, {
      fix: 'Check that THAW_URL is the address of a thaw server, and what stands between.',
      details: { status: response.status, body: text.slice(0, 1000) },
    }),
    sent: true,
    retryAfterMs,
    final: true,
  }
}

/** An error body as a ThawError, or null when it is none. A code that this client does not know yet becomes `internal`. */
export function errorOfBody(body: unknown, headers?: Headers): ThawError | null {
  const error = (body as { error?: unknown } | null)?.error
  if (typeof error !== 'object' || error === null) return null
  const { code, message, fix, details, request_id } = error as Record<string, unknown>
  if (typeof code !== 'string' || typeof message !== 'string') return null
  const known = isErrorCode(code)
  const result = new ThawError(known ? code : 'internal', known ? message : `${message} (${code})`, {
    ...(typeof fix === 'string' ? { fix } : {}),
    details: withInvocation(details, headers?.get('thaw-invocation-id') ?? null),
  })
  result.requestId = typeof request_id === 'string' ? request_id : (headers?.get('x-request-id') ?? undefined)
  return result
}

/** An invocation that failed has a record and logs; its id leads there. */
function withInvocation(details: unknown, invocationId: string | null): unknown {
  if (invocationId === null || (details !== undefined && (typeof details !== 'object' || details === null))) return details
  return { ...details, invocation_id: invocationId }
}

/** Retry-After is seconds or a date (RFC 9110, 10.2.3). */
function retryAfter(header: string | null): number | undefined {
  if (header === null) return undefined
  const seconds = Number(header)
  if (Number.isFinite(seconds)) return Math.max(0, seconds * 1000)
  const time = Date.parse(header)
  return Number.isNaN(time) ? undefined : Math.max(0, time - Date.now())
}

/** Ports of mail, file transfer and the like are blocked by the fetch standard; it says so by this message alone. */
function isBadPort(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof Error && error.cause.message === 'bad port'
}

/** The code of the operating system or of undici, which fetch hides in the cause of a TypeError. */
function systemCode(error: unknown): string | undefined {
  for (let at = error, depth = 0; at instanceof Error && depth < 5; at = at.cause, depth++) {
    const code = (at as { code?: unknown }).code
    if (typeof code === 'string') return code
    if (at instanceof AggregateError) return systemCode(at.errors[0])
  }
  return undefined
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}
