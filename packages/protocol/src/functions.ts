import { z } from 'zod'
import { driverKindSchema, envSchema, functionNameSchema, networkModeSchema, resourcesSchema, timestampSchema } from './common.ts'
import { secretRefsSchema } from './secrets.ts'
import { snapshotKindSchema, snapshotStateSchema } from './snapshots.ts'

export const runtimes = ['python', 'node', 'go', 'custom'] as const
export const runtimeSchema = z.enum(runtimes)
export type Runtime = z.infer<typeof runtimeSchema>

export const contracts = ['handler', 'stdio', 'http', 'custom'] as const
export const contractSchema = z.enum(contracts)
export type Contract = z.infer<typeof contractSchema>

const base64Schema = z.string().regex(/^[A-Za-z0-9+/]*={0,2}$/, 'must be base64')

/** Exactly one of: inline source, an archive, or code that the image brings itself. */
export const codeSchema = z
  .strictObject({
    inline: base64Schema.optional().describe('base64 of one source file: main.py, main.mjs or main.go'),
    archive: base64Schema.optional().describe('base64 of a zip or tar.gz file'),
    image: z.string().max(512).optional().describe('an OCI image that holds the code'),
  })
  .refine(
    (value) => [value.inline, value.archive, value.image].filter((part) => part !== undefined).length === 1,
    'give exactly one of inline, archive and image',
  )

export const scalingSchema = z
  .strictObject({
    concurrency: z.int().min(1).max(1000).default(1),
    min_instances: z.int().min(0).max(1000).default(0),
    max_instances: z.int().min(1).max(1000).default(10),
    idle_timeout_ms: z.int().min(0).max(86_400_000).default(300_000),
  })
  .refine((value) => value.min_instances <= value.max_instances, 'min_instances must not exceed max_instances')
export type Scaling = z.infer<typeof scalingSchema>

export const retrySchema = z.strictObject({
  max_attempts: z.int().min(1).max(100).default(3),
  retry_handler_errors: z.boolean().default(false),
})

/** What a version of a function is made of; everything but the code itself. */
export const functionConfigSchema = z.strictObject({
  runtime: runtimeSchema,
  contract: contractSchema.optional().describe('default: custom for the runtime custom, else handler'),
  handler: z
    .string()
    .min(1)
    .max(512)
    .regex(/^[^\0]*$/)
    .optional()
    .describe('default: main.handler; contracts stdio and http: the main file'),
  command: z
    .array(
      z
        .string()
        .max(4096)
        .regex(/^[^\0]*$/),
    )
    .min(1)
    .max(64)
    .optional()
    .describe('contracts stdio, http and custom: the program and its arguments, run in the code folder'),
  image: z.string().min(1).max(512).optional().describe('host, python, node, go, or an OCI reference; default: the image of the runtime'),
  driver: driverKindSchema.optional().describe('default: the strongest usable driver of the server'),
  env: envSchema.default({}),
  secrets: secretRefsSchema.default([]),
  resources: resourcesSchema.prefault({}),
  timeout_ms: z.int().min(1).max(86_400_000).default(30_000),
  network: networkModeSchema.default('egress'),
  scaling: scalingSchema.prefault({}),
  retry: retrySchema.prefault({}),
  snapshot: z
    .boolean()
    .optional()
    .describe('start from memory: true always, false never; default: where loading takes long (snapshots.auto_init_ms)'),
})
export type FunctionConfig = z.infer<typeof functionConfigSchema>

export const functionUpdateSchema = functionConfigSchema.extend({ code: codeSchema })
export type FunctionUpdate = z.input<typeof functionUpdateSchema>

export const functionCreateSchema = functionUpdateSchema.extend({ name: functionNameSchema })
export type FunctionCreate = z.input<typeof functionCreateSchema>

export const versionStates = ['building', 'ready', 'failed'] as const

export const codeFailureItemSchema = z.object({ type: z.string(), message: z.string(), stack: z.string().optional() })

/** The memory that instances of a version start from. */
export const versionSnapshotSchema = z.object({
  state: snapshotStateSchema,
  kind: snapshotKindSchema,
  size_bytes: z.int(),
  success_count: z.int().describe('instances that were started from it'),
  failure_count: z.int(),
  error: z.object({ code: z.string(), message: z.string() }).nullable().describe('why there is none, or why it is not used any more'),
  created_at: timestampSchema,
  last_used_at: timestampSchema.nullable(),
})
export type VersionSnapshotItem = z.infer<typeof versionSnapshotSchema>

export const versionItemSchema = z.object({
  id: z.string(),
  function: z.string(),
  version: z.int(),
  state: z.enum(versionStates),
  error: z.object({ code: z.string(), message: z.string() }).nullable(),
  runtime: runtimeSchema,
  contract: contractSchema,
  handler: z.string(),
  command: z.array(z.string()).nullable(),
  image: z.string(),
  image_digest: z.string().nullable(),
  code_digest: z.string().nullable(),
  driver: driverKindSchema,
  /** Names only: values of variables are never given back. */
  env: z.array(z.string()),
  secrets: z.array(z.object({ name: z.string(), env: z.string().optional(), file: z.string().optional() })),
  resources: resourcesSchema,
  timeout_ms: z.int(),
  network: networkModeSchema,
  scaling: scalingSchema,
  retry: retrySchema,
  snapshot: versionSnapshotSchema.nullable(),
  created_at: timestampSchema,
})
export type VersionItem = z.infer<typeof versionItemSchema>

export const functionItemSchema = versionItemSchema.omit({ function: true }).extend({
  name: z.string(),
  /** Of the function, while `version` and `state` speak of its active version. */
  id: z.string(),
  version_id: z.string(),
  instances: z.object({ starting: z.int(), idle: z.int(), busy: z.int() }),
  updated_at: timestampSchema,
})
export type FunctionItem = z.infer<typeof functionItemSchema>

export const rollbackSchema = z.strictObject({
  version: z.int().min(1).optional().describe('default: the ready version before the active one'),
})

export const deployQuerySchema = z.strictObject({
  wait: z.enum(['true', 'false']).default('true').describe('false: answer at once with state building; follow the build log'),
})
