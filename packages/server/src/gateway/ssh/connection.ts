import type { Socket } from 'node:net'
import { ThawError, toThawError } from '@thaw/protocol'
import type { AuthContext, Connection, PublicKeyAuthContext } from 'ssh2'
import type { Lease } from '../../control/sandboxes/live-sandbox.ts'
import type { Sandboxes } from '../../control/sandboxes/sandboxes.ts'
import type { SshKey, SshKeys } from '../../control/ssh-keys.ts'
import { fingerprintOf } from '../../control/ssh-public-key.ts'
import type { Logger } from '../../telemetry/log.ts'
import { join, leadsInside, openPort } from './forward.ts'
import { type SessionHost, SshSession } from './session.ts'

export interface ConnectionParts {
  keys: SshKeys
  sandboxes: Sandboxes
  log: Logger
  /** Somebody has logged in. */
  onLogin: () => void
}

/** Keys that a client may try: whoever has more of them names one (ssh -i). */
const mostAttempts = 6
/** Sessions and forwarded connections at a time. */
const mostChannels = 256
/** How long the last words may take. A key that was revoked is to be of no use within a second. */
const farewellMs = 500

/** One client, from its handshake to its end. */
export class SshConnection implements SessionHost {
  readonly env: Record<string, string>
  readonly lease: Promise<Lease>
  user: string | undefined
  /** Monotonic milliseconds of the last byte that it carried. */
  usedAt = performance.now()
  readonly #client: Connection
  readonly #socket: Socket
  readonly #parts: ConnectionParts
  readonly #lease = Promise.withResolvers<Lease>()
  readonly #sessions = new Set<SshSession>()
  #held: Lease | null = null
  #login: { key: SshKey; sandboxId: string } | null = null
  #unwatch: (() => void) | null = null
  #attempts = 0
  #channels = 0
  #isOver = false

  constructor(client: Connection, socket: Socket, parts: ConnectionParts) {
    this.#client = client
    this.#socket = socket
    this.#parts = parts
    this.lease = this.#lease.promise
    this.lease.catch(() => undefined)
    const { remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 } = socket
    this.env = {
      SSH_CLIENT: `${remoteAddress} ${remotePort} ${localPort}`,
      SSH_CONNECTION: `${remoteAddress} ${remotePort} ${localAddress} ${localPort}`,
    }
    client.on('error', (error) => parts.log.debug({ err: error, client: remoteAddress }, 'SSH connection failed'))
    client.on('authentication', (context) => void this.#authenticate(context))
    client.on('ready', () => void this.#ready())
    client.on('session', (accept, reject) => {
      if (!this.#takeChannel()) return reject()
      const session = accept()
      const mine = new SshSession(session, this)
      this.#sessions.add(mine)
      session.once('close', () => this.#channels--)
      void mine.done.then(() => this.#sessions.delete(mine))
    })
    client.on('tcpip', (accept, reject, info) => {
      if (!leadsInside(info)) {
        parts.log.info({ host: info.destIP, port: info.destPort }, 'SSH forwarding to elsewhere than the sandbox refused')
        return reject()
      }
      if (!this.#takeChannel()) return reject()
      openPort(this, info.destPort).then(
        (inner) => {
          const channel = accept()
          channel.once('close', () => this.#channels--)
          join(channel, inner, () => this.touch())
        },
        () => {
          this.#channels--
          reject()
        },
      )
    })
    // Nobody outside is led into a sandbox by a forwarding (ssh -R): its ports are reached through the gateway.
    client.on('request', (_accept, reject) => reject?.())
    socket.once('close', () => this.#closed())
  }

  get isOver(): boolean {
    return this.#isOver
  }

  get hasLoggedIn(): boolean {
    return this.#held !== null || this.#unwatch !== null
  }

  /** The sandbox has ended; false also before it is known which one it is. */
  get hasLostSandbox(): boolean {
    return this.#held !== null && this.#held.sandbox.row.ended_at !== null
  }

  touch(): void {
    this.usedAt = performance.now()
  }

  wake = async (): Promise<Lease['agent']> => {
    const lease = await this.lease
    const { row, running } = lease.sandbox
    if (row.state === 'running' && running !== null) return lease.agent
    if (this.#login === null) throw new ThawError('internal')
    using woken = await this.#parts.sandboxes.use(this.#login.key.caller, row.id)
    return woken.agent
  }

  explain(error: unknown): ThawError {
    const row = this.#held?.sandbox.row
    if (row === undefined || row.ended_at === null) return toThawError(error)
    return this.lostError()
  }

  lostError(): ThawError {
    const row = this.#held?.sandbox.row
    const why = row?.error ? `: ${row.error.message}` : '.'
    return new ThawError('sandbox_not_running', `The sandbox ${row?.id} is ${row?.state}${why}`)
  }

  /** Ends all sessions with a message, then the connection. */
  end(reason: ThawError): void {
    if (this.#isOver) return
    this.#isOver = true
    const sessions = [...this.#sessions]
    for (const session of sessions) session.end(reason)
    const farewell = setTimeout(() => this.#socket.destroy(), farewellMs)
    this.#socket.once('close', () => clearTimeout(farewell))
    void Promise.all(sessions.map((session) => session.done)).then(() => this.#client.end())
  }

  /** For whoever ends what a key has open. */
  destroy(): void {
    this.end(new ThawError('unauthorized', 'The SSH key is not valid any more.'))
  }

  async #authenticate(context: AuthContext): Promise<void> {
    try {
      if (context.method === 'publickey' && (await this.#mayEnter(context))) return context.accept()
    } catch (error) {
      this.#parts.log.warn({ err: error }, 'an SSH key could not be checked')
    }
    if (context.method !== 'none' && ++this.#attempts >= mostAttempts) {
      this.#client.end()
      return
    }
    // Which of key and sandbox was wrong is not told.
    context.reject(['publickey'])
  }

  async #mayEnter({ key: { algo, data }, username, signature, blob, hashAlgo }: PublicKeyAuthContext): Promise<boolean> {
    const [, user, name = ''] = /^(?:([^+]{1,64})\+)?(.{1,64})$/.exec(username) ?? []
    for (const key of this.#parts.keys.find(fingerprintOf(data))) {
      if (key.key.type !== algo) continue
      // RSA with SHA-1 comes without the name of a hash.
      if (algo === 'ssh-rsa' && hashAlgo === undefined) continue
      if (signature !== undefined && (blob === undefined || !key.key.verify(blob, signature, hashAlgo))) continue
      const sandboxId = await this.#sandboxOf(key, name)
      if (sandboxId === null) continue
      if (signature !== undefined) {
        this.user = user
        this.#login = { key, sandboxId }
      }
      return true
    }
    return false
  }

  async #sandboxOf({ caller, sandboxId }: SshKey, name: string): Promise<string | null> {
    try {
      const { id } = await this.#parts.sandboxes.get(caller, name)
      return sandboxId === null || sandboxId === id ? id : null
    } catch (error) {
      if (error instanceof ThawError && error.code === 'sandbox_not_found') return null
      throw error
    }
  }

  async #ready(): Promise<void> {
    const { keys, sandboxes, log } = this.#parts
    if (this.#login === null) return this.#client.end() as never
    const { key, sandboxId } = this.#login
    this.#unwatch = keys.watch(key, this)
    if (this.#unwatch === null) {
      // Its sessions are refused with the reason; there may be none yet.
      const error = new ThawError('too_many_requests', 'The SSH key has too many connections, or is not valid any more.')
      this.#lease.reject(error)
      return
    }
    this.#parts.onLogin()
    log.info({ sandbox: sandboxId, ssh_key: key.id, client: this.#socket.remoteAddress }, 'SSH login')
    try {
      const lease = await sandboxes.use(key.caller, sandboxId)
      if (this.#socket.destroyed) return lease.release()
      this.#held = lease
      this.#lease.resolve(lease)
    } catch (error) {
      this.#lease.reject(error)
    }
  }

  #takeChannel(): boolean {
    if (this.#isOver || this.#channels >= mostChannels) return false
    this.#channels++
    return true
  }

  #closed(): void {
    this.#isOver = true
    this.#unwatch?.()
    this.#unwatch = null
    this.#held?.release()
    this.#lease.reject(new ThawError('cancelled'))
  }
}
