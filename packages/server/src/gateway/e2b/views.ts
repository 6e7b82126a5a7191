import type { IncomingMessage } from 'node:http'
import { type E2bView, e2bState } from '../../control/sandboxes/e2b.ts'

/** The agent has all that clients of E2B look for in a version: files with metadata, watches with entries, network mounts. */
export const envdVersion = '0.6.4'
const clientId = 'thaw'
/** Shown for those whose life has no end: clients insist on one. */
const yearMs = 365 * 86_400_000

/** Where clients build the names of ports: with the port of this server, by which they reached it. */
export function domainFor(request: IncomingMessage, sandboxDomain: string): string {
  const port = /:(\d{1,5})$/.exec(request.headers.host ?? '')?.[1]
  return port === undefined ? sandboxDomain : `${sandboxDomain}:${port}`
}

export function sandboxView({ item, facet, agentToken, trafficToken }: E2bView, domain: string) {
  const template = facet?.template ?? item.image
  return {
    sandboxID: item.id,
    templateID: template,
    alias: template,
    clientID: clientId,
    envdVersion,
    domain,
    ...(agentToken === null ? {} : { envdAccessToken: agentToken }),
    trafficAccessToken: trafficToken,
  }
}

export function listedView({ item, facet }: E2bView) {
  const template = facet?.template ?? item.image
  const startedAt = item.started_at ?? item.created_at
  return {
    sandboxID: item.id,
    templateID: template,
    alias: template,
    clientID: clientId,
    startedAt,
    endAt: item.ends_at ?? new Date(Date.parse(startedAt) + yearMs).toISOString(),
    cpuCount: Math.ceil(item.resources.cpus),
    memoryMB: item.resources.memory_mib,
    diskSizeMB: item.resources.disk_mib ?? 0,
    metadata: item.metadata,
    state: e2bState(item) ?? 'paused',
    envdVersion,
  }
}

export function detailView(view: E2bView, domain: string) {
  const { item, facet, agentToken } = view
  return {
    ...listedView(view),
    domain,
    ...(agentToken === null ? {} : { envdAccessToken: agentToken }),
    allowInternetAccess: item.network === 'egress',
    network: { allowPublicTraffic: facet?.public_traffic ?? false },
    lifecycle: { autoResume: facet?.auto_resume ?? true, onTimeout: item.on_timeout === 'pause' ? 'pause' : 'kill' },
    ...(e2bState(item) === 'paused' ? { pauseMode: 'full' } : {}),
  }
}

/** Of one moment: thaw keeps none of the past. `reading` is that of the agent. */
export function metricView(reading: Record<string, number>, now: number) {
  const { cpu_count, cpu_used_pct, mem_used, mem_total, mem_cache, disk_used, disk_total } = reading
  return {
    timestamp: new Date(now).toISOString(),
    timestampUnix: Math.floor(now / 1000),
    cpuCount: cpu_count ?? 1,
    cpuUsedPct: cpu_used_pct ?? 0,
    memUsed: mem_used ?? 0,
    memTotal: mem_total ?? 0,
    memCache: mem_cache ?? 0,
    diskUsed: disk_used ?? 0,
    diskTotal: disk_total ?? 0,
  }
}
