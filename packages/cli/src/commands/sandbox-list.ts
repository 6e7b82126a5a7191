import { type Sandbox, type SandboxItem, type SandboxState, type SandboxStats, sandboxStates } from '@thaw/sdk'
import { type Command, InvalidArgumentError } from 'commander'
import { type Context, withServer } from '../context.ts'
import { fields, type Output, size, table } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { collect, pairs } from './sandbox-input.ts'

interface ListFlags {
  state?: SandboxState[]
  metadata?: string[]
  all?: boolean
  quiet?: boolean
}

/** States in which something of a sandbox is left but its record. */
export const liveStates: SandboxState[] = ['creating', 'running', 'paused', 'hibernated']

export function registerList(sandbox: Command, output: Output): void {
  sandbox
    .command('ls')
    .description('List sandboxes that have not ended.')
    .option('-a, --all', 'also those that have ended')
    .option('--state <states>', `one or several, with commas: ${sandboxStates.join(', ')}`, states)
    .option('--metadata <key=value>', 'those that have it; can be repeated', collect)
    .option('-q, --quiet', 'ids only')
    .addHelpText(
      'after',
      '\nExamples:\n  thaw sandbox ls\n  thaw sandbox ls --state paused,hibernated\n  thaw sandbox ls --metadata team=data --json | jq -r ".[].id"',
    )
    .action((flags: ListFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const state = flags.state ?? (flags.all === true ? undefined : liveStates)
        const metadata = flags.metadata === undefined ? undefined : pairs(flags.metadata, '--metadata')
        const list = await output.progress.during('listing sandboxes', () => thaw.sandboxes.list({ state, metadata, signal }).all())
        output.result(list, () => (flags.quiet === true ? list.map(({ id }) => id).join('\n') : sandboxTable(list)))
        if (list.length === 0 && flags.quiet !== true) output.note(asTyped('no sandboxes; make one with `thaw sandbox create`'))
      }),
    )

  sandbox
    .command('inspect')
    .argument('<sandbox>', 'id or name')
    .description('Show everything about a sandbox.')
    .addHelpText('after', '\nExamples:\n  thaw sandbox inspect lab\n  thaw sandbox inspect lab --json | jq .resources')
    .action((id: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const { item } = await output.progress.during(`reading ${id}`, () => thaw.sandboxes.get(id, { signal }))
        output.result(item, () => describe(item))
      }),
    )

  sandbox
    .command('stats')
    .argument('[sandboxes...]', 'ids or names; default: all that run or are paused')
    .description('Show what sandboxes use.')
    .addHelpText('after', '\nExamples:\n  thaw sandbox stats\n  thaw sandbox stats lab --json | jq .[0].memory_bytes')
    .action((ids: string[], _options: object, command: Command) =>
      withServer(command, output, async (context) => {
        const rows = await output.progress.during('asking', () => statsOf(context, ids))
        output.result(
          rows.map(({ sandbox: { id }, stats }) => ({ id, ...stats })),
          () => (rows.length === 0 ? '' : statsTable(rows)),
        )
      }),
    )
}

function states(text: string): SandboxState[] {
  return text.split(',').map((word) => {
    const state = sandboxStates.find((known) => known === word)
    if (state === undefined) throw new InvalidArgumentError(`Choose from ${sandboxStates.join(', ')}.`)
    return state
  })
}

function sandboxTable(list: Sandbox[]): string {
  if (list.length === 0) return ''
  return table(
    ['ID', 'NAME', 'STATE', 'IMAGE', 'DRIVER', 'MEMORY', 'PORTS', 'CREATED', 'ENDS'],
    list.map(({ item }) => [
      item.id,
      item.name ?? '-',
      item.state,
      item.image,
      item.driver,
      `${item.resources.memory_mib} MiB`,
      portsText(item.ports),
      seconds(item.created_at),
      item.ended_at === null && item.ends_at !== null ? seconds(item.ends_at) : '-',
    ]),
  )
}

export function portsText(ports: SandboxItem['ports']): string {
  return ports === 'all' ? 'all' : ports.join(' ') || '-'
}

function seconds(time: string): string {
  return time.slice(0, 19).replace('T', ' ')
}

function describe(item: SandboxItem): string {
  const { resources, error } = item
  const disk = resources.disk_mib === undefined ? '' : `, ${resources.disk_mib} MiB disk`
  const gpus = resources.gpus === undefined ? '' : `, GPUs: ${resources.gpus}`
  return fields([
    ['id', item.id],
    ['name', item.name],
    ['state', item.state],
    ['error', error === null ? null : `${error.code}: ${error.message}`],
    ['image', item.image_digest === null ? item.image : `${item.image} (${item.image_digest})`],
    ['driver', item.driver],
    ['boot method', item.boot_method],
    ['resources', `${resources.memory_mib} MiB memory, ${resources.cpus} CPU, ${resources.pids} processes${disk}${gpus}`],
    ['network', item.network],
    ['ports', portsText(item.ports)],
    ['timeout', item.timeout_ms === null ? null : `${item.timeout_ms} ms, then ${item.on_timeout}`],
    ['idle', item.idle_ms === null ? null : `paused after ${item.idle_ms} ms without a call`],
    ['hibernate', item.hibernate_ms === null ? null : `hibernated after ${item.hibernate_ms} ms of pause`],
    [
      'metadata',
      Object.entries(item.metadata)
        .map(([key, value]) => `${key}=${value}`)
        .join(' '),
    ],
    ['parent', item.parent_id],
    ['snapshot', item.snapshot_id],
    ['created', item.created_at],
    ['started', item.started_at],
    ['ends', item.ends_at],
    ['ended', item.ended_at],
  ])
}

interface Row {
  sandbox: Sandbox
  stats: SandboxStats
}

async function statsOf({ thaw, signal }: Context, ids: string[]): Promise<Row[]> {
  const found =
    ids.length > 0
      ? await Promise.all(ids.map((id) => thaw.sandboxes.get(id, { signal })))
      : await thaw.sandboxes.list({ state: ['running', 'paused'], signal }).all()
  return Promise.all(found.map(async (sandbox) => ({ sandbox, stats: await sandbox.stats({ signal }) })))
}

function statsTable(rows: Row[]): string {
  return table(
    ['ID', 'NAME', 'STATE', 'MEMORY', 'LIMIT', 'CPU TIME', 'PROCESSES', 'UPTIME'],
    rows.map(({ sandbox, stats }) => [
      sandbox.id,
      sandbox.item.name ?? '-',
      stats.state,
      size(stats.memory_bytes),
      size(stats.memory_limit_bytes),
      stats.cpu_ms === null ? '-' : `${(stats.cpu_ms / 1000).toFixed(1)} s`,
      String(stats.processes ?? '-'),
      stats.uptime_ms === null ? '-' : uptime(stats.uptime_ms),
    ]),
  )
}

function uptime(ms: number): string {
  const units: [number, string][] = [
    [86_400_000, 'd'],
    [3_600_000, 'h'],
    [60_000, 'm'],
  ]
  const [unit, name] = units.find(([length]) => ms >= length) ?? [1000, 's']
  return `${Math.floor(ms / unit)} ${name}`
}
