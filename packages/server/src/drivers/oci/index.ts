import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { type Probe, ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import type { BindSpec, CreateSpec, Driver, Exit, Handle, ImageSource, Port, Prepared, SandboxStatus } from '../driver.ts'
import { idShift, socketNames } from '../driver.ts'
import { linkTree } from '../link-tree.ts'
import { findProcesses, identify, isAlive, type ProcessIdentity, signalProcess, waitUntil, whenEnded } from '../processes.ts'
import { connectUnixSocket, waitForName } from '../socket.ts'
import { startWithin } from '../starting.ts'
import { type Cgroups, openCgroups } from './cgroup.ts'
import { ociConfig } from './config.ts'
import { EgressNetwork, type Made } from './network.ts'
import { hardNofileLimit, probeOci } from './probe.ts'

export interface OciOptions {
  /** Everything of this driver lies below it. */
  dataDir: string
  /** The OCI runtime. Default: runc, or crun where only that is installed. */
  engine?: 'runc' | 'crun'
}

/** Where system programs lie; the PATH of whoever starts the server need not have all of it. */
const enginePath = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']

/** What this process knows of a sandbox that it started itself. */
interface Running {
  exit: Promise<Exit>
  process: ProcessIdentity | null
}

/**
 * Containers of an OCI runtime (runc), without an engine above it. Root inside is an ordinary user of the host (user
 * namespace), see SAFETY for the rest. The root file system of an image is shared read-only between its sandboxes, or
 * the lower layer of an overlay where the sandbox may write.
 *
 * On disk, per sandbox, in `<dataDir>/oci/sandboxes/<id>/`: config.json, pid, process.json, run/ (the socket), and for writable roots upper/
 * work/ rootfs/ (the mounted overlay). State of the runtime: `<dataDir>/oci/state`. Groups: /thaw/<tag>/<id>.
 */
export class OciDriver implements Driver {
  readonly kind = 'oci'
  readonly abilities = { isolation: 'container', pause: true, snapshot: 'none' } as const
  readonly #engine: string
  readonly #sandboxesDir: string
  readonly #stateDir: string
  readonly #cgroupBase: string
  readonly #cgroups: Cgroups
  readonly #network: EgressNetwork
  readonly #maxNofile = hardNofileLimit()
  readonly #running = new Map<string, Running>()
  readonly #destroying = new Map<string, Promise<void>>()
  #probe: Promise<Probe> | undefined

  constructor(options: OciOptions) {
    this.#engine = options.engine ?? (!isInstalled('runc') && isInstalled('crun') ? 'crun' : 'runc')
    this.#sandboxesDir = join(options.dataDir, 'oci', 'sandboxes')
    this.#stateDir = join(options.dataDir, 'oci', 'state')
    this.#cgroupBase = `/thaw/${createHash('sha256').update(options.dataDir).digest('hex').slice(0, 12)}`
    this.#cgroups = openCgroups()
    this.#network = new EgressNetwork(options.dataDir)
    this.#adoptNetworks()
  }

  /** Sandboxes of an earlier server hold their namespaces until they are destroyed. */
  #adoptNetworks(): void {
    if (!existsSync(this.#sandboxesDir)) return
    for (const id of readdirSync(this.#sandboxesDir)) {
      try {
        this.#network.adopt(id, JSON.parse(readFileSync(join(this.#dir(id), 'network.json'), 'utf8')) as Made)
      } catch {
        // Without one, or the server ended while it was written: a namespace that nobody holds is found by its name.
      }
    }
  }

  probe(): Promise<Probe> {
    this.#probe ??= probeOci(this.#engine, this.#cgroups)
    return this.#probe
  }

  async prepare(image: ImageSource): Promise<Prepared> {
    if (image.path === undefined || !existsSync(image.path))
      throw new ThawError('image_unavailable', 'The files of the image are not on this machine.')
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
    const dir = this.#dir(spec.id)
    const runDir = join(dir, 'run')
    mkdirSync(dir, { recursive: true, mode: 0o711 })
    mkdirSync(runDir, { mode: 0o700 })
    const owner = idShift + (spec.user === 'root' ? 0 : 1000)
    chownSync(runDir, owner, owner)
    const rootfs = spec.root === 'writable' ? await this.#mountOverlay(dir, spec.image.image) : (spec.image.image.path as string)
    const mounts = [...spec.mounts]
    if (spec.slot !== undefined) {
      mkdirSync(join(dir, 'slot'), { mode: 0o755 })
      mounts.push({ source: join(dir, 'slot'), target: spec.slot, readonly: true })
    }
    let netns: string | undefined
    if (spec.network === 'egress') {
      const network = await this.#network.create(spec.id)
      netns = network.path
      writeFileSync(join(dir, 'network.json'), JSON.stringify(network.made), { mode: 0o600 })
      writeFileSync(join(dir, 'resolv.conf'), this.#network.resolvConf, { mode: 0o644 })
      mounts.push({ source: join(dir, 'resolv.conf'), target: '/etc/resolv.conf', readonly: true })
    }
    const config = ociConfig({
      spec: { ...spec, mounts },
      rootfs,
      runDir,
      netns,
      cgroupsPath: this.#cgroup(spec.id),
      swapLimit: this.#cgroups.swapLimit,
      maxNofile: this.#maxNofile,
    })
    writeFileSync(join(dir, 'config.json'), JSON.stringify(config), { mode: 0o600 })
    signal.throwIfAborted()

    const failed = new AbortController()
    const stop = AbortSignal.any([signal, failed.signal])
    const ready = spec.ready === 'started' ? Promise.resolve() : waitForName(join(runDir, socketNames[spec.ready]), stop)
    ready.catch(() => undefined)
    const running = await this.#runEngine(spec, dir)
    this.#running.set(spec.id, running)
    // A first process that ends before it is ready will never be.
    void running.exit.then((exit) =>
      failed.abort(new ThawError('driver_failed', 'The first process of the sandbox ended before it was ready.', { details: { exit } })),
    )
    await ready
  }

  /**
   * A sandbox with a runtime is started detached: the engine goes away and costs nothing while the sandbox lives. Where the
   * exit code of argv is what matters, the engine stays as its parent and hands the code on.
   */
  #runEngine(spec: CreateSpec, dir: string): Promise<Running> {
    const detach = spec.ready !== 'started'
    const silent = spec.ready === 'agent'
    const pidFile = join(dir, 'pid')
    // A session keyring of its own would count against the 200 keys that the kernel gives one user, and all sandboxes are one
    // user to it. Code inside can reach no keyring: its system calls are refused.
    const args = [
      '--root',
      this.#stateDir,
      '--log',
      join(dir, 'engine.log'),
      'run',
      '--no-new-keyring',
      '--pid-file',
      pidFile,
      '--bundle',
      dir,
    ]
    const child = spawn(this.#engine, [...args, ...(detach ? ['--detach'] : []), spec.id], {
      // A pipe would end with the server, and could not be part of a snapshot.
      stdio: silent ? 'ignore' : ['ignore', 'pipe', 'pipe'],
    })
    let lastError = ''
    child.stdout?.on('data', (bytes: Buffer) => spec.onOutput?.('stdout', bytes))
    child.stderr?.on('data', (bytes: Buffer) => {
      if (lastError.length < 4096) lastError += bytes.toString('utf8')
      spec.onOutput?.('stderr', bytes)
    })
    const closed = new Promise<Exit>((resolve) =>
      child.once('close', (code, signal) => resolve({ code, signal, out_of_memory: this.#oomKilled(spec.id) })),
    )
    const started = (): Running => {
      const first = identify(Number(readFileSync(pidFile, 'latin1')))
      writeFileSync(join(dir, 'process.json'), JSON.stringify(first), { mode: 0o600 })
      return { process: first, exit: detach ? this.#watchExit(spec.id, first, closed) : closed }
    }
    return new Promise((resolve, reject) => {
      const gone = new AbortController()
      child.once('error', (cause) =>
        reject(new ThawError('driver_failed', `${this.#engine} cannot be started: ${cause.message}`, { cause })),
      )
      child.once('exit', (code) => {
        gone.abort()
        // Without --detach the code may be that of argv, which may have ended already: then it has been started.
        if (code === 0 || (!detach && existsSync(pidFile))) resolve(started())
        else {
          const stderr = engineError(dir) ?? lastError.trim()
          reject(startFailure(this.#engine, spec.argv[0] ?? '', stderr))
        }
      })
      if (!detach) {
        waitForName(pidFile, gone.signal).then(
          () => resolve(started()),
          () => undefined,
        )
      }
    })
  }

  /**
   * The first process is not our child, so nobody tells us its exit code; but its output pipes are ours, and the
   * kernel closes them when the last process of the container is gone. A process may close them earlier by itself.
   */
  async #watchExit(id: string, first: ProcessIdentity | null, outputClosed: Promise<unknown>): Promise<Exit> {
    await outputClosed
    if (first !== null) await whenEnded(first)
    return { code: null, signal: null, out_of_memory: this.#oomKilled(id) }
  }

  async bind(id: string, { code, resources }: BindSpec): Promise<void> {
    if (code !== undefined) linkTree(code, join(this.#dir(id), 'slot'))
    this.#cgroups.limit(this.#cgroup(id), resources)
  }

  async inspect(id: string): Promise<SandboxStatus | null> {
    if (!existsSync(this.#dir(id))) return null
    const first = this.#firstProcess(id)
    const alive = first !== null && isAlive(first)
    const cgroup = this.#cgroup(id)
    return {
      state: !alive ? 'exited' : this.#cgroups.frozen(cgroup) ? 'paused' : 'running',
      pid: alive ? first.pid : null,
      memory_bytes: this.#cgroups.memoryBytes(cgroup),
      cpu_ms: this.#cgroups.cpuMs(cgroup),
      processes: this.#cgroups.processes(cgroup).length,
      out_of_memory: this.#oomKilled(id),
    }
  }

  async pause(id: string): Promise<void> {
    await this.#cgroups.freeze(this.#alive(id), true)
  }

  async resume(id: string): Promise<void> {
    await this.#cgroups.freeze(this.#alive(id), false)
  }

  /** The group of a sandbox that runs. */
  #alive(id: string): string {
    const first = this.#firstProcess(id)
    if (first === null || !isAlive(first)) throw new ThawError('driver_failed', `The sandbox ${id} does not run.`)
    return this.#cgroup(id)
  }

  async list(): Promise<string[]> {
    const ids = new Set<string>([...this.#network.list(), ...this.#cgroups.children(this.#cgroupBase)])
    for (const folder of [this.#sandboxesDir, this.#stateDir]) {
      if (existsSync(folder)) for (const name of readdirSync(folder)) ids.add(name)
    }
    return [...ids]
  }

  wait(id: string): Promise<Exit> {
    const running = this.#running.get(id)
    if (running !== undefined) return running.exit
    return this.#watchExit(id, this.#firstProcess(id), Promise.resolve())
  }

  dial(id: string, port: Port): Promise<Duplex> {
    return connectUnixSocket(join(this.#dir(id), 'run', socketNames[port]))
  }

  destroy(id: string): Promise<void> {
    const pending = this.#destroying.get(id) ?? this.#destroy(id).finally(() => this.#destroying.delete(id))
    this.#destroying.set(id, pending)
    return pending
  }

  async #destroy(id: string): Promise<void> {
    const cgroup = this.#cgroup(id)
    // Of an earlier server: its engine may still be at work on the container, and would finish it behind our back.
    if (!this.#running.has(id)) for (const pid of findProcesses((candidate) => isEngineOf(candidate, this.#dir(id)))) killQuietly(pid)
    // What is frozen cannot end.
    if (this.#cgroups.frozen(cgroup)) await this.#cgroups.freeze(cgroup, false).catch(() => undefined)
    const killed = await waitUntil(() => {
      // The first process takes its pid namespace with it; the group also has a runtime that was caught half-way.
      const pids = this.#cgroups.processes(cgroup)
      for (const pid of pids) killQuietly(pid)
      return pids.length === 0
    }, 10_000)
    if (!killed) throw new ThawError('driver_failed', `Processes of sandbox ${id} do not end.`)
    const first = this.#firstProcess(id)
    if (first !== null && isAlive(first)) {
      signalProcess(first, 'SIGKILL')
      await waitUntil(() => !isAlive(first), 5_000)
    }
    this.#cgroups.remove(cgroup)
    rmSync(join(this.#stateDir, id), { recursive: true, force: true })
    await this.#network.remove(id)
    const dir = this.#dir(id)
    const mounted = join(dir, 'rootfs')
    if (existsSync(mounted)) await unmount(mounted)
    rmSync(dir, { recursive: true, force: true })
    this.#running.delete(id)
  }

  async close(): Promise<void> {
    await this.#network.dropSpares()
    if ((await this.list()).length > 0) return
    await this.#network.close()
    if (existsSync('/sys/fs/cgroup')) this.#cgroups.remove(this.#cgroupBase)
  }

  async #mountOverlay(dir: string, image: ImageSource): Promise<string> {
    const rootfs = join(dir, 'rootfs')
    for (const name of ['upper', 'work', 'rootfs']) {
      mkdirSync(join(dir, name), { mode: 0o755 })
      chownSync(join(dir, name), idShift, idShift)
    }
    await runCommand('mount', [
      '-t',
      'overlay',
      'overlay',
      '-o',
      `lowerdir=${image.path},upperdir=${join(dir, 'upper')},workdir=${join(dir, 'work')},nodev,nosuid`,
      rootfs,
    ])
    return rootfs
  }

  #firstProcess(id: string): ProcessIdentity | null {
    const known = this.#running.get(id)?.process
    if (known !== undefined) return known
    // Of an earlier server, which wrote it down when it had started it.
    try {
      return JSON.parse(readFileSync(join(this.#dir(id), 'process.json'), 'utf8')) as ProcessIdentity
    } catch {
      return null
    }
  }

  #oomKilled(id: string): boolean {
    return this.#cgroups.oomKills(this.#cgroup(id)) > 0
  }

  #dir(id: string): string {
    return join(this.#sandboxesDir, id)
  }

  #cgroup(id: string): string {
    return `${this.#cgroupBase}/${id}`
  }
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Gone already.
  }
}

function isInstalled(program: string): boolean {
  return enginePath.some((folder) => existsSync(join(folder, program)))
}

/** An image without the program that is to start is the image's fault, not the engine's. */
function startFailure(engine: string, program: string, stderr: string): ThawError {
  if (/executable file not found|exec: .*no such file or directory/.test(stderr)) {
    return new ThawError('runtime_unsupported', `The image has no ${program}.`, { details: { stderr } })
  }
  return new ThawError('driver_failed', `${engine} could not start the container.`, { details: { stderr } })
}

function isEngineOf(pid: number, bundle: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(bundle)
  } catch {
    return false
  }
}

/** Lazily, where something still holds the mount: it goes away with its last user. */
async function unmount(path: string): Promise<void> {
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
  if (!mounts.includes(` ${path} `)) return
  await runCommand('umount', [path]).catch(() => runCommand('umount', ['--lazy', path]))
}

/** The runtime writes its own log; its last line says what went wrong. */
function engineError(dir: string): string | null {
  try {
    return readFileSync(join(dir, 'engine.log'), 'utf8').trim().slice(-2000) || null
  } catch {
    return null
  }
}
