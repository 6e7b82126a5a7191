import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Info, ThawError } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import type { Output } from '../output.ts'
import { takesCommandLine } from '../trailing.ts'
import { collect } from './sandbox-input.ts'

type SshAddress = NonNullable<Info['ssh']>

interface Flags {
  identity?: string
  forward?: string[]
  user?: string
}

export function register(program: Command, output: Output): void {
  const ssh = program
    .command('ssh')
    .argument('<sandbox>', 'id or name')
    .argument('[command...]', 'default: a login shell')
    .description("Log in to a sandbox with this machine's ssh. Keys are registered with `thaw ssh-key`.")
    .option('-i, --identity <file>', 'private key; default: those that ssh uses')
    .option('-L, --forward <port:host:port>', 'as of ssh; can be repeated', collect)
    .option('-u, --user <user>', 'default: root of the sandbox')
    .addHelpText('after', '\nExamples:\n  thaw ssh lab\n  thaw ssh lab uname -a\n  thaw ssh lab -L 8080:localhost:8080')
    .action((id: string, line: string[], flags: Flags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const { ssh: address } = await thaw.info({ signal })
        if (address === null) {
          throw new ThawError('invalid_request', `The server at ${thaw.url} does not listen for SSH.`, {
            fix: 'Set ssh.enabled and ssh.port in its configuration, or use `thaw sandbox shell SANDBOX`.',
          })
        }
        const { item } = await thaw.sandboxes.get(id, { signal })
        process.exitCode = await runSsh(item.id, address, new URL(thaw.url).hostname, flags, line)
      }),
    )
  takesCommandLine(ssh, 1)
}

/** Resolves with the exit code of ssh. The key of the server is known from its API, so that nobody is asked about it. */
async function runSsh(
  sandboxId: string,
  { host, port, host_key }: SshAddress,
  serverHost: string,
  flags: Flags,
  line: string[],
): Promise<number> {
  // Where it listens on all addresses, it can be reached where its API is.
  const target = ['0.0.0.0', '::', '', '*'].includes(host) ? serverHost.replace(/^\[|\]$/g, '') : host
  const folder = await mkdtemp(join(tmpdir(), 'thaw-ssh-'))
  // Ctrl-C reaches ssh by itself.
  const ignore = () => undefined
  process.on('SIGINT', ignore)
  try {
    const known = join(folder, 'known_hosts')
    // The usual port is not written with a name.
    const name = port === 22 ? target : `[${target}]:${port}`
    await writeFile(known, `${name} ${host_key}\n`, { mode: 0o600 })
    const options = ['-o', `UserKnownHostsFile=${known}`, '-o', 'StrictHostKeyChecking=yes', '-p', String(port)]
    if (flags.identity !== undefined) options.push('-o', 'IdentitiesOnly=yes', '-i', flags.identity)
    for (const forward of flags.forward ?? []) options.push('-L', forward)
    const user = flags.user === undefined ? sandboxId : `${flags.user}+${sandboxId}`
    const child = spawn('ssh', [...options, `${user}@${target}`, ...line], { stdio: 'inherit' })
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
