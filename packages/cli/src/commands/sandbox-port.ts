import type { Sandbox, SandboxItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { type Output, table } from '../output.ts'
import { collectPorts, portsOf } from './sandbox-input.ts'

interface Flags {
  rm?: boolean
}

export function registerPort(sandbox: Command, output: Output): void {
  sandbox
    .command('port')
    .argument('<sandbox>', 'id or name')
    .argument('[ports...]', 'ports to list, or all', collectPorts)
    .description('List ports of a sandbox, so that URLs lead to them; or show those that are listed.')
    .option('--rm', 'take the ports off the list')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox port lab
  thaw sandbox port lab 8000 9000
  thaw sandbox port lab 9000 --rm

Web applications are best reached by the host name: under the path they cannot use absolute links or cookies of their own.`,
    )
    .action((id: string, ports: (number | 'all')[], { rm }: Flags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        if (rm === true && ports.length === 0) throw new UsageError('Say which ports are to be taken off the list.')
        const sandbox = await output.progress.during(`reading ${id}`, () => thaw.sandboxes.get(id, { signal }))
        if (ports.length > 0) {
          const listed = rm === true ? without(sandbox.item.ports, ports) : together(sandbox.item.ports, ports)
          await output.progress.during(`changing the ports of ${id}`, () => sandbox.update({ ports: listed }, { signal }))
        }
        const { item } = sandbox
        const rows = item.ports === 'all' ? [] : item.ports.map((port) => portUrls(sandbox, port, thaw.url))
        output.result({ ports: item.ports, urls: rows }, () => {
          if (item.ports === 'all') return `all ports: ${thaw.url}/v1/sandboxes/${item.id}/ports/PORT/`
          if (rows.length === 0) return ''
          return table(
            ['PORT', 'URL', 'BY HOST NAME'],
            rows.map(({ port, url, host_url }) => [String(port), url, host_url ?? '-']),
          )
        })
        if (rows.length === 0 && item.ports !== 'all') output.note('no ports are listed')
      }),
    )
}

/** Names below localhost lead to this machine; which domain leads to the server from elsewhere, only its owner knows. */
export function portUrls(sandbox: Sandbox, port: number, serverUrl: string): { port: number; url: string; host_url: string | null } {
  const local = /^(?:localhost|127\..*|\[::1\])$/.test(new URL(serverUrl).hostname)
  return { port, url: sandbox.url(port), host_url: local ? sandbox.url(port, { domain: 'localhost' }) : null }
}

function together(listed: SandboxItem['ports'], ports: (number | 'all')[]): SandboxItem['ports'] {
  return listed === 'all' ? 'all' : portsOf([...listed, ...ports])
}

function without(listed: SandboxItem['ports'], ports: (number | 'all')[]): SandboxItem['ports'] {
  if (ports.includes('all')) return []
  if (listed === 'all')
    throw new UsageError(
      'All ports are listed; single ones cannot be taken off.',
      'Take all off with `all --rm`, then list those that are to stay.',
    )
  return listed.filter((port) => !ports.includes(port))
}
