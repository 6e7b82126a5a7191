import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, chmodSync, constants, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const repository = fileURLToPath(new URL('..', import.meta.url))
export const programsDir = fileURLToPath(new URL('programs', import.meta.url))

export interface Child {
  process: ChildProcess
  pid: number
  /** The end of what it printed, both streams, to say why it failed. */
  output(): string
  /** Resolves with its exit code, null after a signal. */
  ended: Promise<number | null>
  stop(): Promise<void>
}

/** What one run of the benchmark owns: a folder, processes, and the time that is left. All of it ends with `dispose`. */
export class Workbench implements AsyncDisposable {
  readonly quick: boolean
  /** Walkable by the users of sandboxes. */
  readonly dir: string
  readonly signal: AbortSignal
  /** Peers that are not measured, and why. */
  readonly leftOut = new Map<string, string>()
  readonly #stop = new AbortController()
  readonly #stack = new AsyncDisposableStack()
  readonly #children: (Child & { program: string })[] = []
  readonly #started = performance.now()
  readonly #timer: NodeJS.Timeout

  constructor(options: { quick: boolean; limitMs: number }) {
    this.quick = options.quick
    this.signal = this.#stop.signal
    this.dir = realpathSync(mkdtempSync(join(tmpdir(), 'thaw-bench-')))
    chmodSync(this.dir, 0o711)
    this.#stack.defer(() => rmSync(this.dir, { recursive: true, force: true }))
    this.#timer = setTimeout(() => this.stop(`the limit of ${options.limitMs / 1000} s is reached`), options.limitMs)
    this.#timer.unref()
  }

  /** Ends the run: whatever waits rejects with this reason. */
  stop(reason: string): void {
    this.#stop.abort(new Error(reason))
  }

  /** Says on stderr what goes on. */
  say(line: string): void {
    process.stderr.write(`${((performance.now() - this.#started) / 1000).toFixed(1).padStart(6)} s  ${line}\n`)
  }

  leaveOut(peer: string, why: string): void {
    if (!this.leftOut.has(peer)) this.say(`without ${peer}: ${why}`)
    this.leftOut.set(peer, why)
  }

  /** Starts a process that lives until `stop`, or until the run ends. */
  start(program: string, args: readonly string[], options: SpawnOptions = {}): Child {
    this.signal.throwIfAborted()
    // In a process group of its own, so that Ctrl-C reaches it only through us: a second signal would cut its closing short.
    const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true, ...options })
    let output = ''
    const keep = (bytes: Buffer) => {
      output = (output + bytes.toString('utf8')).slice(-4000)
    }
    child.stdout?.on('data', keep)
    child.stderr?.on('data', keep)
    const ended = new Promise<number | null>((resolve) => {
      child.once('close', resolve)
      child.once('error', (error) => {
        output += error.message
        resolve(127)
      })
    })
    const stop = async () => {
      if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return
      child.kill('SIGTERM')
      const patience = setTimeout(() => child.kill('SIGKILL'), 20_000)
      await ended
      clearTimeout(patience)
    }
    this.#stack.defer(stop)
    const started = { program, process: child, pid: child.pid ?? 0, output: () => output, ended, stop }
    this.#children.push(started)
    return started
  }

  /** Ends all processes that still run, and gives what each printed last. */
  async stopChildren(): Promise<string[]> {
    const left = this.#children.splice(0).filter(({ process: { exitCode, signalCode } }) => exitCode === null && signalCode === null)
    await Promise.all(left.map((child) => child.stop()))
    return left.map((child) => `${child.program} (${child.pid}) printed: ${child.output().slice(-1000).trim()}`)
  }

  /** Runs a program to its end and gives what it printed on stdout. */
  async run(program: string, args: readonly string[], options: SpawnOptions & { input?: string } = {}): Promise<string> {
    this.signal.throwIfAborted()
    const { input, ...spawnOptions } = options
    const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], signal: this.signal, ...spawnOptions })
    let stdout = ''
    let stderr = ''
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr = (stderr + text).slice(-4000)
    })
    child.stdin?.on('error', () => undefined).end(input)
    const [code] = (await once(child, 'close')) as [number | null]
    if (code !== 0) throw new Error(`${program} ended with ${code}: ${stderr.trim() || stdout.slice(-500)}`)
    return stdout
  }

  /** Resolves when the condition holds: for what nothing announces. */
  async until(what: string, condition: () => boolean | Promise<boolean>, timeoutMs = 30_000): Promise<void> {
    const end = performance.now() + timeoutMs
    while (!(await condition())) {
      this.signal.throwIfAborted()
      if (performance.now() > end) throw new Error(`${what}: not within ${timeoutMs} ms`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }

  /** Something else that has to be undone at the end. */
  defer(undo: () => Promise<void> | void): void {
    this.#stack.defer(undo)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearTimeout(this.#timer)
    await this.#stack.disposeAsync()
  }
}

/** Where a program lies, or null. Programs for administrators are not on every PATH. */
export function findProgram(name: string): string | null {
  const folders = [join(repository, '.build/bin'), ...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/local/go/bin']
  for (const folder of folders) {
    try {
      accessSync(join(folder, name), constants.X_OK)
      return join(folder, name)
    } catch {
      // Not here.
    }
  }
  return null
}

/** A value of /proc/PID/status, in MiB. */
export function memoryOf(pid: number, key: 'VmRSS' | 'VmHWM'): number {
  const line = new RegExp(`^${key}:\\s+(\\d+) kB`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))
  return Number(line?.[1] ?? Number.NaN) / 1024
}
