import { type AddressInfo, createServer, type Server as NetServer, type Socket } from 'node:net'
import { type SshInfo, ThawError } from '@thaw/protocol'
import ssh2 from 'ssh2'
import type { SshHostKey } from '../../control/ssh-host-key.ts'
import { type ConnectionParts, SshConnection } from './connection.ts'

export interface SshOptions {
  host: string
  port: number
  idleMs: number
  hostKey: SshHostKey
}

/** From the connection to the login. */
const loginMs = 30_000
/** Connections that have not logged in yet; more are closed at once. */
const mostStrangers = 100
const keepAliveMs = 30_000
const sweepMs = 250
/** Only what is not known to be weak. AES alone, which every machine and every client has, and Node.js does fast. */
const algorithms: ssh2.Algorithms = {
  kex: ['curve25519-sha256', 'curve25519-sha256@libssh.org', 'ecdh-sha2-nistp256', 'ecdh-sha2-nistp384', 'ecdh-sha2-nistp521'],
  cipher: ['aes128-gcm@openssh.com', 'aes256-gcm@openssh.com', 'aes128-ctr', 'aes256-ctr'],
  hmac: ['hmac-sha2-256-etm@openssh.com', 'hmac-sha2-512-etm@openssh.com'],
  compress: ['none'],
}

/** The SSH server: every login leads into one sandbox, which the user name names. */
export class SshServer {
  readonly info: SshInfo
  readonly #options: SshOptions
  readonly #net: NetServer
  readonly #sockets = new Map<Socket, SshConnection | null>()
  readonly #sweeper: NodeJS.Timeout

  private constructor(net: NetServer, options: SshOptions, parts: Omit<ConnectionParts, 'onLogin'>) {
    this.#net = net
    this.#options = options
    const { port } = net.address() as AddressInfo
    const { host, hostKey } = options
    this.info = { host, port, host_key: hostKey.publicLine, fingerprint: hostKey.fingerprint }
    const ssh = new ssh2.Server({ hostKeys: [hostKey.privateKey], ident: 'thaw', algorithms, keepaliveInterval: keepAliveMs })
    const timers = new Map<Socket, NodeJS.Timeout>()
    ssh.on('connection', (client, { ip, port: remotePort }) => {
      const socket = [...this.#sockets.keys()].find((candidate) => candidate.remotePort === remotePort && candidate.remoteAddress === ip)
      if (socket === undefined) return void client.end()
      const connection = new SshConnection(client, socket, { ...parts, onLogin: () => clearTimeout(timers.get(socket)) })
      this.#sockets.set(socket, connection)
    })
    net.on('connection', (socket) => {
      socket.on('error', () => undefined)
      const strangers = [...this.#sockets.values()].filter((connection) => connection?.hasLoggedIn !== true).length
      if (strangers >= mostStrangers) return socket.destroy()
      this.#sockets.set(socket, null)
      timers.set(socket, setTimeout(() => socket.destroy(), loginMs).unref())
      socket.once('close', () => {
        clearTimeout(timers.get(socket))
        timers.delete(socket)
        this.#sockets.delete(socket)
      })
      socket.setNoDelay(true)
      ssh.injectSocket(socket)
    })
    this.#sweeper = setInterval(() => this.#sweep(), sweepMs)
    this.#sweeper.unref()
  }

  /** Starts listening. Rejects with the error of the operating system where the address is taken. */
  static start(options: SshOptions, parts: Omit<ConnectionParts, 'onLogin'>): Promise<SshServer> {
    const net = createServer()
    return new Promise((resolve, reject) => {
      net.once('error', reject)
      net.listen({ host: options.host, port: options.port }, () => {
        net.off('error', reject)
        net.on('error', (error) => parts.log.error({ err: error }, 'the SSH server failed'))
        resolve(new SshServer(net, options, parts))
      })
    })
  }

  /** How many clients are logged in. */
  get connections(): number {
    return [...this.#sockets.values()].filter((connection) => connection?.hasLoggedIn === true).length
  }

  /** Takes no new connections, and says to those that are open why they end. */
  async close(): Promise<void> {
    clearInterval(this.#sweeper)
    const closed = new Promise<void>((resolve) => this.#net.close(() => resolve()))
    for (const [socket, connection] of this.#sockets) {
      if (connection === null) socket.destroy()
      else connection.end(new ThawError('shutting_down'))
    }
    await closed
  }

  #sweep(): void {
    const longAgo = performance.now() - this.#options.idleMs
    for (const connection of this.#sockets.values()) {
      if (connection === null || connection.isOver) continue
      if (connection.hasLostSandbox) connection.end(connection.lostError())
      else if (connection.usedAt < longAgo) connection.end(new ThawError('timed_out', 'The connection was idle for too long.'))
    }
  }
}
