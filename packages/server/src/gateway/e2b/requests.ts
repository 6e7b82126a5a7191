import { ThawError } from '@thaw/protocol'
import type { E2bCreate } from '../../control/sandboxes/e2b-create.ts'
import { unsupported } from './errors.ts'
import type { E2bNetwork, NewSandbox } from './schemas.ts'

/** Limits of thaw's own sandboxes. */
const shortestMs = 1000

export function milliseconds(seconds: number): number {
  return Math.max(shortestMs, seconds * 1000)
}

/** What a request asks for but its template. Throws `invalid_request` for what thaw does not have, by name. */
export function readCreate(body: NewSandbox, defaults: { timeoutS: number; mayBeOpen: boolean }): Omit<E2bCreate, 'source'> {
  refuse(body)
  return {
    template: body.templateID,
    timeoutMs: milliseconds(body.timeout ?? defaults.timeoutS),
    onTimeout: body.autoPause === true ? 'pause' : 'stop',
    autoResume: wakes(body),
    secure: !(defaults.mayBeOpen && body.secure === false),
    publicTraffic: body.network?.allowPublicTraffic ?? true,
    network: readNetwork(body.network ?? {}, body.allow_internet_access),
    env: body.envVars ?? {},
    metadata: body.metadata ?? {},
  }
}

function refuse({ mcp, iam, volumeMounts, autoPause, autoPauseMemory }: NewSandbox): void {
  if (mcp !== undefined && mcp !== null) throw unsupported('MCP gateways', 'Leave mcp out, and start a server inside by yourself.')
  if (iam !== undefined && iam !== null) throw unsupported('workload identity', 'Leave iam out.')
  if (volumeMounts !== undefined && volumeMounts !== null && volumeMounts.length > 0)
    throw unsupported('volumes', 'Leave volumeMounts out, and copy files in.')
  if (autoPause === true && autoPauseMemory === false) throw withoutMemory()
}

/** Pausing keeps memory. */
export function withoutMemory(): ThawError {
  return unsupported('pausing or resuming without memory', 'Leave the mode at "full", or take a snapshot of the files and start from it.')
}

function wakes({ autoResume }: NewSandbox): boolean {
  if (autoResume === undefined || autoResume === null) return true
  return autoResume.enabled ?? autoResume.policy !== 'off'
}

const everything = new Set(['0.0.0.0/0', '::/0'])

/** All of the Internet, or nothing. Throws `invalid_request` for rules in between. */
export function readNetwork(network: E2bNetwork, allowInternet: boolean | null | undefined): 'none' | 'egress' {
  const { allowOut, denyOut, dnsServers, egressProxy, maskRequestHost, httpsPorts, rules } = network
  if (egressProxy !== undefined && egressProxy !== null) throw unsupported('egress proxies', 'Leave network.egressProxy out.')
  if (rules !== undefined && rules !== null && Object.keys(rules).length > 0)
    throw unsupported('transforming requests', 'Leave network.rules out.')
  if (maskRequestHost !== undefined && maskRequestHost !== null) throw unsupported('another Host', 'Leave network.maskRequestHost out.')
  if (httpsPorts !== undefined && httpsPorts !== null && httpsPorts.length > 0)
    throw unsupported('HTTPS inside', 'Leave network.httpsPorts out, and serve HTTP.')
  if (dnsServers !== undefined && dnsServers !== null) throw unsupported('other DNS servers', 'Leave network.dnsServers out.')
  const denied = denyOut ?? []
  const allowed = allowOut ?? []
  const deniesAll = denied.some((destination) => everything.has(destination))
  const allowsAll = allowed.some((destination) => everything.has(destination))
  if (allowed.some((destination) => !everything.has(destination)) || denied.some((destination) => !everything.has(destination))) {
    throw unsupported(
      'rules for single destinations',
      'Use allow_internet_access, or denyOut with 0.0.0.0/0: a sandbox reaches the Internet, or nothing.',
    )
  }
  return (deniesAll || allowInternet === false) && !allowsAll ? 'none' : 'egress'
}

/** Keys and values of a filter are percent-encoded, and then the pairs once more. */
export function readMetadata(text: string | undefined): Record<string, string> {
  try {
    return Object.fromEntries([...new URLSearchParams(text)].map(([key, value]) => [decodeURIComponent(key), decodeURIComponent(value)]))
  } catch {
    throw new ThawError('invalid_request', 'metadata: keys and values must be percent-encoded.')
  }
}

export function writeToken(startedAt: string, id: string): string {
  return Buffer.from(`${startedAt}|${id}`).toString('base64url')
}

export function readToken(token: string): { startedAt: number; id: string } {
  const [startedAt = '', id = ''] = Buffer.from(token, 'base64url').toString('utf8').split('|')
  const time = Date.parse(startedAt)
  if (Number.isNaN(time) || id === '') throw new ThawError('invalid_request', 'nextToken is none that this server gave.')
  return { startedAt: time, id }
}
