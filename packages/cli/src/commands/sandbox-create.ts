import type { Sandbox, SandboxCreate } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, urlFlag, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { milliseconds, type Output } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { takesCommandLine } from '../trailing.ts'
import { ownOf, type SandboxFlags, sandboxCreate, withSandboxFlags } from './sandbox-input.ts'
import { snapshotId } from './snapshot-named.ts'

interface Flags extends SandboxFlags {
  image?: string
  from?: string
  quiet?: boolean
}

export function registerCreate(sandbox: Command, output: Output): void {
  const create = sandbox
    .command('create')
    .argument('[command...]', 'a service that is started with it')
    .description('Make a sandbox.')
    .option('--image <image>', 'host, python, node, go, or an OCI reference (default: python; host with the driver process)')
    .option('--from <snapshot>', 'go on from this snapshot, an id or a name: its image, limits and network')
    .option('-q, --quiet', 'print the id only')
  withSandboxFlags(create)
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox create
  thaw sandbox create --image node --name web --port 8080 --memory 1GiB --idle 10m
  thaw sandbox create --image python -p 8000 -- python3 -m http.server 8000
  thaw sandbox create --from before-upgrade --name again
  ID=$(thaw sandbox create -q --timeout 1h)`,
    )
    .action((line: string[], flags: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const startedMs = performance.now()
        const input =
          flags.from === undefined ? sandboxCreate(flags.image, flags, line) : await fromSnapshot(context, flags.from, flags, line)
        const made = await createSandbox(context, input)
        printMade(output, made, { command, quiet: flags.quiet, tookMs: performance.now() - startedMs })
      }),
    )
  takesCommandLine(create, 0)
}

/** What a sandbox takes over from its snapshot, and what is therefore not to be said. */
const fixedBySnapshot = ['image', 'driver', 'memory', 'cpus', 'pids', 'disk', 'gpus', 'network', 'hibernate'] as const

async function fromSnapshot(context: Context, snapshot: string, flags: Flags, line: string[]): Promise<SandboxCreate> {
  const fixed = fixedBySnapshot.filter((name) => flags[name] !== undefined).map((name) => `--${name}`)
  if (line.length > 0) fixed.push(`the command ${line[0]}`)
  if (fixed.length > 0)
    throw new UsageError(`What is in a snapshot stays as it is: ${fixed.join(', ')} cannot be given with --from.`, 'Leave them out.')
  return { ...ownOf(flags), snapshot_id: await snapshotId(context, snapshot) }
}

/** What is said of a sandbox that was made, and how it is used. */
export function printMade(
  output: Output,
  { item }: Sandbox,
  { command, quiet, tookMs }: { command: Command; quiet: boolean | undefined; tookMs: number },
): void {
  output.result(item, () => {
    if (quiet === true) return item.id
    const how = [item.image, item.driver, item.boot_method, milliseconds(tookMs)]
    const next = asTyped(`(thaw sandbox shell ${item.name ?? item.id}${urlFlag(command)})`).slice(1, -1)
    return `${item.id} is ${item.state} (${how.join(', ')})\nuse it: ${next}`
  })
}

/** When nothing came of it so far, an image is probably being made. */
const quietMs = 1000

/** Makes a sandbox. Where its image has to be built or pulled first, what that reports is shown. */
export async function createSandbox(context: Context, input: SandboxCreate): Promise<Sandbox> {
  const { output, thaw, signal } = context
  const source = input.snapshot_id ?? input.image
  const over = new AbortController()
  // The image of a snapshot is there, or no sandbox comes of it.
  const timer = setTimeout(() => input.snapshot_id === undefined && void showImage(context, input, over.signal), quietMs)
  try {
    return await output.progress.during(`making a sandbox${source === undefined ? '' : ` from ${source}`}`, () =>
      thaw.sandboxes.create(input, { signal }),
    )
  } finally {
    clearTimeout(timer)
    over.abort()
  }
}

/** The making of an image that the server is at anyway is joined for what it reports. */
async function showImage({ output, thaw, signal }: Context, { image, driver }: SandboxCreate, over: AbortSignal): Promise<void> {
  const ref = image ?? (driver === 'process' ? 'host' : 'python')
  const both = AbortSignal.any([signal, over])
  try {
    const known = await thaw.images.list({ signal: both }).all()
    if (known.some((item) => item.ref === ref && item.state === 'ready')) return
    await thaw.images.create(ref, { signal: both, onProgress: (line) => output.note(`  ${line}`) })
  } catch {
    // What goes wrong with the image is told by the call that needs it.
  }
}
