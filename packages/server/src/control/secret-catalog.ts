import { type SecretItem, ThawError } from '@thaw/protocol'
import type { SecretRow, SecretStore } from '../store/store.ts'
import type { Caller } from './caller.ts'
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

  async list({ tenant }: Caller): Promise<SecretItem[]> {
    return (await this.#store.list(tenant)).map((row) => this.#item(row))
  }

  async get({ tenant }: Caller, name: string): Promise<SecretItem> {
    const row = await this.#store.get(tenant, name)
    if (row === null) throw notFound(name)
    return this.#item(row)
  }

  async create(caller: Caller, name: string, value: string): Promise<SecretItem> {
    await this.#secrets.create(caller.tenant, name, value)
    return this.get(caller, name)
  }

  /** Gives it another value, which instances that start from then on get. */
  async set(caller: Caller, name: string, value: string): Promise<SecretItem> {
    await this.#secrets.set(caller.tenant, name, value)
    return this.get(caller, name)
  }

  /** Throws `secret_in_use` while the active version of a function refers to it. */
  async delete(caller: Caller, name: string): Promise<void> {
    const usedBy = this.#functions.usersOfSecret(caller.tenant, name)
    if (usedBy.length > 0) {
      throw new ThawError('secret_in_use', `The secret ${name} is used by ${usedBy.join(', ')}.`, { details: { used_by: usedBy } })
    }
    if (!(await this.#store.delete(caller.tenant, name))) throw notFound(name)
  }

  #item({ tenant, name, created_at, updated_at }: Omit<SecretRow, 'sealed'>): SecretItem {
    return {
      name,
      created_at: new Date(created_at).toISOString(),
      updated_at: new Date(updated_at).toISOString(),
      used_by: this.#functions.usersOfSecret(tenant, name),
    }
  }
}
