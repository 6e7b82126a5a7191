import { type IncomingMessage, type ServerResponse, request as sendRequest } from 'node:http'
import { pipeline } from 'node:stream'
import type { E2bEntry } from '../../control/sandboxes/e2b-entry.ts'
import { carriesKey } from '../auth.ts'
import { endToEnd } from '../headers.ts'

/** What clients may ask of an agent. The rest (its identity, snapshots, tunnels) is between it and this server. */
const served = /^\/(?:health|metrics|envs|files|files\/compose|(?:process\.Process|filesystem\.Filesystem)\/[A-Za-z]+)$/

export function isAgentPath(path: string): boolean {
  return served.test(path)
}

/** Said by clients to whoever brings them here, and nobody's business inside. */
export function isE2bHeader(name: string): boolean {
  return name.startsWith('e2b-')
}

/**
 * Passes a request on to the agent of a sandbox as it comes, and its answer back, with back-pressure both ways. Resolves when
 * nothing of it is left; rejects where the agent cannot be reached and nothing was answered. `left` ends it at once. `body`: what
 * was read of the request, all of it.
 */
export function passToAgent(
  entry: E2bEntry,
  how: { path: string; addToken: boolean; left: AbortSignal; body?: Buffer },
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const { method = 'GET', headers } = request
  const hasBody = headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
  return new Promise((resolve, reject) => {
    const upstream = sendRequest({
      agent: entry.connections,
      method,
      path: how.path,
      headers: agentHeaders(entry, how.addToken, request),
      setHost: false,
    })
    let answered = false
    const leave = () => {
      upstream.destroy()
      if (answered) response.destroy()
    }
    how.left.addEventListener('abort', leave)
    response.once('close', () => {
      how.left.removeEventListener('abort', leave)
      // Whoever went away gets no answer; the agent is told by the end of its connection.
      upstream.destroy()
      resolve()
    })
    upstream.once('response', (answer) => {
      answered = true
      response.writeHead(answer.statusCode ?? 502, [...endToEnd(answer.rawHeaders), ...(request.complete ? [] : ['Connection', 'close'])])
      // Streams begin with silence, and their clients wait for the head.
      response.flushHeaders()
      // An answer that breaks off breaks that of the client off, so that nobody takes it for whole.
      pipeline(answer, response, () => undefined)
    })
    upstream.on('error', (error) => {
      request.unpipe(upstream)
      if (!answered) reject(error)
    })
    if (how.body !== undefined) upstream.end(how.body)
    else if (hasBody) request.pipe(upstream)
    else upstream.end()
  })
}

/** Name and value by turns. */
function agentHeaders(entry: E2bEntry, addToken: boolean, request: IncomingMessage): string[] {
  const kept: string[] = ['Host', 'agent']
  const passed = endToEnd(request.rawHeaders)
  for (let i = 0; i < passed.length; i += 2) {
    const [name, value] = [(passed[i] as string).toLowerCase(), passed[i + 1] as string]
    if (name === 'host' || name === 'expect' || isE2bHeader(name) || carriesKey(name, value)) continue
    if (addToken && name === 'x-access-token') continue
    kept.push(passed[i] as string, value)
  }
  if (request.headers['transfer-encoding'] !== undefined) kept.push('Transfer-Encoding', 'chunked')
  if (addToken) for (const [name, value] of Object.entries(entry.agentHeaders)) kept.push(name, value)
  return kept
}
