import type { Info, SshInfo } from '@thaw/protocol'
import type { Caller } from './caller.ts'
import type { Drivers } from './drivers.ts'

/** What the server says about itself. */
export class Platform {
  readonly #drivers: Drivers
  readonly #facts: Pick<Info, 'version' | 'data_dir' | 'limits'>
  readonly #startedAt = new Date().toISOString()
  /** False until everything is up, and again while the server stops. */
  ready = false
  /** Where the server listens for SSH. */
  ssh: SshInfo | null = null

  constructor(drivers: Drivers, facts: Pick<Info, 'version' | 'data_dir' | 'limits'>) {
    this.#drivers = drivers
    this.#facts = facts
  }

  /** A member hears what it can use, and nothing of how the machine is set up. */
  async info(caller: Caller): Promise<Info> {
    const drivers = await this.#drivers.describe()
    const info: Info = {
      name: 'thaw',
      ...this.#facts,
      node_version: process.version,
      started_at: this.#startedAt,
      drivers,
      ssh: this.ssh,
    }
    if (caller.role === 'admin') return info
    const hidden = { versions: {}, missing: [], warnings: [] }
    return { ...info, data_dir: null, drivers: drivers.map((driver) => ({ ...driver, probe: { ...driver.probe, ...hidden } })) }
  }
}
