import { constants } from 'node:os'
import { ThawError } from '@thaw/protocol'
import type { ServerChannel, Session } from 'ssh2'
import type { Lease } from '../../control/sandboxes/live-sandbox.ts'
import { PipedProcess } from '../../control/sandboxes/piped-process.ts'
import { arrivals, ChannelOutput } from './channel.ts'

/** What the sessions of a connection share. */
export interface SessionHost {
  /** The sandbox, once it is awake. */
  readonly lease: Promise<Lease>
  wake(): Promise<Lease['agent']>
  /** Who runs commands inside; undefined: the default of the sandbox. */
  readonly user: string | undefined
  /** Given to every process. */
  readonly env: Record<string, string>
  /** Bytes went one way or the other. */
  touch(): void
  /** What it means that a process was lost: that of the whole sandbox, mostly. */
  explain(error: unknown): ThawError
}

const mostVariables = 128
const mostValueCharacters = 8192
/** RFC 4254, section 6.10; other signals are told as exit codes. */
const toldSignals = new Set('ABRT ALRM FPE HUP ILL INT KILL PIPE QUIT SEGV TERM USR1 USR2'.split(' ').map((name) => `SIG${name}` as const))
/** Accounts that are not meant for logging in, or whose shell the image does not have, get the one that is always there. */
const findShell = 'case $SHELL in */nologin|*/false|"") SHELL=/bin/sh;; esac; [ -x "$SHELL" ] || SHELL=/bin/sh; export SHELL; '
const loginShell = ['/bin/sh', '-c', `${findShell}exec "$SHELL" -l`]
const commandOf = (text: string) => ['/bin/sh', '-c', `${findShell}exec "$SHELL" -c "$0"`, text]
const sftpServer = ['thaw-agent', 'sftp']

/** One session channel: a shell, a command or the SFTP subsystem. */
export class SshSession {
  /** Resolves when it is over and the client has taken all that there was to say. */
  readonly done: Promise<void>
  readonly #host: SessionHost
  readonly #finish = Promise.withResolvers<void>()
  readonly #env: Record<string, string> = {}
  #pty: { cols: number; rows: number } | null = null
  #process: PipedProcess | null = null
  #channel: ServerChannel | null = null
  /** Why it is ended from outside. */
  #reason: ThawError | null = null

  constructor(session: Session, host: SessionHost) {
    this.#host = host
    this.done = this.#finish.promise
    session.on('pty', (accept, _reject, info) => {
      this.#pty = { cols: sizeOr(info.cols, 80), rows: sizeOr(info.rows, 24) }
      const { term } = info
      if (/^[\w.+-]{1,64}$/.test(term)) this.#env.TERM = term
      accept?.()
    })
    session.on('window-change', (accept, _reject, { cols, rows }) => {
      void this.#process?.resize(sizeOr(cols, 80), sizeOr(rows, 24)).catch(() => undefined)
      accept?.()
    })
    session.on('env', (accept, reject, { key, val }) => {
      const name = String(key)
      const value = String(val)
      const isTaken =
        /^[A-Za-z_][A-Za-z0-9_]{0,255}$/.test(name) &&
        !value.includes('\0') &&
        value.length <= mostValueCharacters &&
        Object.keys(this.#env).length < mostVariables
      if (isTaken) this.#env[name] = value
      ;(isTaken ? accept : reject)?.()
    })
    session.on('signal', (accept, reject, { name }) => {
      const number = constants.signals[`SIG${name}` as NodeJS.Signals]
      if (this.#process === null || number === undefined || number > 31) return reject?.()
      void this.#process.signal(number).catch(() => undefined)
      accept?.()
    })
    session.on('auth-agent', (_accept, reject) => reject?.())
    session.on('shell', (accept) => void this.#run(accept(), loginShell))
    session.on('exec', (accept, _reject, { command }) => void this.#run(accept(), commandOf(command)))
    session.on('subsystem', (accept, reject, { name }) => {
      if (name !== 'sftp') return reject?.()
      this.#pty = null
      void this.#run(accept(), sftpServer)
    })
    session.once('close', () => {
      if (this.#channel === null) this.#finish.resolve()
    })
  }

  /** Ends it, and says why to whoever sits there. */
  end(reason: ThawError): void {
    this.#reason ??= reason
    void this.#process?.hangUp(reason)
    if (this.#channel === null) this.#finish.resolve()
  }

  async #run(channel: ServerChannel, argv: string[]): Promise<void> {
    // A client asks once; the library takes care of the others.
    if (this.#channel !== null) return
    this.#channel = channel
    let isClosed = false
    channel.on('error', () => undefined)
    const output = new ChannelOutput(channel)
    channel.once('close', () => {
      isClosed = true
      this.#finish.resolve()
      void this.#process?.hangUp(new ThawError('cancelled'))
    })
    try {
      const lease = await this.#host.lease
      if (this.#reason !== null) throw this.#reason
      const process = new PipedProcess(lease, () => this.#host.wake(), {
        argv,
        env: { ...this.#host.env, ...this.#env },
        pty: this.#pty,
        user: this.#host.user,
      })
      this.#process = process
      if (isClosed) return
      void this.#feed(channel, process)
      const end = await process.run((name, bytes) => {
        this.#host.touch()
        return output.write(name, bytes)
      })
      if (this.#reason !== null) throw this.#reason
      const { exit_code, signal } = end
      if (signal !== null && toldSignals.has(signal as never)) channel.exit(signal.slice(3), false, '')
      else channel.exit(exit_code)
    } catch (error) {
      if (isClosed) return
      const why = this.#reason ?? this.#host.explain(error)
      await output.write('stderr', Buffer.from(`thaw: ${why.message}\r\n`))
      channel.exit(255)
    } finally {
      this.#process = null
      channel.end()
      // What still arrives is thrown away, or the channel would never be seen to close.
      channel.resume()
    }
  }

  async #feed(channel: ServerChannel, process: PipedProcess): Promise<void> {
    let isOpen = true
    for await (const bytes of arrivals(channel)) {
      this.#host.touch()
      // What a process does not want to read is thrown away, so that the client is not held up with it.
      if (isOpen) isOpen = await process.write(bytes).then(...yesOrNo)
    }
    if (isOpen) await process.closeInput().catch(() => undefined)
  }
}

const yesOrNo = [() => true, () => false] as const

function sizeOr(size: number, otherwise: number): number {
  return size >= 1 && size <= 65_535 ? size : otherwise
}
