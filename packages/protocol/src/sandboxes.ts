import { z } from 'zod'
import { bootMethodSchema, driverKindSchema, envSchema, networkModeSchema, timestampSchema } from './common.ts'

export const sandboxStates = ['creating', 'running', 'paused', 'hibernated', 'stopped', 'failed'] as const
export const sandboxStateSchema = z.enum(sandboxStates)
export type SandboxState = z.infer<typeof sandboxStateSchema>

/** A DNS label, so that it fits into host names. */
export const sandboxNameSchema = z
  .string()
  .regex(
    /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/,
    'use 1 to 63 lower-case letters, digits and -, starting and ending with a letter or digit',
  )

export const sandboxResourcesSchema = z.strictObject({
  memory_mib: z.int().min(16).max(1_048_576).default(512),
  cpus: z.number().min(0.01).max(256).default(1),
  pids: z.int().min(8).max(32_768).default(512),
  disk_mib: z
    .int()
    .min(1)
    .max(16_777_216)
    .optional()
    .describe('what it may write to its disk (driver oci); default: as the server is configured'),
  gpus: z
    .union([z.int().min(1).max(64), z.literal('all')])
    .optional()
    .describe('NVIDIA GPUs (driver docker)'),
})
export type SandboxResources = z.infer<typeof sandboxResourcesSchema>

const portSchema = z.int().min(1).max(65_535)
/** Ports inside that the proxy leads to. */
export const sandboxPortsSchema = z.union([z.literal('all'), z.array(portSchema).max(64)])

const maxLifeMs = 365 * 86_400_000

export const metadataSchema = z
  .record(z.string().min(1).max(128), z.string().max(1024))
  .refine((metadata) => Object.keys(metadata).length <= 64, 'at most 64 entries')

export const commandSchema = z
  .union([
    z
      .string()
      .min(1)
      .max(131_072)
      .regex(/^[^\0]*$/, 'must not hold a NUL byte'),
    z
      .array(
        z
          .string()
          .max(131_072)
          .regex(/^[^\0]*$/, 'must not hold a NUL byte'),
      )
      .min(1)
      .max(1024),
  ])
  .describe('text for /bin/sh, or a program and its arguments')

export const sandboxCreateSchema = z.strictObject({
  image: z
    .string()
    .min(1)
    .max(512)
    .optional()
    .describe('host, python, node, go, apt:PACKAGE,… or an OCI reference; default: python, host with the process driver'),
  snapshot_id: z.string().max(64).optional().describe('start from this snapshot instead of an image'),
  driver: driverKindSchema.optional(),
  name: sandboxNameSchema.optional().describe('unique; a sandbox that has it already is given back instead of a new one'),
  resources: sandboxResourcesSchema.prefault({}),
  env: envSchema.default({}).describe('environment of every command'),
  ports: sandboxPortsSchema.default([]).describe('ports that /ports and host names lead to'),
  network: networkModeSchema.default('egress'),
  timeout_ms: z.int().min(1000).max(maxLifeMs).nullable().default(null).describe('how long it may live; null: until it is deleted'),
  on_timeout: z.enum(['stop', 'pause']).default('stop'),
  idle_ms: z.int().min(1000).max(maxLifeMs).nullable().default(null).describe('pause after so long without a call; the next call wakes it'),
  hibernate_ms: z
    .int()
    .min(0)
    .max(maxLifeMs)
    .nullable()
    .default(null)
    .describe('once paused for so long, its memory goes to disk; null: as the server is configured'),
  metadata: metadataSchema.default({}),
  command: commandSchema.optional().describe('a service that is started with it'),
})
export type SandboxCreate = z.input<typeof sandboxCreateSchema>
export type SandboxCreateParsed = z.output<typeof sandboxCreateSchema>

export const sandboxUpdateSchema = z
  .strictObject({
    ports: sandboxPortsSchema.optional(),
    timeout_ms: z.int().min(0).max(maxLifeMs).nullable().optional().describe('from now on; 0: at once'),
    on_timeout: z.enum(['stop', 'pause']).optional(),
    idle_ms: z.int().min(1000).max(maxLifeMs).nullable().optional(),
    metadata: metadataSchema.optional(),
  })
  .describe('what is left out stays as it is')
export type SandboxUpdate = z.input<typeof sandboxUpdateSchema>

export const sandboxItemSchema = z.object({
  id: z.string(),
  name: z.string().nullable(),
  state: sandboxStateSchema,
  image: z.string(),
  image_digest: z.string().nullable(),
  driver: driverKindSchema,
  boot_method: bootMethodSchema.nullable().describe('how it got its environment, the last time that it was started or woken'),
  resources: sandboxResourcesSchema,
  ports: sandboxPortsSchema,
  network: networkModeSchema,
  timeout_ms: z.int().nullable(),
  on_timeout: z.enum(['stop', 'pause']),
  idle_ms: z.int().nullable(),
  hibernate_ms: z.int().nullable(),
  metadata: metadataSchema,
  parent_id: z.string().nullable().describe('the sandbox that it was forked from'),
  snapshot_id: z.string().nullable().describe('the snapshot that it was started from'),
  error: z.object({ code: z.string(), message: z.string() }).nullable(),
  created_at: timestampSchema,
  started_at: timestampSchema.nullable(),
  ends_at: timestampSchema.nullable().describe('when timeout_ms is over'),
  ended_at: timestampSchema.nullable(),
})
export type SandboxItem = z.infer<typeof sandboxItemSchema>

export const sandboxListQuerySchema = z.strictObject({
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  cursor: z.string().max(512).optional(),
  /** One or several, separated by commas. */
  state: z
    .string()
    .regex(/^[a-z]+(,[a-z]+)*$/)
    .optional(),
  name: z.string().max(64).optional(),
  image: z.string().max(512).optional(),
  metadata: z.string().max(4096).optional().describe('key=value pairs, joined with & and percent-encoded'),
})
export type SandboxListQuery = z.input<typeof sandboxListQuerySchema>

/** Largest stdin that a call carries in JSON; more goes through /stream. */
export const maxStdinBytes = 16 * 1024 * 1024
/** Output kept of one command, both streams together. */
export const maxOutputBytes = 64 * 1024 * 1024

const maxRunMs = 86_400_000

const encodingSchema = z
  .enum(['utf8', 'base64'])
  .default('utf8')
  .describe('how stdin, stdout and stderr are written in JSON; base64 keeps every byte')

export const execRequestSchema = z.strictObject({
  command: commandSchema,
  env: envSchema.default({}),
  cwd: z.string().min(1).max(4096).optional(),
  user: z.string().min(1).max(64).optional().describe('default: root of the sandbox'),
  stdin: z
    .string()
    .max(maxStdinBytes * 2)
    .optional(),
  timeout_ms: z.int().min(1).max(maxRunMs).default(60_000),
  encoding: encodingSchema,
})
export type ExecRequest = z.input<typeof execRequestSchema>
export type ExecRequestParsed = z.output<typeof execRequestSchema>

export const execResultSchema = z.object({
  stdout: z.string(),
  stderr: z.string(),
  exit_code: z.int().nullable().describe('128 + n for signal n; null when it did not end in time'),
  signal: z.string().nullable(),
  timed_out: z.boolean(),
  duration_ms: z.number(),
  truncated: z.boolean().describe('there was more output than is kept'),
  encoding: z.enum(['utf8', 'base64']),
})
export type ExecResult = z.infer<typeof execResultSchema>

export const sandboxStatsSchema = z.object({
  state: sandboxStateSchema,
  memory_bytes: z.int().nullable(),
  memory_limit_bytes: z.int(),
  cpu_ms: z.int().nullable(),
  cpus: z.number(),
  processes: z.int().nullable(),
  disk_bytes: z.int().nullable(),
  /** Since it was started. */
  uptime_ms: z.int().nullable(),
})
export type SandboxStats = z.infer<typeof sandboxStatsSchema>

export const executeModes = ['ephemeral', 'cached', 'checkpointed', 'branched', 'persistent'] as const

export const executeRequestSchema = z.strictObject({
  command: commandSchema,
  image: z.string().min(1).max(512).optional(),
  driver: driverKindSchema.optional(),
  env: envSchema.default({}),
  stdin: z
    .string()
    .max(maxStdinBytes * 2)
    .optional(),
  cwd: z.string().min(1).max(4096).optional(),
  files: z
    .record(z.string().min(1).max(4096), z.string())
    .refine((files) => Object.keys(files).length <= 256, 'at most 256 files')
    .default({})
    .describe('path → content, written before the command starts'),
  timeout_ms: z.int().min(1).max(maxRunMs).default(60_000),
  encoding: encodingSchema,
  mode: z.enum(executeModes).default('ephemeral'),
  network: networkModeSchema.default('none'),
  resources: sandboxResourcesSchema.prefault({}),
  sandbox_id: z.string().max(64).optional().describe('mode persistent: go on in this sandbox'),
  cache_key: z.string().max(256).optional().describe('mode cached: part of what makes two commands the same'),
  cache_ttl_ms: z.int().min(1).max(maxLifeMs).optional(),
  snapshot_id: z.string().max(64).optional().describe('mode checkpointed: go on from this snapshot'),
  branch_from: z.string().max(64).optional().describe('mode branched: a sandbox or a snapshot'),
  keep: z.boolean().default(false).describe('mode branched: let the sandboxes of the branches live on'),
  branches: z
    .array(z.strictObject({ command: commandSchema, env: envSchema.default({}), stdin: z.string().optional() }))
    .min(1)
    .max(64)
    .optional()
    .describe('mode branched: variants that run side by side; default: command alone'),
})
export type ExecuteRequest = z.input<typeof executeRequestSchema>
export type ExecuteRequestParsed = z.output<typeof executeRequestSchema>

const executeOutcome = execResultSchema.extend({
  boot_method: bootMethodSchema,
  sandbox_id: z.string().nullable().describe('a sandbox that lives on; null where it ended with the command'),
  snapshot_id: z.string().nullable(),
})
export const executeResultSchema = executeOutcome.extend({
  request_id: z.string(),
  cached: z.boolean(),
  branches: z.array(executeOutcome).optional(),
})
export type ExecuteResult = z.infer<typeof executeResultSchema>

const pathSchema = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^[^\0]*$/, 'must not hold a NUL byte')
  .describe('absolute, or relative to the home folder of the user')

export const fileItemSchema = z.object({
  name: z.string(),
  path: z.string(),
  type: z.enum(['file', 'directory', 'symlink', 'other']),
  size_bytes: z.int(),
  mode: z.int(),
  owner: z.string(),
  group: z.string(),
  modified_at: z.string().nullable(),
  target: z.string().nullable().describe('where a symbolic link leads to'),
})
export type FileItem = z.infer<typeof fileItemSchema>

const fileUser = z.string().min(1).max(64).optional()
export const fileQuerySchema = z.strictObject({ path: pathSchema, user: fileUser })
export const fileListQuerySchema = fileQuerySchema.extend({ depth: z.coerce.number().int().min(1).max(64).default(1) })
export const fileMoveSchema = z.strictObject({ from: pathSchema, to: pathSchema, user: fileUser })
export const folderCreateSchema = z.strictObject({ path: pathSchema, user: fileUser })
