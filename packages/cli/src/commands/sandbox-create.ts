import type { Sandbox, SandboxCreate } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, urlFlag, withServer } from '../context.ts'
import { milliseconds, type Output } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { takesCommandLine } from '../trailing.ts'
import { type SandboxFlags, sandboxCreate, withSandboxFlags } from './sandbox-input.ts'

interface Flags extends SandboxFlags {
  image?: string
  quiet?: boolean
}

export function registerCreate(sandbox: Command, output: Output): void {
  const create = sandbox
    .command('create')
    .argument('[command...]', 'a service that is started with it')
    .description('Make a sandbox.')
    .option('--image <image>', 'host, python, node, go, or an OCI reference (default: python; host with the driver process)')
    .option('-q, --quiet', 'print the id only')
  withSandboxFlags(create)
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox create
  thaw sandbox create --image node --name web --port 8080 --memory 1GiB --idle 10m
  thaw sandbox create --image python -p 8000 -- python3 -m http.server 8000
  ID=$(thaw sandbox create -q --timeout 1h)`,
    )
    .action((line: string[], flags: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const startedMs = performance.now()
        const made = await createSandbox(context, sandboxCreate(flags.image, flags, line))
        const { item } = made
        output.result(item, () => {
          if (flags.quiet === true) return item.id
          const how = [item.image, item.driver, item.boot_method, milliseconds(performance.now() - startedMs)]
          const next = asTyped(`(thaw sandbox shell ${item.name ?? item.id}${urlFlag(command)})`).slice(1, -1)
          return `${item.id} is ${item.state} (${how.join(', ')})\nuse it: ${next}`
        })
      }),
    )
  takesCommandLine(create, 0)
}

/** When nothing came of it so far, an image is probably being made. */
const quietMs = 1000

/** Makes a sandbox. Where its image has to be built or pulled first, what that reports is shown. */
export async function createSandbox(context: Context, input: SandboxCreate): Promise<Sandbox> {
  const { output, thaw, signal } = context
  const over = new AbortController()
  const timer = setTimeout(() => void showImage(context, input, over.signal), quietMs)
  try {
    return await output.progress.during(`making a sandbox${input.image === undefined ? '' : ` from ${input.image}`}`, () =>
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
