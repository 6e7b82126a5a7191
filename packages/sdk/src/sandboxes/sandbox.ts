import {
  type ExecResult,
  type Fork,
  type SandboxItem,
  type SandboxStats,
  type SandboxTree,
  type SandboxUpdate,
  type SnapshotCreate,
  type SnapshotItem,
  ThawError,
} from '@thaw/protocol'
import type { CallOptions } from '../functions.ts'
import { type Http, isOk, itemOf } from '../http.ts'
import { type ExecOptions, runCommand } from './exec.ts'
import { SandboxFiles } from './files.ts'
import { type ForwardOptions, forwardPort, type PortForward } from './forward.ts'
import { pathOf } from './path.ts'
import {
  type AttachOptions,
  attachProcess,
  type Command,
  openTerminal,
  type SandboxProcess,
  type SandboxTerminal,
  type StartOptions,
  startProcess,
  type TerminalOptions,
} from './process.ts'
import { type Forked, forkSandbox, takeSnapshot } from './snapshots.ts'

/**
 * One sandbox. Calls wake it where it sleeps. `await using` deletes it at the end of the block.
 *
 *     await using sandbox = await thaw.sandboxes.create({ image: 'python' })
 *     const { stdout } = await sandbox.exec(['python3', '-c', 'print(6 * 7)'])
 */
export class Sandbox implements AsyncDisposable {
  /** As the server described it last: when it was made or found, and after each call that changed it. */
  item: SandboxItem
  readonly files: SandboxFiles
  readonly #http: Http

  /** Made by `thaw.sandboxes`. */
  constructor(http: Http, item: SandboxItem) {
    this.#http = http
    this.item = item
    this.files = new SandboxFiles(http, item.id)
  }

  get id(): string {
    return this.item.id
  }

  /** Asks the server again. */
  async refresh(options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('GET', '', undefined, options)
  }

  /** Runs a command to its end. With onStdout or onStderr its output is heard while it runs. */
  async exec(command: Command, options: ExecOptions = {}): Promise<ExecResult> {
    return runCommand(this.#http, this.id, command, options)
  }

  /** Starts a process and comes back at once. */
  async start(command: Command, options: StartOptions = {}): Promise<SandboxProcess> {
    return startProcess(this.#http, this.id, command, options)
  }

  /**
   * Goes on with a process that was started before, here or elsewhere; `main` is the service that was started with the sandbox. The
   * last 1 MiB of its output is kept: see `offset`.
   */
  async attach(pid: number | 'main', options: AttachOptions = {}): Promise<SandboxProcess> {
    return attachProcess(this.#http, this.id, pid, options)
  }

  /** Opens a terminal with a login shell, or another command, in it. It ends with the connection, as a terminal does. */
  async terminal(options: TerminalOptions): Promise<SandboxTerminal> {
    return openTerminal(this.#http, this.id, options)
  }

  /** Stops its processes where they are. The next call wakes it. */
  async pause(options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('POST', '/pause', undefined, options)
  }

  /** Puts its memory on disk and ends its processes: it costs nothing until the next call, which wakes it as it was. */
  async hibernate(options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('POST', '/hibernate', undefined, options)
  }

  /** Keeps it as it is now, memory and files where the driver can; it goes on. `thaw.snapshots.restore` starts from there. */
  async snapshot(how: SnapshotCreate = {}, options: CallOptions = {}): Promise<SnapshotItem> {
    return takeSnapshot(this.#http, this.id, how, options)
  }

  /** New sandboxes that go on from where this one is, with its memory and files; it goes on too. All of them, or an error. */
  async fork(count = 1, how: Omit<Fork, 'count'> = {}, options: CallOptions = {}): Promise<Forked> {
    return forkSandbox(this.#http, this.id, { ...how, count }, options)
  }

  /** What it was forked from, and all that came from there. */
  async tree(options: CallOptions = {}): Promise<SandboxTree> {
    return (await this.#http.json({ method: 'GET', path: `${pathOf(this.id)}/tree`, signal: options.signal })) as SandboxTree
  }

  async resume(options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('POST', '/resume', undefined, options)
  }

  /** Ends it and keeps its record. */
  async stop(options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('POST', '/stop', undefined, options)
  }

  /** Changes ports, time limits or metadata; what is left out stays as it is. */
  async update(change: SandboxUpdate, options: CallOptions = {}): Promise<SandboxItem> {
    return this.#change('PATCH', '', change, options)
  }

  async stats(options: CallOptions = {}): Promise<SandboxStats> {
    return itemOf<SandboxStats>(await this.#http.json({ method: 'GET', path: `${pathOf(this.id)}/stats`, signal: options.signal }))
  }

  /** Ends it, from whatever state, and forgets it. */
  async delete(options: CallOptions = {}): Promise<void> {
    await this.#http.send({ method: 'DELETE', path: pathOf(this.id), signal: options.signal, patient: true }, isOk)
  }

  /**
   * Where the server leads to a port inside. The port must be listed: `create({ ports })`, `update({ ports })`. With the domain
   * that the server has for sandboxes (`localhost` by default) the address is a host name, where web applications are at home.
   */
  url(port: number, options: { domain?: string | undefined } = {}): string {
    if (options.domain === undefined) return `${this.#http.url}${pathOf(this.id)}/ports/${port}/`
    const url = new URL(this.#http.url)
    return `${url.protocol}//${port}-${this.id}.${options.domain}${url.port === '' ? '' : `:${url.port}`}/`
  }

  /**
   * Listens on this machine; every connection goes to the port inside, byte by byte, so clients of any protocol reach it. The
   * port must be listed. `await using` ends it at the end of the block.
   */
  async forward(port: number, options: ForwardOptions = {}): Promise<PortForward> {
    return forwardPort(this.#http, this.id, port, options)
  }

  /** What JSON.stringify shows. */
  toJSON(): SandboxItem {
    return this.item
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.delete()
    } catch (error) {
      if (!(error instanceof ThawError && error.code === 'sandbox_not_found')) throw error
    }
  }

  async #change(method: 'GET' | 'POST' | 'PATCH', action: string, json: object | undefined, { signal }: CallOptions): Promise<SandboxItem> {
    const body = json === undefined ? {} : { json }
    this.item = itemOf<SandboxItem>(
      await this.#http.json({ method, path: `${pathOf(this.id)}${action}`, signal, patient: method !== 'GET', ...body }),
    )
    return this.item
  }
}
