import { z } from 'zod'
import { timestampSchema } from './common.ts'

export const maxSecretBytes = 65_536

export const secretNameSchema = z
  .string()
  .regex(
    /^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?$/,
    'use 1 to 63 letters, digits, - and _, starting and ending with a letter or digit',
  )
  .meta({ examples: ['DATABASE_URL'] })

/** Text that an environment variable can hold. What is wrong with it is said without showing it. */
export const secretValueSchema = z
  .string()
  .refine((value) => new TextEncoder().encode(value).length <= maxSecretBytes, 'must be at most 64 KiB in UTF-8')
  .refine((value) => !value.includes('\0'), 'must not hold a NUL byte')
  .refine((value) => value.isWellFormed(), 'must be whole Unicode text')

/** Variables that the platform reads too: what it finds there may come up in its messages. */
const reservedVariable = /^(?:THAW_.*|PATH|PORT)$/

/** Where containers have their secrets as files; THAW_SECRETS_DIR names it everywhere. */
export const secretsDir = '/run/secrets'

/** A secret that a function is given, and the variable or the file that it is given in. */
export const secretRefSchema = z
  .strictObject({
    name: secretNameSchema,
    env: z
      .string()
      .regex(/^[A-Za-z_][A-Za-z0-9_]{0,255}$/, 'use letters, digits and _')
      .refine((name) => !reservedVariable.test(name), 'PATH, PORT and names that begin with THAW_ belong to the platform')
      .optional()
      .describe('variable that holds it'),
    file: z
      .string()
      .regex(
        /^(?:\/run\/secrets\/)?[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/,
        `use the name of a file, without a folder or below ${secretsDir}: letters, digits, ., - and _, not beginning with . or -`,
      )
      .optional()
      .describe(`file that holds it, below ${secretsDir}`),
  })
  .refine(({ env, file }) => (env === undefined) !== (file === undefined), 'say either env or file')

/** The name of a secret's file in the folder of all. */
export function secretFileName({ file }: { file?: string | undefined }): string | undefined {
  return file?.slice(file.lastIndexOf('/') + 1)
}

function areDistinct(names: readonly (string | undefined)[]): boolean {
  const given = names.filter((name) => name !== undefined)
  return new Set(given).size === given.length
}

export const secretRefsSchema = z
  .array(secretRefSchema)
  .max(64)
  .refine((refs) => areDistinct(refs.map((ref) => ref.env)), 'each variable may be named once')
  .refine((refs) => areDistinct(refs.map(secretFileName)), 'each file may be named once')
export type SecretRef = z.infer<typeof secretRefSchema>

export const secretCreateSchema = z.strictObject({ name: secretNameSchema, value: secretValueSchema })

export const secretUpdateSchema = z.strictObject({ value: secretValueSchema })

/** Everything about a secret but its value, which is never given back. */
export const secretItemSchema = z.object({
  name: z.string(),
  created_at: timestampSchema,
  updated_at: timestampSchema,
  used_by: z.array(z.string()).describe('functions whose active version is given it'),
})
export type SecretItem = z.infer<typeof secretItemSchema>
