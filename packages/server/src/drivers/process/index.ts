import { type ChildProcess, spawn } from 'node:child_process'
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { type Probe, ThawError } from '@thaw/protocol'
import {
  type BindSpec,
  type CreateSpec,
  type Driver,
  type Exit,
  type Handle,
  type ImageSource,
  insidePaths,
  type Port,
  type Prepared,
  type SandboxStatus,
  socketNames,
} from '../driver.ts'
import { findProcesses, identify, isAlive, type ProcessIdentity, stateOf, uidOf, waitUntil, whenEnded } from '../processes.ts'
import { connectUnixSocket, waitForName } from '../socket.ts'
import { startWithin } from '../starting.ts'

export interface ProcessOptions {
  /** Everything of this driver lies below it. */
  dataDir: string
}

/**
 * Users that a root server starts code as: one for each sandbox, so that sandboxes cannot signal each other and all
 * that a sandbox ever started, daemons included, can be found and ended. The range is above what systems hand out.
 */
const firstUid = 2_000_000
const uidCount = 60_000

/** Marks the processes of a sandbox where they all run as the server's own user. */
const marker = 'THAW_SANDBOX_ID'

/** How long the last output of a program that ended is waited for. */
const lastOutputMs = 500

interface Running {
  child: ChildProcess
  identity: ProcessIdentity | null
  exit: Promise<Exit>
}

/**
 * Plain processes of this host. It isolates nothing: code sees the host's files and network and is held to no
 * limits. For trusted code, for development, and for hosts where nothing better works. A root server never runs
 * code as root.
 *
 * On disk, per sandbox, in `<dataDir>/process/<id>/`: owner (the user id), run/ (the socket), tmp/. In memory, for
 * secrets as files: `/dev/shm/thaw-<id>/`.
 */
export class ProcessDriver implements Driver {
  readonly kind = 'process'
  readonly abilities = { isolation: 'none', pause: true, snapshot: 'none' } as const
  readonly #dir: string
  readonly #asRoot = process.getuid?.() === 0
  readonly #running = new Map<string, Running>()
  readonly #usedUids = new Set<number>()

  constructor(options: ProcessOptions) {
    this.#dir = join(options.dataDir, 'process')
  }

  async probe(): Promise<Probe> {
    return {
      usable: process.platform === 'linux',
      versions: { kernel: readFileSync('/proc/sys/kernel/osrelease', 'latin1').trim() },
      missing: process.platform === 'linux' ? [] : [{ what: 'Linux', fix: 'Use a Linux host.' }],
      warnings: [
        'No isolation: code sees the files and the network of this host, and limits of memory, processes and /tmp are not enforced.',
      ],
    }
  }

  async prepare(image: ImageSource): Promise<Prepared> {
    if (image.kind !== 'host') {
      throw new ThawError('driver_unavailable', 'The process driver runs on the host itself and cannot use images.', {
        fix: 'Leave image out (or set it to host), or choose another driver.',
      })
    }
    return { image }
  }

  create(spec: CreateSpec, signal?: AbortSignal): Promise<Handle> {
    return startWithin(
      spec,
      signal,
      (stop) => this.#start(spec, stop),
      () => this.destroy(spec.id),
    )
  }

  async #start(spec: CreateSpec, signal: AbortSignal): Promise<void> {
    const dir = join(this.#dir, spec.id)
    const uid = this.#asRoot ? this.#takeUid() : (process.getuid?.() ?? 0)
    mkdirSync(dir, { recursive: true, mode: 0o711 })
    writeFileSync(join(dir, 'owner'), String(uid), { mode: 0o600 })
    for (const name of ['run', 'tmp']) {
      mkdirSync(join(dir, name), { mode: 0o700 })
      if (this.#asRoot) chownSync(join(dir, name), uid, uid)
    }
    if (spec.ready === 'runtime') {
      mkdirSync(secretsDirOf(spec.id), { mode: 0o700 })
      if (this.#asRoot) chownSync(secretsDirOf(spec.id), uid, uid)
    }
    // What other drivers show by a mount is owned by the one user of all sandboxes there; here it goes to this one.
    for (const mount of spec.mounts) if (!mount.readonly && this.#asRoot) chownSync(mount.source, uid, uid)
    signal.throwIfAborted()

    const failed = new AbortController()
    const stop = AbortSignal.any([signal, failed.signal])
    const ready = spec.ready === 'started' ? Promise.resolve() : waitForName(join(dir, 'run', socketNames[spec.ready]), stop)
    ready.catch(() => undefined)
    const running = await this.#spawn(spec, dir, uid)
    this.#running.set(spec.id, running)
    void running.exit.then((exit) =>
      failed.abort(new ThawError('driver_failed', 'The first process of the sandbox ended before it was ready.', { details: { exit } })),
    )
    await ready
  }

  #spawn(spec: CreateSpec, dir: string, uid: number): Promise<Running> {
    const secrets = { source: secretsDirOf(spec.id), target: insidePaths.secretsDir }
    const view = hostView([...spec.mounts, secrets], join(dir, 'run'))
    const [program, ...args] = spec.argv.map(view) as [string, ...string[]]
    const env = Object.fromEntries(Object.entries(spec.env).map(([name, value]) => [name, view(value)]))
    const child = spawn(program, args, {
      cwd: view(spec.cwd),
      env: { ...env, [marker]: spec.id, TMPDIR: join(dir, 'tmp'), HOME: join(dir, 'tmp') },
      // Pipes would end with the server, which an agent outlives.
      stdio: spec.ready === 'agent' ? 'ignore' : ['ignore', 'pipe', 'pipe'],
      // A session of its own: terminal signals of the server do not reach it.
      detached: true,
      ...(this.#asRoot ? { uid, gid: uid } : {}),
    })
    // Nor does the server wait for it in order to end.
    if (spec.ready === 'agent') child.unref()
    child.stdout?.on('data', (bytes: Buffer) => spec.onOutput?.('stdout', bytes))
    child.stderr?.on('data', (bytes: Buffer) => spec.onOutput?.('stderr', bytes))
    const closed = new Promise<void>((resolve) => child.once('close', () => resolve()))
    const exit = new Promise<Exit>((resolve) => {
      child.once('exit', (code, signal) => {
        // What it printed last may still be on its way; a daemon that it left behind may hold its output open for ever.
        const outputIsThere = Promise.race([closed, new Promise<void>((enough) => setTimeout(enough, lastOutputMs).unref())])
        void outputIsThere.then(() => resolve({ code, signal, out_of_memory: false }))
      })
    })
    return new Promise((resolve, reject) => {
      child.once('error', (cause) => reject(new ThawError('driver_failed', `${program} cannot be started: ${cause.message}`, { cause })))
      child.once('spawn', () => resolve({ child, identity: identify(child.pid as number), exit }))
    })
  }

  /** Code lies where it lies on the host, and nothing is limited. */
  async bind(_id: string, _what: BindSpec): Promise<void> {}

  async inspect(id: string): Promise<SandboxStatus | null> {
    if (!existsSync(join(this.#dir, id))) return null
    const identity = this.#running.get(id)?.identity
    const pids = this.#processes(id)
    const alive = identity ? isAlive(identity) : pids.length > 0
    return {
      state: !alive ? 'exited' : pids.some(isStopped) ? 'paused' : 'running',
      pid: alive ? (identity?.pid ?? pids[0] ?? null) : null,
      memory_bytes: null,
      cpu_ms: null,
      processes: pids.length,
      out_of_memory: false,
    }
  }

  /** One by one: what forks meanwhile is found in the next round. */
  async pause(id: string): Promise<void> {
    // Who waits in the kernel (D) for a child that was stopped before its exec runs no further either: the signal waits for it.
    await this.#signalUntil(id, 'SIGSTOP', (pid) => isStopped(pid) || stateOf(pid) === 'D')
  }

  async resume(id: string): Promise<void> {
    await this.#signalUntil(id, 'SIGCONT', (pid) => !isStopped(pid))
  }

  async #signalUntil(id: string, signal: NodeJS.Signals, done: (pid: number) => boolean): Promise<void> {
    if (this.#processes(id).length === 0) throw new ThawError('driver_failed', `The sandbox ${id} does not run.`)
    const signalled = new Set<number>()
    const settled = await waitUntil(() => {
      const left = this.#processes(id).filter((pid) => !signalled.has(pid) || !done(pid))
      for (const pid of left) {
        killQuietly(pid, signal)
        signalled.add(pid)
      }
      return left.length === 0
    }, 10_000)
    if (!settled) throw new ThawError('driver_failed', `Processes of sandbox ${id} cannot be stopped or continued.`)
  }

  async list(): Promise<string[]> {
    return existsSync(this.#dir) ? readdirSync(this.#dir) : []
  }

  async wait(id: string): Promise<Exit> {
    const running = this.#running.get(id)
    if (running !== undefined) return running.exit
    // Of an earlier server: any process of it stands for it.
    for (let pids = this.#processes(id); pids.length > 0; pids = this.#processes(id)) {
      const identity = identify(pids[0] as number)
      if (identity !== null) await whenEnded(identity)
    }
    return { code: null, signal: null, out_of_memory: false }
  }

  dial(id: string, port: Port): Promise<Duplex> {
    return connectUnixSocket(join(this.#dir, id, 'run', socketNames[port]))
  }

  async destroy(id: string): Promise<void> {
    const dir = join(this.#dir, id)
    if (!existsSync(dir)) return
    const ended = await waitUntil(() => {
      const pids = this.#processes(id)
      for (const pid of pids) killQuietly(pid, 'SIGKILL')
      return pids.length === 0
    }, 10_000)
    if (!ended) throw new ThawError('driver_failed', `Processes of sandbox ${id} do not end.`)
    const uid = this.#owner(id)
    rmSync(secretsDirOf(id), { recursive: true, force: true })
    rmSync(dir, { recursive: true, force: true })
    this.#running.delete(id)
    if (uid !== null) this.#usedUids.delete(uid)
  }

  async close(): Promise<void> {}

  /** Everything that the sandbox started and that still runs, also what left its session. */
  #processes(id: string): number[] {
    if (this.#asRoot) {
      const uid = this.#owner(id)
      return uid === null ? [] : findProcesses((pid) => uidOf(pid) === uid && !isZombie(pid))
    }
    const text = `${marker}=${id}`
    return findProcesses((pid) => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(text) && !isZombie(pid)
      } catch {
        return false
      }
    })
  }

  #owner(id: string): number | null {
    try {
      const uid = Number(readFileSync(join(this.#dir, id, 'owner'), 'latin1'))
      return uid >= firstUid ? uid : null
    } catch {
      return null
    }
  }

  /** A user that no process of this machine runs as: several servers may share the range. */
  #takeUid(): number {
    const taken = new Set<number | null>()
    findProcesses((pid) => {
      taken.add(uidOf(pid))
      return false
    })
    const start = Math.floor(Math.random() * uidCount)
    for (let step = 0; step < uidCount; step++) {
      const uid = firstUid + ((start + step) % uidCount)
      if (this.#usedUids.has(uid) || taken.has(uid)) continue
      this.#usedUids.add(uid)
      return uid
    }
    throw new ThawError('driver_failed', 'No unused user id is left for a sandbox.')
  }
}

function secretsDirOf(id: string): string {
  return `/dev/shm/thaw-${id}`
}

function killQuietly(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // Gone already.
  }
}

/** Stopped by a signal; T of proc(5). */
function isStopped(pid: number): boolean {
  return stateOf(pid) === 'T'
}

function isZombie(pid: number): boolean {
  const found = identify(pid)
  return found === null || !isAlive(found)
}

/** Paths inside, as specs name them, become the host's paths of what a mount would have shown there. */
function hostView(mounts: { source: string; target: string }[], runDir: string): (text: string) => string {
  const pairs = [...mounts.map((mount) => [mount.target, mount.source] as const), ['/thaw/run', runDir] as const]
  return (text) => {
    for (const [target, source] of pairs) {
      if (text === target || text.startsWith(`${target}/`)) return source + text.slice(target.length)
    }
    return text
  }
}
