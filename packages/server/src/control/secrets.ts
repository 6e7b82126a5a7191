import { join } from 'node:path'
import {
  encodeJsonFrame,
  type FunctionConfig,
  frameTypes,
  type LoadMessage,
  maxFramePayloadBytes,
  type SecretRef,
  ThawError,
} from '@thaw/protocol'
import type { SecretStore } from '../store/store.ts'
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
    const rows = await store.list()
    const path = join(dataDir, 'secrets.key')
    const key = openSecretKey(path, rows.length === 0)
    const foreign = rows.filter((row) => row.key_id !== key.id)
    if (foreign.length > 0) {
      throw new ThawError(
        'secret_unreadable',
        `${path} is not the key that ${foreign.length} of ${rows.length} secrets were written with.`,
        {
          fix: 'Put the secrets.key that belongs to this database back into the data directory.',
        },
      )
    }
    return new Secrets(store, key)
  }

  async create(name: string, value: string): Promise<void> {
    const now = Date.now()
    await this.#store.create({ name, sealed: this.#key.seal(name, value), key_id: this.#key.id, created_at: now, updated_at: now })
  }

  async set(name: string, value: string): Promise<void> {
    const change = { sealed: this.#key.seal(name, value), key_id: this.#key.id, updated_at: Date.now() }
    if (!(await this.#store.update(name, change))) throw notFound(name)
  }

  /** Throws `secret_not_found` for a reference to a secret that does not exist, and refuses a variable that has a value already. */
  async check(config: Pick<FunctionConfig, 'secrets' | 'env'>): Promise<void> {
    const twice = config.secrets.find((ref) => Object.hasOwn(config.env, ref.env))
    if (twice !== undefined) {
      throw new ThawError('invalid_request', `The variable ${twice.env} is set by env and by secrets.`, {
        fix: 'Leave it out of one of them.',
      })
    }
    if (config.secrets.length === 0) return
    const known = new Set((await this.#store.list()).map((row) => row.name))
    const missing = config.secrets.find((ref) => !known.has(ref.name))
    if (missing !== undefined) throw notFound(missing.name)
  }

  /** The message with the secrets in its environment. The only place where their values leave the store. */
  async addTo(message: LoadMessage, refs: readonly SecretRef[]): Promise<LoadMessage> {
    if (refs.length === 0) return message
    const env: Record<string, string> = {}
    for (const ref of refs) env[ref.env] = await this.#value(ref.name)
    const complete = { ...message, env: { ...env, ...message.env } }
    if (encodeJsonFrame(frameTypes.load, 0, complete).length > maxFramePayloadBytes) {
      throw new ThawError('start_failed', 'The variables and the secrets of the function are together larger than 1 MiB.', {
        fix: 'Give the function fewer of them.',
      })
    }
    return complete
  }

  async #value(name: string): Promise<string> {
    const row = await this.#store.get(name)
    if (row === null) throw notFound(name)
    return this.#key.open(name, row.sealed)
  }
}

export function notFound(name: string): ThawError {
  return new ThawError('secret_not_found', `There is no secret named ${name}.`)
}
