import { type CreatedSshKeyItem, newId, type SshKeyItem, ThawError } from '@thaw/protocol'
import type { ParsedKey } from 'ssh2'
import type { SshKeyRow, SshKeyStore } from '../store/store.ts'
import type { Caller } from './caller.ts'
import type { Open } from './keys.ts'
import { makeKeyPair } from './ssh-key-pair.ts'
import { readPublicKey, type SshPublicKey } from './ssh-public-key.ts'

/** What a key lets its holder do, and how to check that it is its holder. */
export interface SshKey {
  readonly id: string
  readonly caller: Caller
  /** null: all sandboxes of the tenant. */
  readonly sandboxId: string | null
  readonly key: ParsedKey
}

interface LiveKey extends SshKey {
  row: SshKeyRow
  open: Set<Open>
}

export interface SshKeysParts {
  store: SshKeyStore
  /** Id of a sandbox that the caller names by id or name. Throws `sandbox_not_found`. */
  sandboxId: (caller: Caller, idOrName: string) => Promise<string>
  connectionsPerKey: number
}

type Source = { public_key?: string | undefined; generate?: true | undefined }

const sweepMs = 500
const mostPerTenant = 1000

/** The SSH keys of all tenants, in memory: whoever only tries keys costs no database. */
export class SshKeys {
  readonly #parts: SshKeysParts
  readonly #byId = new Map<string, LiveKey>()
  readonly #sweeper: NodeJS.Timeout

  private constructor(parts: SshKeysParts) {
    this.#parts = parts
    this.#sweeper = setInterval(() => this.#endExpired(), sweepMs)
    this.#sweeper.unref()
  }

  static async open(parts: SshKeysParts): Promise<SshKeys> {
    const keys = new SshKeys(parts)
    try {
      for (const row of await parts.store.list()) keys.#add(row, readPublicKey(row.public_key).key)
    } catch (error) {
      keys.close()
      throw error
    }
    return keys
  }

  list(caller: Caller): SshKeyItem[] {
    return [...this.#byId.values()]
      .filter(({ row }) => row.tenant === caller.tenant)
      .map(({ row }) => item(row))
      .sort((a, b) => (a.id < b.id ? -1 : 1))
  }

  get(caller: Caller, id: string): SshKeyItem {
    return item(this.#find(caller, id).row)
  }

  /** Throws `ssh_key_invalid`, `ssh_key_exists`, `sandbox_not_found`. */
  async create(
    caller: Caller,
    input: Source & { name: string; sandbox_id?: string | undefined; expires_at?: string | undefined },
  ): Promise<CreatedSshKeyItem> {
    const expiresAt = input.expires_at === undefined ? null : Date.parse(input.expires_at)
    if (expiresAt !== null && expiresAt <= Date.now()) throw new ThawError('invalid_request', 'expires_at has passed already.')
    if (this.list(caller).length >= mostPerTenant) {
      throw new ThawError('invalid_request', `There are ${mostPerTenant} SSH keys already, which is the most.`, {
        fix: 'Remove those that are not needed: `thaw ssh-key rm ID`.',
      })
    }
    const { key, private_key } = keyOf(input, input.name)
    const row: SshKeyRow = {
      id: newId('sshk'),
      tenant: caller.tenant,
      name: input.name,
      type: key.type,
      fingerprint: key.fingerprint,
      public_key: key.line,
      sandbox_id: input.sandbox_id === undefined ? null : await this.#parts.sandboxId(caller, input.sandbox_id),
      created_at: Date.now(),
      rotated_at: null,
      expires_at: expiresAt,
    }
    if (!(await this.#parts.store.create(row))) throw exists(key)
    this.#add(row, key.key)
    return { ...item(row), private_key }
  }

  /** Another key in the place of the old one, which stops at once: what is open with it is closed. */
  async rotate(caller: Caller, id: string, input: Source): Promise<CreatedSshKeyItem> {
    const old = this.#find(caller, id)
    const { key, private_key } = keyOf(input, old.row.name)
    const isTaken = (other: LiveKey) =>
      other.row.tenant === old.row.tenant && other.row.fingerprint === key.fingerprint && other.row.sandbox_id === old.row.sandbox_id
    if ([...this.#byId.values()].some(isTaken)) throw exists(key)
    const change = { type: key.type, fingerprint: key.fingerprint, public_key: key.line, rotated_at: Date.now() }
    if (!(await this.#parts.store.replace(id, change))) throw notFound(id)
    const row = { ...old.row, ...change }
    // The one of that moment: two that rotate at once come one after the other.
    const replaced = this.#byId.get(id) ?? old
    this.#add(row, key.key)
    endAll(replaced)
    return { ...item(row), private_key }
  }

  /** The key opens nothing from here on, and what is open with it is closed. */
  async revoke(caller: Caller, id: string): Promise<void> {
    const key = this.#find(caller, id)
    if (!(await this.#parts.store.delete(id))) throw notFound(id)
    const current = this.#byId.get(id) ?? key
    this.#byId.delete(id)
    endAll(current)
  }

  /** All keys of this fingerprint that are valid now: several tenants may have the same. */
  find(fingerprint: string): SshKey[] {
    return [...this.#byId.values()].filter(({ row }) => row.fingerprint === fingerprint && !isExpired(row))
  }

  /**
   * To be ended with the key. Returns how to take it back; null where the key is gone meanwhile, or has as many connections
   * as it may have.
   */
  watch(key: SshKey, open: Open): (() => void) | null {
    const live = this.#byId.get(key.id)
    // A rotated key has its id still, and is another one.
    if (live !== key || isExpired(live.row) || live.open.size >= this.#parts.connectionsPerKey) return null
    live.open.add(open)
    return () => live.open.delete(open)
  }

  close(): void {
    clearInterval(this.#sweeper)
  }

  #find(caller: Caller, id: string): LiveKey {
    const key = this.#byId.get(id)
    if (key === undefined || key.row.tenant !== caller.tenant) throw notFound(id)
    return key
  }

  #add(row: SshKeyRow, key: ParsedKey): void {
    // Whoever logs in works within the tenant, as its members do.
    const caller: Caller = Object.freeze({ tenant: row.tenant, role: 'member', keyId: null })
    this.#byId.set(row.id, { id: row.id, caller, sandboxId: row.sandbox_id, key, row, open: new Set() })
  }

  #endExpired(): void {
    for (const key of this.#byId.values()) if (key.open.size > 0 && isExpired(key.row)) endAll(key)
  }
}

function keyOf({ public_key }: Source, name: string): { key: SshPublicKey; private_key: string | null } {
  if (public_key !== undefined) return { key: readPublicKey(public_key), private_key: null }
  const made = makeKeyPair(name.replaceAll(/[^\x20-\x7e]/g, '?'))
  return { key: readPublicKey(made.public), private_key: made.private.endsWith('\n') ? made.private : `${made.private}\n` }
}

function isExpired(row: SshKeyRow): boolean {
  return row.expires_at !== null && row.expires_at <= Date.now()
}

function endAll(key: LiveKey): void {
  for (const open of [...key.open]) open.destroy()
  key.open.clear()
}

function notFound(id: string): ThawError {
  return new ThawError('ssh_key_not_found', `There is no SSH key ${JSON.stringify(id.slice(0, 100))}.`)
}

function exists({ fingerprint }: SshPublicKey): ThawError {
  return new ThawError('ssh_key_exists', `The SSH key ${fingerprint} is there already.`)
}

function item(row: SshKeyRow): SshKeyItem {
  return {
    id: row.id,
    name: row.name,
    type: row.type,
    fingerprint: row.fingerprint,
    public_key: row.public_key,
    sandbox_id: row.sandbox_id,
    created_at: new Date(row.created_at).toISOString(),
    rotated_at: row.rotated_at === null ? null : new Date(row.rotated_at).toISOString(),
    expires_at: row.expires_at === null ? null : new Date(row.expires_at).toISOString(),
  }
}
