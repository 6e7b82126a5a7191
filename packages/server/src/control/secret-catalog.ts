import { type SecretItem, ThawError } from '@thaw/protocol'
import type { SecretRow, SecretStore } from '../store/store.ts'
import type { Functions } from './functions.ts'
import { notFound, type Secrets } from './secrets.ts'

/** Secrets as the API shows them: without their values, with the functions that are given them. */
export class SecretCatalog {
  readonly #secrets: Secrets
  readonly #store: SecretStore
  readonly #functions: Functions

  constructor(secrets: Secrets, store: SecretStore, functions: Functions) {
    this.#secrets = secrets
    this.#store = store
    this.#functions = functions
  }

  async list(): Promise<SecretItem[]> {
    return (await this.#store.list()).map((row) => this.#item(row))
  }

  async get(name: string): Promise<SecretItem> {
    const row = await this.#store.get(name)
    if (row === null) throw notFound(name)
    return this.#item(row)
  }

  async create(name: string, value: string): Promise<SecretItem> {
    await this.#secrets.create(name, value)
    return this.get(name)
  }

  /** Gives it another value, which instances that start from then on get. */
  async set(name: string, value: string): Promise<SecretItem> {
    await this.#secrets.set(name, value)
    return this.get(name)
  }

  /** Throws `secret_in_use` while the active version of a function refers to it. */
  async delete(name: string): Promise<void> {
    const usedBy = this.#functions.usersOfSecret(name)
    if (usedBy.length > 0) {
      throw new ThawError('secret_in_use', `The secret ${name} is used by ${usedBy.join(', ')}.`, { details: { used_by: usedBy } })
    }
    if (!(await this.#store.delete(name))) throw notFound(name)
  }

  #item({ name, created_at, updated_at }: Omit<SecretRow, 'sealed'>): SecretItem {
    return {
      name,
      created_at: new Date(created_at).toISOString(),
      updated_at: new Date(updated_at).toISOString(),
      used_by: this.#functions.usersOfSecret(name),
    }
  }
}
