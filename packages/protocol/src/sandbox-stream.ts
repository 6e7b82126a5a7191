import { z } from 'zod'
import { envSchema } from './common.ts'
import type { ErrorBody } from './errors.ts'
import { commandSchema } from './sandboxes.ts'
import type { SnapshotItem } from './snapshots.ts'

/** Largest message that a client may send on a stream, in bytes. */
export const maxStreamMessageBytes = 1024 * 1024
/** Most processes and watches of one stream at a time. */
export const maxStreamIds = 64

/** What answers are recognised by; the client chooses it. */
const idSchema = z.string().min(1).max(64)
const cellsSchema = z.int().min(1).max(65_535)
const userSchema = z.string().min(1).max(64).optional()
const pathSchema = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^[^\0]*$/, 'must not hold a NUL byte')

/** Signals by their names in POSIX, and WINCH. */
export const streamSignals = [
  'SIGHUP',
  'SIGINT',
  'SIGQUIT',
  'SIGABRT',
  'SIGKILL',
  'SIGUSR1',
  'SIGUSR2',
  'SIGALRM',
  'SIGTERM',
  'SIGCONT',
  'SIGSTOP',
  'SIGTSTP',
  'SIGWINCH',
] as const
export type StreamSignal = (typeof streamSignals)[number]

const offsetSchema = z.int().min(0)

/** What a client says on `/v1/sandboxes/{id}/stream`. */
export const streamCommandSchema = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('exec'),
    id: idSchema,
    command: commandSchema,
    env: envSchema.default({}),
    cwd: z.string().min(1).max(4096).optional(),
    user: userSchema.describe('default: root of the sandbox'),
    pty: z.strictObject({ cols: cellsSchema, rows: cellsSchema }).optional().describe('gives it a terminal'),
    stdin: z.boolean().default(false).describe('stdin messages follow; without, stdin is empty. A terminal always has it'),
    kill_on_close: z.boolean().default(false).describe('it ends with the connection, instead of going on'),
  }),
  z.strictObject({
    type: z.literal('attach'),
    id: idSchema,
    pid: z.union([z.int().min(1), z.literal('main')]).describe('main: the service that was started with the sandbox'),
    offset: z
      .strictObject({ stdout: offsetSchema.optional(), stderr: offsetSchema.optional() })
      .optional()
      .describe('bytes that were received already, so that none is missed; default: what comes from now on'),
    kill_on_close: z.boolean().default(false),
  }),
  z.strictObject({
    type: z.literal('stdin'),
    id: idSchema,
    data: z.string().optional(),
    eof: z.boolean().default(false).describe('closes it, behind data'),
  }),
  z.strictObject({ type: z.literal('resize'), id: idSchema, cols: cellsSchema, rows: cellsSchema }),
  z
    .strictObject({ type: z.literal('hold'), id: idSchema, held: z.boolean() })
    .describe('while it is held, no output comes, and a process that writes on waits'),
  z.strictObject({ type: z.literal('signal'), id: idSchema, signal: z.enum(streamSignals) }),
  z.strictObject({
    type: z.literal('watch'),
    id: idSchema,
    path: pathSchema,
    recursive: z.boolean().default(false),
    user: userSchema,
  }),
  z.strictObject({ type: z.literal('unwatch'), id: idSchema }),
  z.strictObject({
    type: z.literal('checkpoint'),
    id: idSchema.optional(),
    name: z.string().min(1).max(128).optional(),
  }),
  z.strictObject({ type: z.literal('stop'), id: idSchema.optional() }),
])
export type StreamCommand = z.input<typeof streamCommandSchema>
export type StreamCommandParsed = z.output<typeof streamCommandSchema>

export const fileEvents = ['create', 'write', 'remove', 'rename', 'chmod'] as const
export type FileEvent = (typeof fileEvents)[number]

/** What the server says on `/v1/sandboxes/{id}/stream`. */
export type StreamEvent =
  /** A process runs, or is attached to; a watch is in place (`pid` null). `offset`: bytes that went before what follows. */
  | { type: 'started'; id: string; pid: number | null; offset?: { stdout: number; stderr: number } }
  /** A terminal writes all to stdout. */
  | { type: 'stdout' | 'stderr'; id: string; data: string }
  /** 128 + n for signal n. The id is free again. */
  | { type: 'exit'; id: string; exit_code: number; signal: string | null }
  | { type: 'file_event'; id: string; path: string; event: FileEvent }
  /** A process of this sandbox, whoever started it. */
  | { type: 'process_event'; event: 'started'; pid: number; command: string[] }
  | { type: 'process_event'; event: 'ended'; pid: number; exit_code: number | null; signal: string | null }
  /** The sandbox as a whole. */
  | { type: 'process_event'; event: 'paused' | 'resumed' | 'hibernated' | 'stopped' | 'failed' }
  | { type: 'checkpoint'; id?: string; snapshot: SnapshotItem }
  | { type: 'heartbeat'; time: string }
  /** `ended`: with it the id is free again; else its process or watch goes on. Without an id it is about the connection. */
  | { type: 'error'; id?: string; ended: boolean; error: ErrorBody }
