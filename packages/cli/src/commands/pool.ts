import { driverKinds, networkModes, type PoolItem, poolRuntimes } from '@thaw/sdk'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { wholeNumber, withServer } from '../context.ts'
import { type Output, table } from '../output.ts'
import { memoryMib } from '../units.ts'

/** Which pool of an image is meant, as the flags say it. */
interface KindFlags {
  runtime?: (typeof poolRuntimes)[number]
  driver?: (typeof driverKinds)[number]
  network?: (typeof networkModes)[number]
  tmpMib?: number
}

export function register(program: Command, output: Output): void {
  const pool = program.command('pool').description('List and size pools of sandboxes that are started ahead of need.')

  pool
    .command('ls')
    .description('List pools.')
    .addHelpText('after', '\nExamples:\n  thaw pool ls\n  thaw pool ls --json | jq -r ".[].ready"')
    .action((_options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing pools', () => thaw.pools.list({ signal }).all())
        output.result(items, () => (items.length === 0 ? '' : poolTable(items)))
        if (items.length === 0) output.note('no pools yet; a function that is deployed makes one, as does `thaw pool prewarm IMAGE`')
      }),
    )

  withKind(
    pool
      .command('set')
      .argument('<image>', 'python, node, host, or an OCI reference')
      .argument('<size>', 'how many are kept ready; auto: as demand says', poolSize)
      .description('Fix the size of a pool, or let it follow demand.')
      .addHelpText('after', '\nExamples:\n  thaw pool set python 5\n  thaw pool set node 2 --network none\n  thaw pool set python auto'),
  ).action((image: string, size: number | null, flags: KindFlags, command: Command) =>
    withServer(command, output, async ({ thaw, signal }) => {
      const update = { size, ...kindOf(flags) }
      const item = await output.progress.during(`setting the pool of ${image}`, () => thaw.pools.set(image, update, { signal }))
      output.result(item, () => `the pool of ${nameOf(item)} ${sizeText(item)}`)
    }),
  )

  withKind(
    pool
      .command('prewarm')
      .argument('<image>', 'python, node, host, or an OCI reference')
      .argument('[count]', 'how many are to wait', wholeNumber(1, 1000), 1)
      .description('Start sandboxes ahead of a burst, and wait until they are ready.')
      .addHelpText('after', '\nExamples:\n  thaw pool prewarm python 10'),
  ).action((image: string, count: number, flags: KindFlags, command: Command) =>
    withServer(command, output, async ({ thaw, signal }) => {
      const request = { image, count, ...kindOf(flags) }
      const item = await output.progress.during(`starting ${count} of ${image}`, () => thaw.pools.prewarm(request, { signal }))
      output.result(item, () => `the pool of ${nameOf(item)} has ${item.ready} ready`)
    }),
  )
}

function withKind(command: Command): Command {
  return command
    .addOption(new Option('--runtime <runtime>', 'default: that of the image, custom for host and OCI images').choices(poolRuntimes))
    .addOption(new Option('--driver <kind>', 'default: the strongest that the server can use').choices(driverKinds))
    .addOption(new Option('--network <mode>', 'what the functions can reach').choices(networkModes))
    .option('--tmp-mib <amount>', 'size of /tmp: 64, 64MiB, 1GiB', memoryMib)
}

function kindOf({ runtime, driver, network, tmpMib }: KindFlags) {
  return {
    ...(runtime === undefined ? {} : { runtime }),
    ...(driver === undefined ? {} : { driver }),
    ...(network === undefined ? {} : { network }),
    ...(tmpMib === undefined ? {} : { tmp_mib: tmpMib }),
  }
}

/** A number, or null for `auto`. */
function poolSize(text: string): number | null {
  if (text === 'auto') return null
  const size = /^\d{1,4}$/.test(text) ? Number(text) : Number.NaN
  if (!(size <= 1000)) throw new InvalidArgumentError('Give a whole number from 0 to 1000, or auto.')
  return size
}

function nameOf({ image, runtime, driver }: PoolItem): string {
  return `${image} (${runtime}, ${driver})`
}

function sizeText({ configured }: PoolItem): string {
  return configured === null ? 'follows demand' : `is kept at ${configured}`
}

function poolTable(items: PoolItem[]): string {
  return table(
    ['IMAGE', 'RUNTIME', 'DRIVER', 'NETWORK', '/TMP', 'READY', 'STARTING', 'TARGET', 'SIZE', 'TAKEN'],
    items.map((item) => [
      item.image,
      item.runtime,
      item.driver,
      item.network,
      `${item.tmp_mib} MiB`,
      String(item.ready),
      String(item.starting),
      String(item.target),
      item.configured === null ? 'auto' : String(item.configured),
      String(item.taken_recently),
    ]),
  )
}
