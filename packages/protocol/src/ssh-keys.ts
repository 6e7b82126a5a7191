import { z } from 'zod'
import { timestampSchema } from './common.ts'
import { keyNameSchema } from './keys.ts'

/** Types of public keys that may log in. Security keys (`sk-…`), DSA and certificates are not among them. */
export const sshKeyTypes = ['ssh-ed25519', 'ecdsa-sha2-nistp256', 'ecdsa-sha2-nistp384', 'ecdsa-sha2-nistp521', 'ssh-rsa'] as const
export const sshKeyTypeSchema = z.enum(sshKeyTypes)
export type SshKeyType = z.infer<typeof sshKeyTypeSchema>

/** Either an uploaded key or one that is made here. */
const sourceFields = {
  public_key: z.string().min(1).max(16_384).optional().describe('a line as in ~/.ssh/id_ed25519.pub'),
  generate: z.literal(true).optional().describe('make a key pair instead; the private key is in the answer, this once'),
}
const hasOneSource = ({ public_key, generate }: { public_key?: string | undefined; generate?: true | undefined }) =>
  (public_key === undefined) !== (generate === undefined)
const oneSource = 'give either public_key or generate: true'

export const sshKeyCreateSchema = z
  .strictObject({
    name: keyNameSchema.meta({ description: 'what it is for; for people' }),
    ...sourceFields,
    sandbox_id: z.string().min(1).max(64).optional().describe('id or name of the only sandbox that it opens; default: all of the tenant'),
    expires_at: timestampSchema.optional().describe('default: never'),
  })
  .refine(hasOneSource, oneSource)
export type SshKeyCreate = z.input<typeof sshKeyCreateSchema>

export const sshKeyRotateSchema = z.strictObject(sourceFields).refine(hasOneSource, oneSource)
export type SshKeyRotate = z.input<typeof sshKeyRotateSchema>

export const sshKeyItemSchema = z.object({
  id: z.string(),
  name: z.string(),
  type: sshKeyTypeSchema,
  fingerprint: z.string().describe('SHA256:…, as ssh-keygen -l prints it'),
  public_key: z.string().describe('without its comment'),
  sandbox_id: z.string().nullable().describe('null: it opens all sandboxes of the tenant'),
  created_at: timestampSchema,
  rotated_at: timestampSchema.nullable(),
  expires_at: timestampSchema.nullable(),
})
export type SshKeyItem = z.infer<typeof sshKeyItemSchema>

export const createdSshKeyItemSchema = sshKeyItemSchema.extend({
  private_key: z.string().nullable().describe('in the format of OpenSSH, for a key that was made here; else null'),
})
export type CreatedSshKeyItem = z.infer<typeof createdSshKeyItemSchema>

/** Where the server listens for SSH. */
export const sshInfoSchema = z.object({
  host: z.string(),
  port: z.int(),
  host_key: z.string().describe('a line for known_hosts, without the name of the host'),
  fingerprint: z.string(),
})
export type SshInfo = z.infer<typeof sshInfoSchema>
