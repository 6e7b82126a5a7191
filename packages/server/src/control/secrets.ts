import { join } from 'node:path'
import {
  defaultTenant,
  encodeJsonFrame,
  type FunctionConfig,
  frameTypes,
  type LoadMessage,
  maxFramePayloadBytes,
  type SecretRef,
  secretFileName,
  ThawError,
} from '@thaw/protocol'
import type { SecretStore } from '../store/store.ts'
import { qualified } from './caller.ts'
import { openSecretKey, type SecretKey } from './secret-key.ts'

/** The secrets of this server, and how functions get them. Values are opened when an instance is loaded, and not kept. */
export class Secrets {
  readonly #store: SecretStore
  readonly #key: SecretKey

  private constructor(store: SecretStore, key: SecretKey) {
    this.#store = store
    this.#key = key
  }

  /** Throws `secret_unreadable` when the key of `dataDir` is not the one that the secrets were written with. */
  static async open(store: SecretStore, dataDir: string): Promise<Secrets> {
    const keyIds = await store.keyIds()
    const path = join(dataDir, 'secrets.key')
    const key = openSecretKey(path, keyIds.length === 0)
    const count = (rows: typeof keyIds) => rows.reduce((sum, row) => sum + row.count, 0)
    const foreign = count(keyIds.filter((row) => row.key_id !== key.id))
    if (foreign > 0) {
      throw new ThawError('secret_unreadable', `${path} is not the key that ${foreign} of ${count(keyIds)} secrets were written with.`, {
        fix: 'Put the secrets.key that belongs to this database back into the data directory.',
      })
    }
    return new Secrets(store, key)
  }

  async create(tenant: string, name: string, value: string): Promise<void> {
    const now = Date.now()
    await this.#store.create({
      tenant,
      name,
      sealed: this.#key.seal(boundName(tenant, name), value),
      key_id: this.#key.id,
      created_at: now,
      updated_at: now,
    })
  }

  async set(tenant: string, name: string, value: string): Promise<void> {
    const change = { sealed: this.#key.seal(boundName(tenant, name), value), key_id: this.#key.id, updated_at: Date.now() }
    if (!(await this.#store.update(tenant, name, change))) throw notFound(name)
  }

  /** Throws `secret_not_found` for a reference to a secret that does not exist, and refuses a variable that has a value already. */
  async check(tenant: string, config: Pick<FunctionConfig, 'secrets' | 'env'>): Promise<void> {
    const twice = config.secrets.find((ref) => ref.env !== undefined && Object.hasOwn(config.env, ref.env))
    if (twice !== undefined) {
      throw new ThawError('invalid_request', `The variable ${twice.env} is set by env and by secrets.`, {
        fix: 'Leave it out of one of them.',
      })
    }
    if (config.secrets.length === 0) return
    const known = new Set((await this.#store.list(tenant)).map((row) => row.name))
    const missing = config.secrets.find((ref) => !known.has(ref.name))
    if (missing !== undefined) throw notFound(missing.name)
  }

  /** Variables and files with their values. The only place where these leave the store. */
  async valuesOf(tenant: string, refs: readonly SecretRef[]): Promise<{ env: Record<string, string>; files: Record<string, string> }> {
    const env: Record<string, string> = {}
    const files: Record<string, string> = {}
    for (const ref of refs) {
      const value = await this.#value(tenant, ref.name)
      const file = secretFileName(ref)
      if (file !== undefined) files[file] = value
      else if (ref.env !== undefined) env[ref.env] = value
    }
    return { env, files }
  }

  /** The message with the secrets in its environment and as files. */
  async addTo(message: LoadMessage, tenant: string, refs: readonly SecretRef[]): Promise<LoadMessage> {
    if (refs.length === 0) return message
    const { env, files } = await this.valuesOf(tenant, refs)
    const complete: LoadMessage = { ...message, env: { ...env, ...message.env } }
    if (Object.keys(files).length > 0) complete.secret_files = files
    if (encodeJsonFrame(frameTypes.load, 0, complete).length > maxFramePayloadBytes) {
      throw new ThawError('start_failed', 'The variables and the secrets of the function are together larger than 1 MiB.', {
        fix: 'Give the function fewer of them.',
      })
    }
    return complete
  }

  async #value(tenant: string, name: string): Promise<string> {
    const row = await this.#store.get(tenant, name)
    if (row === null) throw notFound(name)
    return this.#key.open(boundName(tenant, name), row.sealed)
  }
}

/** What a sealed value is bound to. Those of the first tenant were sealed when there was no other. */
function boundName(tenant: string, name: string): string {
  return tenant === defaultTenant ? name : qualified(tenant, name)
}

export function notFound(name: string): ThawError {
  return new ThawError('secret_not_found', `There is no secret named ${name}.`)
}
