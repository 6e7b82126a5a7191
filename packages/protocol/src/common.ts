import { z } from 'zod'

/** Letters, digits, `-` and `_`; at most 63, so that a name fits into a host name and a path. */
export const functionNameSchema = z
  .string()
  .regex(
    /^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$/,
    'use 1 to 63 letters, digits, - and _, starting and ending with a letter or digit',
  )
  .meta({ examples: ['hello'] })

export const driverKinds = ['process', 'oci', 'docker', 'microvm', 'kubernetes'] as const
export const driverKindSchema = z.enum(driverKinds)
export type DriverKind = z.infer<typeof driverKindSchema>

export const bootMethods = ['cold', 'pooled', 'warm', 'reused'] as const
export const bootMethodSchema = z.enum(bootMethods)
export type BootMethod = z.infer<typeof bootMethodSchema>

export const networkModes = ['none', 'egress'] as const
export const networkModeSchema = z.enum(networkModes)
export type NetworkMode = z.infer<typeof networkModeSchema>

export const envSchema = z
  .record(
    z.string().regex(/^[A-Za-z_][A-Za-z0-9_]{0,255}$/, 'use letters, digits and _'),
    // A NUL byte cannot be part of an environment variable.
    z
      .string()
      .max(65_536)
      .regex(/^[^\0]*$/, 'must not hold a NUL byte'),
  )
  .refine((env) => Object.keys(env).length <= 256, 'at most 256 variables')

export const resourcesSchema = z.strictObject({
  memory_mib: z.int().min(16).max(1_048_576).default(128),
  cpus: z.number().min(0.01).max(256).default(1),
  pids: z.int().min(4).max(32_768).default(64),
  tmp_mib: z.int().min(1).max(1_048_576).default(64),
})
export type Resources = z.infer<typeof resourcesSchema>

export const pageQuerySchema = z.strictObject({
  limit: z.coerce.number().int().min(1).max(1000).default(100),
  cursor: z.string().max(512).optional(),
})

export const errorBodySchema = z.object({
  error: z.object({
    code: z.string(),
    message: z.string(),
    fix: z.string(),
    details: z.unknown().optional(),
    request_id: z.string().optional(),
  }),
})

export const itemOf = <Schema extends z.ZodType>(item: Schema) => z.object({ item })
export const listOf = <Schema extends z.ZodType>(item: Schema) => z.object({ items: z.array(item), next: z.string().nullable() })

/** Unix milliseconds as an ISO 8601 string in UTC. */
export const timestampSchema = z.iso.datetime()
