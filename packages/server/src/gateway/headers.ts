import { type IncomingMessage, validateHeaderName, validateHeaderValue } from 'node:http'
import { ThawError } from '@thaw/protocol'
import type { AnswerInfo } from '../control/run.ts'
import { carriesKey } from './auth.ts'

/** Headers that speak of one connection and are not passed on (RFC 9110, 7.6.1). */
export const hopByHop: ReadonlySet<string> = new Set([
  'connection',
  'keep-alive',
  'proxy-authenticate',
  'proxy-authorization',
  'proxy-connection',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])

/** What only this server says to a function: where the request came from, and which invocation it is. */
const ours: ReadonlySet<string> = new Set(['forwarded', 'x-forwarded-for', 'x-forwarded-host', 'x-forwarded-prefix', 'x-forwarded-proto'])
/** Frames a message: a Connection header that names these must not take them away. */
const framing: ReadonlySet<string> = new Set(['content-length', 'host'])

/** What every answer of a function says about the invocation. */
export function answerHeaders(info: AnswerInfo): Record<string, string | number> {
  const { queue_ms, boot_ms, init_ms, run_ms } = info.timing
  return {
    'thaw-invocation-id': info.invocationId,
    'thaw-boot-method': info.bootMethod,
    'server-timing': `queue;dur=${shown(queue_ms)}, boot;dur=${shown(boot_ms)}, init;dur=${shown(init_ms)}, run;dur=${shown(run_ms)}`,
  }
}

/** Formatting is slow, and two of four are 0 in nearly all answers. */
function shown(ms: number): string {
  return ms === 0 ? '0.00' : ms.toFixed(2)
}

/** Name and value by turns, as `rawHeaders`, without those of the connection. Repeated headers stay repeated. */
export function endToEnd(raw: readonly string[]): string[] {
  const named = new Set<string>()
  for (let i = 0; i < raw.length; i += 2) {
    if (raw[i]?.toLowerCase() !== 'connection') continue
    for (const name of (raw[i + 1] ?? '').split(',')) named.add(name.trim().toLowerCase())
  }
  const kept: string[] = []
  for (let i = 0; i < raw.length; i += 2) {
    const name = (raw[i] ?? '').toLowerCase()
    if (hopByHop.has(name) || name.startsWith('thaw-') || (named.has(name) && !framing.has(name))) continue
    kept.push(raw[i] as string, raw[i + 1] as string)
  }
  return kept
}

/** The headers of a request as a web server behind this one gets them: without keys, and with where the request came from. */
export function forwardedHeaders(request: IncomingMessage, prefix: string): string[] {
  const kept: string[] = []
  const passed = endToEnd(request.rawHeaders)
  for (let i = 0; i < passed.length; i += 2) {
    const name = (passed[i] as string).toLowerCase()
    // One Host only: the one that was looked at.
    if (ours.has(name) || name === 'host' || name === 'expect' || carriesKey(name, passed[i + 1] as string)) continue
    kept.push(passed[i] as string, passed[i + 1] as string)
  }
  const host = request.headers.host ?? 'localhost'
  kept.push('Host', host, 'X-Forwarded-For', request.socket.remoteAddress ?? 'unknown', 'X-Forwarded-Proto', 'http')
  kept.push('X-Forwarded-Host', host, 'X-Forwarded-Prefix', prefix)
  return kept
}

/** The headers of a request as the web server of a function gets them. */
export function requestHeaders(request: IncomingMessage, invocationId: string, prefix: string): string[] {
  const headers = forwardedHeaders(request, prefix)
  headers.push('Thaw-Invocation-Id', invocationId)
  return headers
}

/** Headers that a function chose: untrusted, so each is checked, and those of the connection are left out. */
export function functionHeaders(headers: Record<string, string | string[]>): Record<string, string | string[]> {
  const kept: Record<string, string | string[]> = {}
  for (const [rawName, value] of Object.entries(headers)) {
    const name = rawName.toLowerCase()
    if (hopByHop.has(name) || name === 'content-length' || name.startsWith('thaw-')) continue
    for (const part of Array.isArray(value) ? value : [value]) checkHeader(name, part)
    kept[name] = value
  }
  return kept
}

/** Throws `function_failed` for what must not stand in a head: line breaks, above all. */
export function checkHeader(name: string, value: string): void {
  try {
    validateHeaderName(name)
    validateHeaderValue(name, value)
  } catch {
    throw new ThawError(
      'function_failed',
      `The function answered with a header that is not allowed: ${JSON.stringify(name).slice(0, 100)}.`,
    )
  }
}
