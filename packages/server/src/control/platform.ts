import type { Info } from '@thaw/protocol'
import type { Drivers } from './drivers.ts'

/** What the server says about itself. */
export class Platform {
  readonly #drivers: Drivers
  readonly #facts: Pick<Info, 'version' | 'data_dir' | 'limits'>
  readonly #startedAt = new Date().toISOString()
  /** False until everything is up, and again while the server stops. */
  ready = false

  constructor(drivers: Drivers, facts: Pick<Info, 'version' | 'data_dir' | 'limits'>) {
    this.#drivers = drivers
    this.#facts = facts
  }

  async info(): Promise<Info> {
    return {
      name: 'thaw',
      ...this.#facts,
      node_version: process.version,
      started_at: this.#startedAt,
      drivers: await this.#drivers.describe(),
    }
  }
}
