import { z } from 'zod'
import { driverKindSchema, networkModeSchema, timestampSchema } from './common.ts'
import { sshInfoSchema } from './ssh-keys.ts'

/** What a driver found on this machine, and how to get what is missing. */
export const probeSchema = z.object({
  usable: z.boolean(),
  /** Names and versions of the engines that were found. */
  versions: z.record(z.string(), z.string()),
  missing: z.array(z.object({ what: z.string(), fix: z.string() })),
  /** Usable, but worth knowing: no isolation, known holes in an engine, limits that this host cannot enforce. */
  warnings: z.array(z.string()),
})
export type Probe = z.infer<typeof probeSchema>

export const abilitiesSchema = z.object({
  isolation: z.enum(['none', 'container', 'vm']),
  pause: z.boolean(),
  snapshot: z.enum(['none', 'filesystem', 'memory']),
})
export type Abilities = z.infer<typeof abilitiesSchema>

export const driverItemSchema = z.object({ kind: driverKindSchema, default: z.boolean(), abilities: abilitiesSchema, probe: probeSchema })
export type DriverItem = z.infer<typeof driverItemSchema>

export const infoSchema = z.object({
  name: z.literal('thaw'),
  version: z.string(),
  node_version: z.string(),
  started_at: timestampSchema,
  data_dir: z.string().nullable().describe('null for keys with the role member'),
  drivers: z.array(driverItemSchema),
  ssh: sshInfoSchema.nullable().describe('where it listens for SSH; null: nowhere'),
  limits: z.object({ max_payload_bytes: z.int(), max_archive_bytes: z.int() }),
})
export type Info = z.infer<typeof infoSchema>

export const imageItemSchema = z.object({
  /** What it was asked for as: host, python, node, go, or an OCI reference. */
  ref: z.string(),
  kind: z.enum(['host', 'runtime', 'oci']),
  digest: z.string().nullable(),
  state: z.enum(['available', 'ready']).describe('available: known how to make it; ready: on disk'),
  size_bytes: z.int().nullable(),
  in_use: z.boolean(),
  created_at: timestampSchema.nullable(),
})
export type ImageItem = z.infer<typeof imageItemSchema>

export const imageCreateSchema = z.strictObject({
  ref: z.string().min(1).max(512).describe('python, node, go, or an OCI reference such as registry.example/app@sha256:…'),
})

export const pruneResultSchema = z.object({ removed: z.array(z.string()), freed_bytes: z.int() })

/** What a pooled sandbox runs: the bootstrap of python or node, the launcher of programs, or the agent of sandboxes. */
export const poolRuntimes = ['python', 'node', 'custom', 'agent'] as const
export const poolRuntimeSchema = z.enum(poolRuntimes)

export const poolItemSchema = z.object({
  image: z.string(),
  image_digest: z.string(),
  driver: driverKindSchema,
  runtime: poolRuntimeSchema,
  network: networkModeSchema,
  tmp_mib: z.int(),
  ready: z.int(),
  starting: z.int(),
  target: z.int(),
  /** What the size was fixed at; null: it follows demand. */
  configured: z.int().nullable(),
  taken_recently: z.int(),
})
export type PoolItem = z.infer<typeof poolItemSchema>

const poolKindSchema = z.strictObject({
  runtime: poolRuntimeSchema.optional().describe('default: that of the image, custom for host and OCI images'),
  driver: driverKindSchema.optional(),
  network: networkModeSchema.default('egress'),
  tmp_mib: z.int().min(1).max(1_048_576).default(64),
})

export const poolUpdateSchema = poolKindSchema.extend({
  size: z.int().min(0).max(1000).nullable().describe('null: follow demand again'),
})
export type PoolUpdate = z.input<typeof poolUpdateSchema>

export const prewarmSchema = poolKindSchema.extend({
  image: z.string().min(1).max(512),
  count: z.int().min(1).max(1000).default(1),
})
export type Prewarm = z.input<typeof prewarmSchema>
