import { type BootMethod, type InvocationStatus, isErrorCode } from '@thaw/protocol'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

/** What is counted of an invocation that has ended; its record fits. */
export interface CountedInvocation {
  status: InvocationStatus
  boot_method: BootMethod | null
  trigger: 'invoke' | 'http'
  timing: { queue_ms: number; boot_ms: number; init_ms: number; run_ms: number } | null
}

export interface InstanceCounts {
  starting: number
  idle: number
  busy: number
}

export type Metrics = ReturnType<typeof createMetrics>

/** Most series of one label that somebody else chooses; what comes later is counted as `other`. */
const maxRoutes = 200
const methods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])
// From a hot invoke (well below a millisecond) to a build that takes minutes.
const stageBuckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

/**
 * Metrics of one server, in a registry of its own. No label holds a name or an id that a user chose: functions come
 * and go by the thousand, and each would be a series for ever. Durations are in seconds, as Prometheus wants it.
 */
export function createMetrics() {
  const registry = new Registry()
  const registers = [registry]
  collectDefaultMetrics({ register: registry })

  const requests = new Counter({
    name: 'thaw_http_requests_total',
    help: 'HTTP requests by route pattern, method and status.',
    labelNames: ['route', 'method', 'status'] as const,
    registers,
  })
  const requestSeconds = new Histogram({
    name: 'thaw_http_request_duration_seconds',
    help: 'Time from the first byte of a request to the last of its answer.',
    labelNames: ['route'] as const,
    buckets: stageBuckets,
    registers,
  })
  const invocations = new Counter({
    name: 'thaw_invocations_total',
    help: 'Invocations that have ended.',
    labelNames: ['status', 'boot_method', 'trigger'] as const,
    registers,
  })
  const stageSeconds = new Histogram({
    name: 'thaw_invocation_stage_duration_seconds',
    help: 'Time of an invocation in each stage; boot and init only where an instance was started for it.',
    labelNames: ['stage'] as const,
    buckets: stageBuckets,
    registers,
  })
  const fallbacks = new Counter({
    name: 'thaw_boot_fallbacks_total',
    help: 'Boot methods that were tried and failed, so that the next one was used.',
    labelNames: ['boot_method', 'reason'] as const,
    registers,
  })
  const dropped = new Counter({
    name: 'thaw_records_dropped_total',
    help: 'Records of invocations and logs that were given up because the database took no writes.',
    registers,
  })

  const routes = new Set<string>()
  const boundedRoute = (route: string) => {
    if (routes.has(route)) return route
    if (routes.size >= maxRoutes) return 'other'
    routes.add(route)
    return route
  }

  return {
    registry,

    /** `route` is the pattern (`/v1/functions/:name`), never the path. */
    request(request: { route: string; method: string; status: number; duration_ms: number }): void {
      const route = boundedRoute(request.route)
      requests.inc({ route, method: methods.has(request.method) ? request.method : 'other', status: request.status })
      requestSeconds.observe({ route }, request.duration_ms / 1000)
    },

    invocation({ status, boot_method, trigger, timing }: CountedInvocation): void {
      invocations.inc({ status, boot_method: boot_method ?? 'none', trigger })
      if (timing === null) return
      stageSeconds.observe({ stage: 'queue' }, timing.queue_ms / 1000)
      if (boot_method !== null && boot_method !== 'reused') {
        stageSeconds.observe({ stage: 'boot' }, timing.boot_ms / 1000)
        stageSeconds.observe({ stage: 'init' }, timing.init_ms / 1000)
      }
      stageSeconds.observe({ stage: 'run' }, timing.run_ms / 1000)
    },

    /** `reason` is an error code. */
    bootFallback(boot_method: BootMethod, reason: string): void {
      fallbacks.inc({ boot_method, reason: isErrorCode(reason) ? reason : 'other' })
    },

    recordsDropped(rows: number): void {
      dropped.inc(rows)
    },

    /** `count` is asked at every scrape. To be called once. */
    observeInstances(count: () => InstanceCounts): void {
      new Gauge({
        name: 'thaw_instances',
        help: 'Instances by state.',
        labelNames: ['state'] as const,
        registers,
        collect() {
          for (const [state, value] of Object.entries(count())) this.set({ state }, value)
        },
      })
    },

    /** `count` is asked at every scrape. To be called once. */
    observeSsh(count: () => number): void {
      new Gauge({
        name: 'thaw_ssh_connections',
        help: 'SSH connections that are logged in.',
        registers,
        collect() {
          this.set(count())
        },
      })
    },

    /** The text of GET /metrics, and its content type. */
    async render(): Promise<{ contentType: string; text: string }> {
      return { contentType: registry.contentType, text: await registry.metrics() }
    },
  }
}
