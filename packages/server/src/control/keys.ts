import { hash, randomBytes } from 'node:crypto'
import { apiKeyPattern, type CreatedKeyItem, type KeyItem, newId, type Role, ThawError } from '@thaw/protocol'
import type { KeyRow, KeyStore } from '../store/store.ts'
import { type Caller, requireAdmin } from './caller.ts'

export type AuthMode = 'auto' | 'on' | 'off'

export interface KeyOptions {
  auth: AuthMode
  /** The server can only be reached from its own machine. */
  loopback: boolean
  /** For people who are told to make a key there. */
  dataDir: string
}

/** What ends when a key does: an answer that is being written, a connection that left HTTP. */
export interface Open {
  destroy(): void
}

/** A key in memory. Its caller is made once, so that a request costs none. */
interface LiveKey {
  row: KeyRow
  caller: Caller
  open: Set<Open>
}

const sweepMs = 500

/**
 * The API keys of this server, all of them in memory: to check one costs a hash and a look-up by it. Comparing hashes of
 * 160 random bits tells an attacker nothing by how long it takes.
 */
export class Keys {
  readonly #store: KeyStore
  readonly #options: KeyOptions
  readonly #byHash = new Map<string, LiveKey>()
  readonly #byId = new Map<string, LiveKey>()
  readonly #sweeper: NodeJS.Timeout
  /** There are keys, or were: whoever revokes the last one does not want to let everyone in. */
  #everMade = false

  private constructor(store: KeyStore, options: KeyOptions) {
    this.#store = store
    this.#options = options
    this.#sweeper = setInterval(() => this.#endExpired(), sweepMs)
    this.#sweeper.unref()
  }

  /** Throws `config_invalid` where a server would let everyone in that can reach it over a network. */
  static async open(store: KeyStore, options: KeyOptions): Promise<Keys> {
    const keys = new Keys(store, options)
    try {
      for (const row of await store.list()) keys.#add(row)
      keys.#checkExposure()
    } catch (error) {
      keys.close()
      throw error
    }
    return keys
  }

  /** Whether a request needs a key. */
  get required(): boolean {
    const { auth, loopback } = this.#options
    return !loopback || auth === 'on' || (auth === 'auto' && this.#everMade)
  }

  /** Keys are needed and there is none, so that nobody can make one either. */
  get lockedOut(): boolean {
    return this.required && this.#byId.size === 0
  }

  /** Who presents this key; null for a key that is unknown, revoked or expired. */
  find(key: string): Caller | null {
    if (!apiKeyPattern.test(key)) return null
    const found = this.#byHash.get(digest(key))
    return found === undefined || isExpired(found.row) ? null : found.caller
  }

  /** To be ended when the key of the caller is revoked or expires. Returns how to take it back. */
  watch(caller: Caller, open: Open): () => void {
    const key = caller.keyId === null ? undefined : this.#byId.get(caller.keyId)
    if (key === undefined) return () => {}
    key.open.add(open)
    return () => key.open.delete(open)
  }

  list(caller: Caller): KeyItem[] {
    requireAdmin(caller)
    return [...this.#byId.values()].map(({ row }) => item(row)).sort((a, b) => (a.id < b.id ? -1 : 1))
  }

  /** Makes a key. The first one of a server must be that of an admin, or nobody could make more. */
  async create(
    caller: Caller,
    input: { name: string; tenant?: string | undefined; role?: Role | undefined; expires_at?: string | undefined },
  ): Promise<CreatedKeyItem> {
    requireAdmin(caller)
    const hasAdmin = [...this.#byId.values()].some(({ row }) => row.role === 'admin' && !isExpired(row))
    const role = input.role ?? (hasAdmin ? 'member' : 'admin')
    if (role !== 'admin' && !hasAdmin) {
      throw new ThawError('invalid_request', 'There is no admin key yet, and from the first key on every call needs one.', {
        fix: 'Make an admin key first: `thaw key create NAME --role admin`.',
      })
    }
    const expiresAt = input.expires_at === undefined ? null : Date.parse(input.expires_at)
    if (expiresAt !== null && expiresAt <= Date.now()) throw new ThawError('invalid_request', 'expires_at has passed already.')
    const key = `e2b_${randomBytes(20).toString('hex')}`
    const row: KeyRow = {
      id: newId('key'),
      hash: digest(key),
      name: input.name,
      tenant: input.tenant ?? caller.tenant,
      role,
      hint: key.slice(-4),
      created_at: Date.now(),
      expires_at: expiresAt,
      revoked_at: null,
    }
    await this.#store.create(row)
    this.#add(row)
    return { ...item(row), key }
  }

  /** From here on the key is refused, and what is open with it is closed. */
  async revoke(caller: Caller, id: string): Promise<void> {
    requireAdmin(caller)
    if (!(await this.#store.revoke(id, Date.now()))) throw new ThawError('key_not_found', `There is no API key ${id}.`)
    const key = this.#byId.get(id)
    if (key === undefined) return
    this.#byId.delete(id)
    this.#byHash.delete(key.row.hash)
    // The answer to whoever revokes the own key is to get out first.
    setImmediate(() => endAll(key))
  }

  close(): void {
    clearInterval(this.#sweeper)
  }

  #add(row: KeyRow): void {
    this.#everMade = true
    if (row.revoked_at !== null) return
    const key = { row, caller: Object.freeze({ tenant: row.tenant, role: row.role, keyId: row.id }), open: new Set<Open>() }
    this.#byId.set(row.id, key)
    this.#byHash.set(row.hash, key)
  }

  #endExpired(): void {
    for (const key of this.#byId.values()) if (key.open.size > 0 && isExpired(key.row)) endAll(key)
  }

  #checkExposure(): void {
    const { auth, loopback, dataDir } = this.#options
    if (loopback) return
    if (auth === 'off') {
      throw new ThawError(
        'config_invalid',
        'auth is off, so the server may only listen on a loopback address: who reaches it can run code.',
        {
          fix: 'Set auth to auto, or host to 127.0.0.1.',
        },
      )
    }
    if (this.#byId.size > 0) return
    throw new ThawError('config_invalid', 'There is no API key, so the server may only listen on a loopback address.', {
      fix: `Make a key first: \`thaw key create admin --data-dir ${dataDir}\`; or set host to 127.0.0.1.`,
    })
  }
}

function digest(key: string): string {
  return hash('sha256', key, 'hex')
}

function isExpired(row: KeyRow): boolean {
  return row.expires_at !== null && row.expires_at <= Date.now()
}

function endAll(key: LiveKey): void {
  for (const open of [...key.open]) open.destroy()
  key.open.clear()
}

function item(row: KeyRow): KeyItem {
  return {
    id: row.id,
    name: row.name,
    tenant: row.tenant,
    role: row.role,
    hint: row.hint,
    created_at: new Date(row.created_at).toISOString(),
    expires_at: row.expires_at === null ? null : new Date(row.expires_at).toISOString(),
  }
}
