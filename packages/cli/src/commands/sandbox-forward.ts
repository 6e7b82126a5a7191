import { once } from 'node:events'
import type { PortForward, ThawError } from '@thaw/sdk'
import { type Command, InvalidArgumentError } from 'commander'
import { withServer } from '../context.ts'
import { Interrupted } from '../errors.ts'
import { type Output, table } from '../output.ts'
import { portNumber } from './sandbox-input.ts'

interface Pair {
  local: number
  remote: number
}

export function registerForward(sandbox: Command, output: Output): void {
  sandbox
    .command('forward')
    .argument('<sandbox>', 'id or name')
    .argument('<ports...>', 'PORT, LOCAL:PORT, or 0:PORT for any local port that is free', collectPairs)
    .description('Let ports of this machine lead to those of a sandbox, for clients of any protocol, until Ctrl-C. They must be listed.')
    .option('--host <address>', 'address to listen on', '127.0.0.1')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox forward lab 5432
  thaw sandbox forward lab 15432:5432 6379`,
    )
    .action((id: string, pairs: Pair[], { host }: { host: string }, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const sandbox = await output.progress.during(`reading ${id}`, () => thaw.sandboxes.get(id, { signal }))
        const told = new Set<string>()
        const onError = ({ message }: ThawError) => {
          if (told.has(message)) return
          told.add(message)
          output.note(message)
        }
        const open: { local: string; port: number; forward: PortForward }[] = []
        try {
          for (const { local, remote } of pairs) {
            const forward = await sandbox.forward(remote, { localPort: local, host, onError })
            open.push({ local: `${forward.host}:${forward.port}`, port: remote, forward })
          }
          const forwards = open.map(({ local, port }) => ({ local, port }))
          output.result({ forwards }, () =>
            table(
              ['HERE', 'PORT'],
              forwards.map(({ local, port }) => [local, String(port)]),
            ),
          )
          if (!signal.aborted) await once(signal, 'abort')
          // Ctrl-C is how it is meant to end.
          if (!(signal.reason instanceof Interrupted)) signal.throwIfAborted()
        } finally {
          await Promise.all(open.map(({ forward }) => forward.close()))
        }
      }),
    )
}

function collectPairs(text: string, before: Pair[] | undefined): Pair[] {
  const [first = '', second] = text.split(':')
  if (text.split(':').length > 2) throw new InvalidArgumentError('Write PORT or LOCAL:PORT.')
  const remote = portNumber(second ?? first)
  return [...(before ?? []), { local: second !== undefined && first === '0' ? 0 : portNumber(first), remote }]
}
