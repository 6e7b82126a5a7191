import { envSchema, metadataSchema } from '@thaw/protocol'
import { z } from 'zod'

const longestS = 365 * 86_400
const seconds = z.int().min(0).max(longestS)
export const idSchema = z.object({ id: z.string().min(1).max(64) })

const domainOrAddress = z.array(z.string().max(255)).max(1000)
const networkSchema = z.strictObject({
  allowPublicTraffic: z.boolean().nullish(),
  allowOut: domainOrAddress.nullish(),
  denyOut: domainOrAddress.nullish(),
  dnsServers: z.array(z.string()).nullish(),
  egressProxy: z.unknown().optional(),
  maskRequestHost: z.string().nullish(),
  httpsPorts: z.array(z.int()).nullish(),
  rules: z.record(z.string(), z.unknown()).nullish(),
})
export type E2bNetwork = z.output<typeof networkSchema>

/**
 * What a client may say about a new sandbox. Fields that thaw cannot serve are known, so that they are refused by name; what
 * nobody knows is refused too, since it would be ignored else.
 */
export const newSandboxSchema = z.strictObject({
  templateID: z.string().min(1).max(512),
  timeout: seconds.nullish(),
  autoPause: z.boolean().nullish(),
  autoPauseMemory: z.boolean().nullish(),
  autoResume: z.strictObject({ enabled: z.boolean().optional(), policy: z.enum(['any', 'off']).optional() }).nullish(),
  secure: z.boolean().nullish(),
  allow_internet_access: z.boolean().nullish(),
  network: networkSchema.nullish(),
  metadata: metadataSchema.nullish(),
  envVars: envSchema.nullish(),
  mcp: z.unknown().optional(),
  iam: z.unknown().optional(),
  volumeMounts: z.array(z.unknown()).nullish(),
})
export type NewSandbox = z.output<typeof newSandboxSchema>

const several = z.union([z.string(), z.array(z.string())]).transform((value) => (Array.isArray(value) ? value : [value]).join(','))

export const listSchema = z.strictObject({
  /** key=value pairs, joined with &; keys and values are percent-encoded once more than that. */
  metadata: z.string().max(8192).optional(),
  state: several.pipe(z.string().regex(/^(?:running|paused)(?:,(?:running|paused))*$/, 'use running and paused')).optional(),
  startedAfter: z.iso.datetime({ offset: true }).optional(),
  template: z.string().max(512).optional(),
  order: z.enum(['asc', 'desc']).optional(),
  limit: z.coerce.number().int().min(1).max(100).default(100),
  nextToken: z.string().max(512).optional(),
})

export const connectSchema = z.strictObject({ timeout: seconds.nullish(), memory: z.boolean().nullish() }).prefault({})
export const resumeSchema = z
  .strictObject({ timeout: seconds.nullish(), autoPause: z.boolean().nullish(), memory: z.boolean().nullish() })
  .prefault({})
export const pauseSchema = z.strictObject({ memory: z.boolean().nullish(), requireHealthyGuest: z.boolean().nullish() }).prefault({})
export const timeoutSchema = z.strictObject({ timeout: seconds })
export const refreshSchema = z.strictObject({ duration: seconds.nullish() }).prefault({})
export const forkSchema = z.strictObject({ timeout: seconds.nullish(), count: z.int().min(1).max(20).nullish() }).prefault({})
export const metricsQuerySchema = z.strictObject({
  start: z.coerce.number().int().min(0).optional(),
  end: z.coerce.number().int().min(0).optional(),
})
export const manyMetricsSchema = z.strictObject({ sandbox_ids: several })
export const networkUpdateSchema = networkSchema.extend({ allow_internet_access: z.boolean().nullish() })

export const snapshotSchema = z.strictObject({ name: z.string().min(1).max(128).nullish(), memory: z.boolean().nullish() }).prefault({})
export const snapshotListSchema = z.strictObject({
  sandboxID: z.string().max(64).optional(),
  name: z.string().max(256).optional(),
  limit: z.coerce.number().int().min(1).max(100).default(100),
  nextToken: z.string().max(512).optional(),
})
