import { z } from 'zod'
import { bootMethodSchema, functionNameSchema, pageQuerySchema, timestampSchema } from './common.ts'
import { codeFailureItemSchema } from './functions.ts'

export const invocationStatuses = ['queued', 'running', 'succeeded', 'failed', 'timed_out', 'cancelled', 'dead', 'expired'] as const
export const invocationStatusSchema = z.enum(invocationStatuses)
export type InvocationStatus = z.infer<typeof invocationStatusSchema>

/** `Thaw-Mode` of POST /v1/functions/{name}/invoke. */
export const invokeModes = ['sync', 'stream'] as const
export type InvokeMode = (typeof invokeModes)[number]

export const invocationItemSchema = z.object({
  id: z.string(),
  function: z.string(),
  version: z.int(),
  status: invocationStatusSchema,
  attempt: z.int(),
  trigger: z.enum(['invoke', 'http']),
  boot_method: bootMethodSchema.nullable(),
  sandbox_id: z.string().nullable(),
  /** The answer, when it was JSON or text and small enough to keep. */
  result: z.unknown().nullable(),
  error: z.object({ code: z.string(), message: z.string(), details: codeFailureItemSchema.partial().optional() }).nullable(),
  request_bytes: z.int(),
  result_bytes: z.int(),
  /** Milliseconds of each stage, null where the stage was not reached. */
  timing: z.object({ queue_ms: z.number(), boot_ms: z.number(), init_ms: z.number(), run_ms: z.number() }).nullable(),
  logs_truncated: z.boolean(),
  created_at: timestampSchema,
  started_at: timestampSchema.nullable(),
  ended_at: timestampSchema.nullable(),
})
export type InvocationItem = z.infer<typeof invocationItemSchema>

export const invocationListQuerySchema = pageQuerySchema.extend({
  function: functionNameSchema.optional(),
  status: invocationStatusSchema.optional(),
})

export const logEntrySchema = z.object({
  function: z.string(),
  version: z.int(),
  invocation_id: z.string().nullable(),
  sandbox_id: z.string().nullable(),
  source: z.enum(['stdout', 'stderr', 'platform']),
  message: z.string(),
  time: timestampSchema,
})
export type LogEntry = z.infer<typeof logEntrySchema>

export const logQuerySchema = z.strictObject({
  limit: z.coerce.number().int().min(1).max(10_000).default(1000),
  follow: z.enum(['0', '1']).default('0').describe('1: keep the answer open and send entries as server-sent events'),
})
