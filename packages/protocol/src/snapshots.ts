import { z } from 'zod'
import { driverKindSchema, envSchema, timestampSchema } from './common.ts'
import { sandboxItemSchema, sandboxNameSchema, sandboxUpdateSchema } from './sandboxes.ts'

export const snapshotKinds = ['filesystem', 'memory'] as const
export const snapshotKindSchema = z.enum(snapshotKinds)

export const snapshotStates = ['creating', 'ready', 'unhealthy', 'deleted'] as const
export const snapshotStateSchema = z.enum(snapshotStates)

const snapshotNameSchema = z.string().min(1).max(128).optional()

export const snapshotCreateSchema = z
  .strictObject({
    kind: snapshotKindSchema.optional().describe('default: memory where the driver can, else filesystem'),
    fallback: z.boolean().default(false).describe('take a filesystem snapshot where memory cannot be kept'),
    name: snapshotNameSchema,
  })
  .prefault({})
export type SnapshotCreate = z.input<typeof snapshotCreateSchema>
export type SnapshotCreateParsed = z.output<typeof snapshotCreateSchema>

export const snapshotItemSchema = z.object({
  id: z.string(),
  name: z.string().nullable(),
  kind: snapshotKindSchema,
  state: snapshotStateSchema,
  sandbox_id: z.string().nullable().describe('the sandbox that it was taken of'),
  image: z.string(),
  image_digest: z.string(),
  driver: driverKindSchema,
  size_bytes: z.int(),
  frozen_ms: z.number().nullable().describe('how long the sandbox stood still'),
  success_count: z.int(),
  failure_count: z.int(),
  error: z.object({ code: z.string(), message: z.string() }).nullable(),
  created_at: timestampSchema,
  last_used_at: timestampSchema.nullable(),
})
export type SnapshotItem = z.infer<typeof snapshotItemSchema>

/** What a clone may have for itself; what is left out is as it was in the sandbox. */
const ownFields = sandboxUpdateSchema.extend({
  name: sandboxNameSchema.optional(),
  env: envSchema.optional().describe('for commands from now on; added to that of the sandbox'),
})
export const restoreSchema = ownFields.prefault({})
export type Restore = z.input<typeof restoreSchema>
/** A sandbox that is created from a snapshot: image, driver, limits and network are those of the snapshot. */
export const sandboxFromSnapshotSchema = ownFields.extend({ snapshot_id: z.string().min(1).max(64) })

export type RestoreParsed = z.output<typeof restoreSchema>

export const forkSchema = z
  .strictObject({
    count: z.int().min(1).max(100).default(1),
    kind: snapshotKindSchema.optional().describe('default: memory where the driver can, else filesystem'),
    fallback: z.boolean().default(false).describe('copy the files alone where memory cannot be copied'),
    metadata: sandboxUpdateSchema.shape.metadata,
    timeout_ms: sandboxUpdateSchema.shape.timeout_ms,
  })
  .prefault({})
export type Fork = z.input<typeof forkSchema>
export type ForkParsed = z.output<typeof forkSchema>

export const forkResultSchema = z.object({
  items: z.array(sandboxItemSchema),
  frozen_ms: z.number().describe('how long the parent stood still'),
})

/** Sandboxes that came from one another: the first is the one that all began with, the others name theirs in parent_id. */
export const sandboxTreeSchema = z.object({ root_id: z.string(), items: z.array(sandboxItemSchema) })
export type SandboxTree = z.infer<typeof sandboxTreeSchema>
