import type { Functions } from '../control/functions.ts'
import type { Idempotency } from '../control/idempotency.ts'
import type { ImageCatalog } from '../control/images.ts'
import type { Invocations } from '../control/invocations.ts'
import type { Invoker } from '../control/invoker.ts'
import type { Keys } from '../control/keys.ts'
import type { Platform } from '../control/platform.ts'
import type { PoolCatalog } from '../control/pool-catalog.ts'
import type { E2bSandboxes } from '../control/sandboxes/e2b.ts'
import type { E2bBuilds } from '../control/sandboxes/e2b-builds.ts'
import type { E2bTemplates } from '../control/sandboxes/e2b-templates.ts'
import type { Executor } from '../control/sandboxes/execute.ts'
import type { Sandboxes } from '../control/sandboxes/sandboxes.ts'
import type { Snapshots } from '../control/sandboxes/snapshots.ts'
import type { SecretCatalog } from '../control/secret-catalog.ts'
import type { SshKeys } from '../control/ssh-keys.ts'
import type { Logger } from '../telemetry/log.ts'
import type { Metrics } from '../telemetry/metrics.ts'
import type { RateLimitOptions } from './rate-limit.ts'
import type { TunnelLimits } from './upgrade.ts'

/** What the gateway works with. */
export interface GatewayParts {
  functions: Functions
  invocations: Invocations
  invoker: Invoker
  images: ImageCatalog
  platform: Platform
  pools: PoolCatalog
  secrets: SecretCatalog
  keys: Keys
  sshKeys: SshKeys
  idempotency: Idempotency
  sandboxes: Sandboxes
  snapshots: Snapshots
  executor: Executor
  e2b: E2bSandboxes
  e2bTemplates: E2bTemplates
  e2bBuilds: E2bBuilds
  metrics: Metrics
  log: Logger
}

export interface GatewayOptions {
  host: string
  port: number
  maxPayloadBytes: number
  maxArchiveBytes: number
  headerTimeoutMs: number
  requestTimeoutMs: number
  maxConnections: number
  websocket: TunnelLimits
  /** Ports of sandboxes have host names below it. */
  sandboxDomain: string
  rateLimit: RateLimitOptions
}
