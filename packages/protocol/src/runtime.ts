import { z } from 'zod'
import type { Contract } from './functions.ts'

/**
 * The JSON inside the frames of the runtime protocol. What comes from a sandbox is untrusted: the worker validates it
 * with these schemas, which drop what they do not know, so that newer runtimes still work.
 */
const text = (maxLength: number) => z.string().max(maxLength)

/** load: sent once, before anything else. */
export interface LoadMessage {
  function: string
  version: string
  contract: Contract
  /** handler: `file.function`; custom: `_HANDLER`; else what to run, see docs/functions.md. */
  handler: string
  /** All contracts but handler: the program and its arguments. */
  command?: string[]
  /** http only: where the server is to listen, unless its environment has a PORT; 0: on any free port. */
  port?: number
  /** Where the code lies, as the instance sees it. */
  code_dir: string
  env: Record<string, string>
  /** Secrets by the name of their file in the folder that THAW_SECRETS_DIR names. */
  secret_files?: Record<string, string>
  timeout_ms: number
  memory_mib: number
  /** Most invocations that the worker sends at the same time. */
  concurrency: number
}

/** invoke: the meta part; the body follows it, and more of it in body frames when `more` is true. */
export interface InvokeMeta {
  id: string
  attempt: number
  /** Unix milliseconds at which the worker gives up. */
  deadline_ms: number
  content_type: string
  more: boolean
  trigger: 'invoke' | 'http'
  http?: { method: string; path: string; query: string; headers: Record<string, string> }
}

/** hook: what is about to happen, or has happened, to the whole instance. */
export type HookMessage = { hook: 'before_snapshot' } | AfterRestoreMessage

/** What a copy of a snapshotted instance gets for itself, before its first invocation. */
export interface AfterRestoreMessage {
  hook: 'after_restore'
  /** Variables with secrets: they were not there when the snapshot was taken. */
  env: Record<string, string>
  /** Secrets by the name of their file. */
  files: Record<string, string>
  /** Unix milliseconds. */
  time_ms: number
  /** 32 random bytes in base64. */
  entropy: string
  sandbox_id: string
}

export const helloSchema = z.object({
  protocol: z.int(),
  runtime: text(64),
  runtime_version: text(64),
})

export const readySchema = z.object({ init_ms: z.number().nonnegative() })

export const codeFailureSchema = z.object({
  type: text(256).default('Error'),
  message: text(65_536).default(''),
  stack: text(262_144).optional(),
})

/** failed: why. `invalid_payload` blames the caller: the body is not what its content type says. */
export const failedSchema = codeFailureSchema.extend({
  reason: z.enum(['error', 'invalid_payload', 'cancelled']).default('error'),
})

/** result: the meta part. With `more`, chunk frames and one end (or failed) frame follow. */
export const resultMetaSchema = z.object({
  content_type: text(256).regex(/^[\x20-\x7e]*$/),
  more: z.boolean().default(false),
  status: z.int().min(100).max(599).optional(),
  headers: z.record(text(256), z.union([text(8192), z.array(text(8192)).max(64)])).optional(),
})
export type ResultMeta = z.infer<typeof resultMetaSchema>

/** The first byte of the payload of a log frame; the rest is UTF-8 text. */
export const logSources = { stdout: 1, stderr: 2 } as const

export const hookDoneSchema = z.object({ hook: text(64), error: codeFailureSchema.optional() })
