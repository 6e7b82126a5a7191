import { defaultTenant, type Role, ThawError } from '@thaw/protocol'

/** On whose behalf something is asked for. Goes as a parameter from the gateway to whatever names something of a tenant. */
export interface Caller {
  readonly tenant: string
  readonly role: Role
  /** null: no key was needed. */
  readonly keyId: string | null
}

/** Whoever calls a server that needs no keys: it listens on loopback only, and trusts everyone on its machine. */
export const localCaller: Caller = Object.freeze({ tenant: defaultTenant, role: 'admin', keyId: null })

/** Throws `forbidden` where a member asks for what concerns the whole platform. */
export function requireAdmin(caller: Caller): void {
  if (caller.role !== 'admin') throw new ThawError('forbidden')
}

/** A name as it is unique on the whole server: names are those of a tenant, and hold no slash. */
export function qualified(tenant: string, name: string): string {
  return `${tenant}/${name}`
}
