import { z } from 'zod'
import { NotUnderstood } from './connect.ts'

/**
 * What agents say, in the JSON form of E2B's protocol (process.Process, filesystem.Filesystem). Code of a sandbox can take the
 * place of its agent: nothing is believed that was not looked at.
 */
const count = z.int().min(0).optional()
const bytes = z.string().optional().describe('base64')

/** One event of a process. */
export const processEventSchema = z.object({
  event: z
    .object({
      /** `offset`: how much of each channel came before. */
      start: z.object({ pid: z.int(), offset: z.object({ stdout: count, stderr: count, pty: count }).optional() }).optional(),
      data: z.object({ stdout: bytes, stderr: bytes, pty: bytes }).optional(),
      end: z
        .object({
          exitCode: z.int().optional(),
          exited: z.boolean().optional(),
          status: z.string().max(1000).optional(),
          error: z.string().optional(),
        })
        .optional(),
    })
    .optional(),
})
export type ProcessEvent = z.output<typeof processEventSchema>

export const processListSchema = z.object({
  processes: z
    .array(
      z.object({
        pid: z.int(),
        config: z.object({ cmd: z.string().default(''), args: z.array(z.string()).default([]) }).prefault({}),
      }),
    )
    .default([]),
})

export const watchMessageSchema = z.object({
  start: z.object({}).optional(),
  filesystem: z.object({ name: z.string().max(8192), type: z.string().max(100) }).optional(),
})

const entrySchema = z.object({
  name: z.string(),
  type: z.string().optional(),
  path: z.string(),
  // 64 bits as text: numbers of JSON cannot hold them.
  size: z.union([z.string().regex(/^\d{1,19}$/), z.int().min(0)]).default(0),
  mode: z.int().min(0).default(0),
  owner: z.string().default(''),
  group: z.string().default(''),
  modifiedTime: z.string().max(64).optional(),
  symlinkTarget: z.string().optional(),
})
export type Entry = z.output<typeof entrySchema>

export const entryAnswerSchema = z.object({ entry: entrySchema })
export const listAnswerSchema = z.object({ entries: z.array(entrySchema).default([]) })

/** Throws `sandbox_unavailable` for what an agent would not say. */
export function understand<Schema extends z.ZodType>(schema: Schema, message: object): z.output<Schema> {
  const parsed = schema.safeParse(message)
  if (!parsed.success) throw new NotUnderstood('The agent of the sandbox said something that is not understood.', parsed.error)
  return parsed.data
}
