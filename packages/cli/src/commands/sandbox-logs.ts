import type { Sandbox } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { Interrupted } from '../errors.ts'
import type { Output } from '../output.ts'

interface Flags {
  follow?: boolean
}

/** Bytes of each stream. */
interface Counts {
  stdout: number
  stderr: number
}

export function registerLogs(sandbox: Command, output: Output): void {
  sandbox
    .command('logs')
    .argument('<sandbox>', 'id or name')
    .description('Print what the service that was started with a sandbox wrote: the last 1 MiB of each stream.')
    .option('-f, --follow', 'go on until Ctrl-C, or until the service ends')
    .addHelpText('after', '\nExamples:\n  thaw sandbox logs web\n  thaw sandbox logs web -f')
    .action((id: string, { follow }: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const found = await output.progress.during(`reading ${id}`, () => context.thaw.sandboxes.get(id, { signal: context.signal }))
        try {
          await print(context, found, follow === true ? null : await writtenBy(found))
        } catch (error) {
          // Ctrl-C is how following ends, so it is no failure.
          if (!(follow === true && error instanceof Interrupted)) throw error
        }
      }),
    )
}

/** What the service has written until now. */
async function writtenBy(sandbox: Sandbox): Promise<Counts> {
  const service = await sandbox.attach('main')
  service.detach()
  return service.offset
}

/** Prints all that is kept, up to `end`; null: on and on. */
async function print({ output, signal }: Context, sandbox: Sandbox, end: Counts | null): Promise<void> {
  const left: Counts = { stdout: 0, stderr: 0 }
  const begun = Promise.withResolvers<void>()
  const over = Promise.withResolvers<void>()
  const check = () => {
    if (end !== null && left.stdout <= 0 && left.stderr <= 0) over.resolve()
  }
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() }
  const hear = (stream: keyof Counts) => async (bytes: Uint8Array) => {
    await begun.promise
    const shown = end === null ? bytes : bytes.subarray(0, Math.max(0, left[stream]))
    left[stream] -= shown.length
    if (output.json) output.line(JSON.stringify({ stream, data: decoders[stream].decode(shown, { stream: true }) }))
    else await (stream === 'stdout' ? output.bytes(shown) : output.errorBytes(shown))
    check()
  }
  const service = await sandbox.attach('main', { offset: { stdout: 0, stderr: 0 }, onStdout: hear('stdout'), onStderr: hear('stderr') })
  const abort = () => over.reject(signal.reason)
  signal.addEventListener('abort', abort, { once: true })
  try {
    // What is no longer kept does not come.
    left.stdout = (end?.stdout ?? 0) - service.offset.stdout
    left.stderr = (end?.stderr ?? 0) - service.offset.stderr
    check()
    begun.resolve()
    await Promise.race([over.promise, service.wait()])
  } finally {
    signal.removeEventListener('abort', abort)
    service.detach()
  }
}
