import { ThawError } from '@thaw/protocol'
import type { SshHostKey } from '../../control/ssh-host-key.ts'
import type { ConnectionParts } from './connection.ts'
import { SshServer } from './server.ts'

export interface SshSettings {
  host: string
  port: number
  /** The one that nobody chose. */
  defaultPort: number
  idle_ms: number
  hostKey: SshHostKey
}

/**
 * Starts to listen for SSH. Null where the default port is taken, by another server of this machine mostly: the rest works
 * without. Throws `config_invalid` where an address that somebody chose cannot be used.
 */
export async function startSsh(settings: SshSettings, parts: Omit<ConnectionParts, 'onLogin'>): Promise<SshServer | null> {
  const { host, port, defaultPort, idle_ms, hostKey } = settings
  try {
    return await SshServer.start({ host, port, idleMs: idle_ms, hostKey }, parts)
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException
    const isTaken = code === 'EADDRINUSE'
    if (isTaken && port === defaultPort) {
      parts.log.warn({ host, port }, 'the port for SSH is taken: going on without SSH; choose another one with ssh.port')
      return null
    }
    throw new ThawError('config_invalid', isTaken ? `Port ${port} on ${host} is taken.` : `Cannot listen on ${host}:${port}: ${message}`, {
      fix: 'Choose another ssh.host or ssh.port (0: any), or set ssh.enabled to false.',
      cause,
    })
  }
}
