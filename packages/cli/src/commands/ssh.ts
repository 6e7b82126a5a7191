import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { ThawError } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import type { Output } from '../output.ts'
import { takesCommandLine } from '../trailing.ts'

/** Where `/v1/info` says that the server listens for SSH. */
interface SshAddress {
  host: string
  port: number
  /** `ssh-ed25519 AAAA…` */
  host_key: string
}

export function register(program: Command, output: Output): void {
  const ssh = program
    .command('ssh')
    .argument('<sandbox>', 'id or name')
    .argument('[arguments...]', 'for ssh: a command, or its options')
    .description("Log in to a sandbox with this machine's ssh.")
    .addHelpText('after', '\nExamples:\n  thaw ssh lab\n  thaw ssh lab uname -a\n  thaw ssh lab -- -L 8080:localhost:8080')
    .action((id: string, args: string[], _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const info = (await thaw.info({ signal })) as { ssh?: SshAddress | null }
        if (info.ssh === undefined || info.ssh === null) {
          throw new ThawError('invalid_request', `The server at ${thaw.url} does not listen for SSH.`, {
            fix: 'Switch its SSH on in the configuration, or use `thaw sandbox shell SANDBOX`.',
          })
        }
        const { item } = await thaw.sandboxes.get(id, { signal })
        process.exitCode = await runSsh(item.id, info.ssh, new URL(thaw.url).hostname, args)
      }),
    )
  takesCommandLine(ssh, 1)
}

/** Resolves with the exit code of ssh. The key of the server is known from its API, so that nobody is asked about it. */
async function runSsh(sandboxId: string, { host, port, host_key }: SshAddress, serverHost: string, args: string[]): Promise<number> {
  // Where it listens on all addresses, it can be reached where its API is.
  const target = ['0.0.0.0', '::', '', '*'].includes(host) ? serverHost.replace(/^\[|\]$/g, '') : host
  const folder = await mkdtemp(join(tmpdir(), 'thaw-ssh-'))
  // Ctrl-C reaches ssh by itself.
  const ignore = () => undefined
  process.on('SIGINT', ignore)
  try {
    const known = join(folder, 'known_hosts')
    await writeFile(known, `[${target}]:${port} ${host_key}\n`, { mode: 0o600 })
    const options = ['-o', `UserKnownHostsFile=${known}`, '-o', 'StrictHostKeyChecking=yes', '-p', String(port)]
    const [first] = args
    // Options of ssh come before the host, a command behind it.
    const line = first?.startsWith('-') === true ? [...args, `${sandboxId}@${target}`] : [`${sandboxId}@${target}`, ...args]
    const child = spawn('ssh', [...options, ...line], { stdio: 'inherit' })
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    return code ?? 128 + constants.signals[signal ?? 'SIGKILL']
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause
    throw new ThawError('invalid_request', 'There is no ssh on this machine.', { fix: 'Install it (Debian: openssh-client).', cause })
  } finally {
    process.off('SIGINT', ignore)
    await rm(folder, { recursive: true, force: true })
  }
}
