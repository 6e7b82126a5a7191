import { type DriverItem, type DriverKind, ThawError } from '@thaw/protocol'
import type { Driver } from '../drivers/driver.ts'

/** The drivers of this server, the strongest first. */
export class Drivers {
  readonly #drivers: readonly Driver[]
  readonly #configured: DriverKind | 'auto'

  constructor(drivers: readonly Driver[], configured: DriverKind | 'auto') {
    const strength = { vm: 0, container: 1, none: 2 }
    this.#drivers = [...drivers].sort((a, b) => strength[a.abilities.isolation] - strength[b.abilities.isolation])
    this.#configured = configured
  }

  all(): readonly Driver[] {
    return this.#drivers
  }

  /** The driver of this kind. Throws `driver_unavailable` with what is missing. */
  async usable(kind: DriverKind): Promise<Driver> {
    const driver = this.#drivers.find((candidate) => candidate.kind === kind)
    if (driver === undefined) throw new ThawError('driver_unavailable', `This server has no driver "${kind}".`)
    const probe = await driver.probe()
    if (!probe.usable) {
      throw new ThawError(
        'driver_unavailable',
        `The driver "${kind}" cannot be used here: ${probe.missing.map((item) => item.what).join(', ')}.`,
        {
          fix: probe.missing.map((item) => item.fix).join(' '),
          details: probe,
        },
      )
    }
    return driver
  }

  /** What functions get that ask for none: as configured, else the strongest that works. */
  async defaultKind(): Promise<DriverKind> {
    if (this.#configured !== 'auto') return (await this.usable(this.#configured)).kind
    for (const driver of this.#drivers) if ((await driver.probe()).usable) return driver.kind
    throw new ThawError('driver_unavailable', 'No driver can be used on this machine.')
  }

  async describe(): Promise<DriverItem[]> {
    const chosen = await this.defaultKind().catch(() => null)
    return Promise.all(
      this.#drivers.map(async (driver) => ({
        kind: driver.kind,
        default: driver.kind === chosen,
        abilities: driver.abilities,
        probe: await driver.probe(),
      })),
    )
  }
}
