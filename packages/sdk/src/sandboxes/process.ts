import { type StreamEvent, ThawError } from '@thaw/protocol'
import type { Http } from '../http.ts'
import { errorOf, type Receiver, StreamConnection } from './connection.ts'

/** Text for /bin/sh, or a program and its arguments. */
export type Command = string | string[]

/** Bytes of a process. While the promise that it returns is pending, no more is read, and in the end the process waits. */
export type OnOutput = (bytes: Uint8Array) => void | Promise<void>

export interface StartOptions {
  /** Added to the environment of the sandbox. */
  env?: Record<string, string> | undefined
  cwd?: string | undefined
  /** Default: root of the sandbox. */
  user?: string | undefined
  onStdout?: OnOutput | undefined
  onStderr?: OnOutput | undefined
  /** true: standard input stays open for `stdin.write`. Default false: it is empty. */
  stdin?: boolean | undefined
  /** true: the process ends when the connection to it does. Default false: it goes on, see `attach`. */
  killOnClose?: boolean | undefined
  /** Ends the process and rejects `wait` with its reason. */
  signal?: AbortSignal | undefined
}

export interface TerminalOptions extends Pick<StartOptions, 'env' | 'cwd' | 'user' | 'signal'> {
  /** Default: a login shell. */
  command?: Command | undefined
  /** Default 80. */
  cols?: number | undefined
  /** Default 24. */
  rows?: number | undefined
  onData: OnOutput
}

export interface ProcessExit {
  /** 128 + n for signal n. */
  exit_code: number
  signal: string | null
}

/** What is known of a process once it runs. */
export interface Started {
  pid: number
  offset: { stdout: number; stderr: number }
}

/** The one process that a connection is for. */
const onlyId = '1'
/** Input in one message; base64 adds a third, and the server takes messages of up to 1 MiB. */
const inputPieceBytes = 256 * 1024

/** A running process of a sandbox. `await using` ends it. */
export class SandboxProcess implements AsyncDisposable {
  readonly pid: number
  /** Bytes that the process had written before what is heard here; more than 0 only after `attach`. */
  readonly offset: { stdout: number; stderr: number }
  readonly stdin: ProcessInput
  readonly #wire: ProcessWire

  /** Made by `sandbox.start` and `sandbox.attach`. */
  constructor(wire: ProcessWire, { pid, offset }: Started) {
    this.#wire = wire
    this.pid = pid
    this.offset = offset
    this.stdin = new ProcessInput(wire)
  }

  /** Resolves when the process has ended and all of its output has been received. That it failed is a result. */
  wait(): Promise<ProcessExit> {
    return this.#wire.exited
  }

  /** Sends a signal to the process and all that it started in its group. Default SIGKILL. */
  async kill(signal = 'SIGKILL'): Promise<void> {
    await this.#wire.send({ type: 'signal', signal })
  }

  /** Lets go of the process, which goes on unless it was started with killOnClose. `wait` rejects. */
  detach(): void {
    this.#wire.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endProcess(this.#wire)
  }
}

/** Standard input of a process. Bytes are sent in order; what is written after the end of the process is lost. */
export class ProcessInput {
  readonly #wire: ProcessWire

  constructor(wire: ProcessWire) {
    this.#wire = wire
  }

  /** Resolves when the bytes have left, which a process that does not read makes late. */
  async write(data: string | Uint8Array): Promise<void> {
    await writeInput(this.#wire, data)
  }

  /** The process reads the end of its input. */
  async end(): Promise<void> {
    await this.#wire.send({ type: 'stdin', eof: true })
  }
}

/** A terminal with a program in it. `await using` ends it. */
export class SandboxTerminal implements AsyncDisposable {
  readonly pid: number
  readonly #wire: ProcessWire

  /** Made by `sandbox.terminal`. */
  constructor(wire: ProcessWire, pid: number) {
    this.#wire = wire
    this.pid = pid
  }

  /** Resolves when the program has ended and all that it printed has been received. */
  get exited(): Promise<ProcessExit> {
    return this.#wire.exited
  }

  /** Types: control characters do what the terminal makes of them. */
  async write(data: string | Uint8Array): Promise<void> {
    await writeInput(this.#wire, data)
  }

  async resize(size: { cols: number; rows: number }): Promise<void> {
    await this.#wire.send({ type: 'resize', cols: size.cols, rows: size.rows })
  }

  /** Default SIGHUP, which is what a terminal that goes away sends. */
  async kill(signal = 'SIGHUP'): Promise<void> {
    await this.#wire.send({ type: 'signal', signal })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await endProcess(this.#wire)
  }
}

async function writeInput(wire: ProcessWire, data: string | Uint8Array): Promise<void> {
  const bytes = typeof data === 'string' ? new TextEncoder().encode(data) : data
  for (let at = 0; at < bytes.length; at += inputPieceBytes) {
    await wire.send({ type: 'stdin', data: toBase64(bytes.subarray(at, at + inputPieceBytes)) })
  }
}

async function endProcess(wire: ProcessWire): Promise<void> {
  if (!wire.ended) await wire.send({ type: 'signal', signal: 'SIGKILL' })
  await wire.exited.catch(() => undefined)
  wire.close()
}

/** A process and the connection that was opened for it. */
export class ProcessWire {
  readonly exited: Promise<ProcessExit>
  ended = false
  #connection: StreamConnection | undefined
  readonly #output: Pick<StartOptions, 'onStdout' | 'onStderr'>
  readonly #started: PromiseWithResolvers<Started> = Promise.withResolvers()
  readonly #exit: PromiseWithResolvers<ProcessExit> = Promise.withResolvers()

  constructor(output: Pick<StartOptions, 'onStdout' | 'onStderr'>) {
    this.#output = output
    this.exited = this.#exit.promise
    // Whoever does not wait for the end need not hear of it.
    this.exited.catch(() => undefined)
    this.#started.promise.catch(() => undefined)
  }

  /** Sends `first`, which starts a process or attaches to one, and resolves when that is done. */
  async open(http: Http, sandboxId: string, first: object, signal: AbortSignal | undefined): Promise<Started> {
    const receive: Receiver = (message) => this.#receive(message)
    const hold = (held: boolean) => void this.send({ type: 'hold', held })
    const connection = await StreamConnection.open(http, sandboxId, receive, signal, hold)
    this.#connection = connection
    void connection.closed.then((error) => {
      this.#fail(error ?? new ThawError('cancelled', 'The connection to the process was closed before its end.'))
    })
    const abort = () => {
      this.#fail(signal?.reason)
      void this.send({ type: 'signal', signal: 'SIGKILL' }).then(() => connection.close())
    }
    signal?.addEventListener('abort', abort, { once: true })
    void this.exited.catch(() => undefined).then(() => signal?.removeEventListener('abort', abort))
    await this.send(first)
    if (signal?.aborted) abort()
    return this.#started.promise
  }

  async send(message: object): Promise<void> {
    if (!this.ended) await this.#connection?.send({ id: onlyId, ...message })
  }

  close(): void {
    this.#connection?.close()
  }

  #receive(message: StreamEvent): void | Promise<void> {
    switch (message.type) {
      case 'started':
        return this.#started.resolve({ pid: message.pid ?? 0, offset: message.offset ?? { stdout: 0, stderr: 0 } })
      case 'stdout':
        return this.#output.onStdout?.(fromBase64(message.data))
      case 'stderr':
        return this.#output.onStderr?.(fromBase64(message.data))
      case 'exit':
        this.ended = true
        this.#exit.resolve({ exit_code: message.exit_code, signal: message.signal })
        return this.close()
      case 'error':
        // Input that comes late for a process that reads no more is no failure of it.
        return message.ended ? this.#fail(errorOf(message)) : undefined
    }
  }

  #fail(error: unknown): void {
    this.ended = true
    this.#started.reject(error)
    this.#exit.reject(error)
    this.close()
  }
}

/** Starts a process and comes back with its pid. */
export async function startProcess(http: Http, sandboxId: string, command: Command, options: StartOptions): Promise<SandboxProcess> {
  const { env, cwd, user, stdin, killOnClose, signal } = options
  const wire = new ProcessWire(options)
  const first = { type: 'exec', command, ...given({ env, cwd, user, stdin, kill_on_close: killOnClose }) }
  return new SandboxProcess(wire, await wire.open(http, sandboxId, first, signal))
}

export interface AttachOptions extends Pick<StartOptions, 'onStdout' | 'onStderr' | 'killOnClose' | 'signal'> {
  /** Bytes that were received already; 0: all that is kept. Default: only what comes from now on. */
  offset?: { stdout?: number; stderr?: number } | undefined
}

/** Goes on with a process that another connection started. */
export async function attachProcess(http: Http, sandboxId: string, pid: number | 'main', options: AttachOptions): Promise<SandboxProcess> {
  const { offset, killOnClose, signal } = options
  const wire = new ProcessWire(options)
  const first = { type: 'attach', pid, ...given({ offset, kill_on_close: killOnClose }) }
  return new SandboxProcess(wire, await wire.open(http, sandboxId, first, signal))
}

/** Bash where the image has it. */
export const loginShell: Command = ['/bin/sh', '-c', 'if command -v bash >/dev/null; then exec bash -l; else exec sh -l; fi']

export async function openTerminal(http: Http, sandboxId: string, options: TerminalOptions): Promise<SandboxTerminal> {
  const { command = loginShell, cols = 80, rows = 24, env, cwd, user, onData, signal } = options
  const wire = new ProcessWire({ onStdout: onData, onStderr: onData })
  const first = { type: 'exec', command, pty: { cols, rows }, stdin: true, kill_on_close: true, ...given({ env, cwd, user }) }
  const { pid } = await wire.open(http, sandboxId, first, signal)
  return new SandboxTerminal(wire, pid)
}

/** Without what is undefined. */
function given<Fields extends object>(fields: Fields): Partial<Fields> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Partial<Fields>
}

/** btoa takes one character per byte, and too many arguments at once overflow the stack. */
export function toBase64(bytes: Uint8Array): string {
  if (typeof Buffer !== 'undefined') return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64')
  let characters = ''
  for (let at = 0; at < bytes.length; at += 8192) characters += String.fromCharCode(...bytes.subarray(at, at + 8192))
  return btoa(characters)
}

export function fromBase64(text: string): Uint8Array {
  if (typeof Buffer !== 'undefined') return Buffer.from(text, 'base64')
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0))
}
