import { z } from 'zod'
import { timestampSchema } from './common.ts'

/** Where everything belongs while there are no keys. */
export const defaultTenant = 'default'

export const tenantSchema = z
  .string()
  .regex(
    /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/,
    'use 1 to 63 lower-case letters, digits and -, starting and ending with a letter or digit',
  )
  .meta({ examples: [defaultTenant] })

/** An admin may do what concerns the whole platform, keys of all tenants included; a member only what concerns its tenant. */
export const roles = ['admin', 'member'] as const
export const roleSchema = z.enum(roles)
export type Role = z.infer<typeof roleSchema>

/** 160 random bits behind the prefix that older clients of E2B insist on. */
export const apiKeyPattern = /^e2b_[0-9a-f]{40}$/

export const keyNameSchema = z
  .string()
  .min(1)
  .max(128)
  .regex(/^[^\p{Cc}]+$/u, 'must not hold control characters')

export const keyCreateSchema = z.strictObject({
  name: keyNameSchema.meta({ description: 'what it is for; for people' }),
  tenant: tenantSchema.optional().describe('default: that of the caller'),
  role: roleSchema.optional().describe('default: admin for the first key of a server, else member'),
  expires_at: timestampSchema.optional().describe('default: never'),
})
export type KeyCreate = z.input<typeof keyCreateSchema>

/** Everything about a key but the key, which is shown once, when it is made. */
export const keyItemSchema = z.object({
  id: z.string(),
  name: z.string(),
  tenant: z.string(),
  role: roleSchema,
  hint: z.string().describe('the last four characters of the key'),
  created_at: timestampSchema,
  expires_at: timestampSchema.nullable(),
})
export type KeyItem = z.infer<typeof keyItemSchema>

export const createdKeyItemSchema = keyItemSchema.extend({ key: z.string().regex(apiKeyPattern) })
export type CreatedKeyItem = z.infer<typeof createdKeyItemSchema>

/** `Idempotency-Key`: what a client names a request by, so that sending it again does nothing twice. */
export const idempotencyKeySchema = z.string().regex(/^[\x21-\x7e]{1,255}$/, 'use 1 to 255 visible ASCII characters')
