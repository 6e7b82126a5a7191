import { type DriverItem, Thaw } from '@thaw/sdk'
import type { Command } from 'commander'
import type { GlobalOptions } from '../context.ts'
import { exitCodes } from '../errors.ts'
import { type Output, table } from '../output.ts'
import { asTyped } from '../own-name.ts'

export function register(program: Command, output: Output): void {
  program
    .command('doctor')
    .description('Say which drivers work on this machine, what the others miss, and how to get it.')
    .addHelpText(
      'after',
      `
Examples:
  thaw doctor
  thaw doctor --url http://10.0.0.2:8080    # ask a server about its machine instead

The exit code is 1 when no driver is usable.`,
    )
    .action(async (_options: object, command: Command) => {
      const { url } = command.optsWithGlobals<GlobalOptions>()
      const drivers = await output.progress.during('trying the drivers', () => (url === undefined ? probeHere() : probeThere(url)))
      output.result(drivers, () => report(drivers))
      if (!drivers.some((driver) => driver.probe.usable)) process.exitCode = exitCodes.failed
    })
}

async function probeHere(): Promise<DriverItem[]> {
  const { probeDrivers } = await import('@thaw/server')
  return probeDrivers()
}

async function probeThere(url: string): Promise<DriverItem[]> {
  return (await new Thaw({ url }).info()).drivers
}

function report(drivers: DriverItem[]): string {
  const overview = table(
    ['DRIVER', 'USABLE', 'DEFAULT', 'ISOLATION', 'PAUSE', 'SNAPSHOT', 'VERSIONS'],
    drivers.map(({ kind, default: isDefault, abilities, probe }) => [
      kind,
      probe.usable ? 'yes' : 'no',
      isDefault ? 'yes' : '',
      abilities.isolation,
      abilities.pause ? 'yes' : 'no',
      abilities.snapshot,
      Object.entries(probe.versions)
        .map(([name, version]) => `${name} ${version}`)
        .join(', '),
    ]),
  )
  return [overview, ...drivers.map(remarks).filter((text) => text !== '')].join('\n\n')
}

function remarks({ kind, probe }: DriverItem): string {
  return [
    ...probe.missing.map(({ what, fix }) => `${kind}: missing: ${what}\n  fix: ${asTyped(fix)}`),
    ...probe.warnings.map((warning) => `${kind}: warning: ${warning}`),
  ].join('\n')
}
