import { createHash } from 'node:crypto'
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { type Abilities, type Probe, ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import type {
  BindSpec,
  CreateSpec,
  Driver,
  Exit,
  Handle,
  ImageSource,
  Port,
  Prepared,
  SandboxStatus,
  SnapshotResult,
  SnapshotSource,
  SnapshotTarget,
} from '../driver.ts'
import { idShift, insidePaths, socketNames } from '../driver.ts'
import { linkTree } from '../link-tree.ts'
import { findProcesses, isAlive, type ProcessIdentity, signalProcess, waitUntil, whenEnded } from '../processes.ts'
import { connectUnixSocket, waitForName } from '../socket.ts'
import { startWithin } from '../starting.ts'
import { type Cgroups, endGroup, killQuietly, openCgroups } from './cgroup.ts'
import { snapshotFolders } from './checkpoint.ts'
import { ociConfig } from './config.ts'
import { fingerprint } from './criu.ts'
import { defaultEngine, isEngineOf, rememberProcess, runCommandOf, type Started, startContainer } from './engine.ts'
import { Gvisor, withOverhead } from './gvisor.ts'
import { gvisorConfig } from './gvisor-config.ts'
import { hasOwnName, keepGvisorMemory, restoreArguments, restoreFailure } from './gvisor-snapshot.ts'
import { makeLayer, overlay } from './layer.ts'
import { EgressNetwork, type Made } from './network.ts'
import type { OciOptions } from './options.ts'
import { closeWriteEnds, dropPipes, type OutputPipes, type PipeNames, PipeSource, pipeNames, readOutput } from './pipes.ts'
import { hardNofileLimit, probeOci } from './probe.ts'
import { parseState, Restores } from './restore.ts'
import { Scratch } from './scratch.ts'
import { MemorySnapshots, Turns, takeSnapshot } from './snapshot.ts'
import { Stages } from './stage.ts'
import { diskOf, layerFolder, unmount, Volume } from './volume.ts'

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
 * On disk, per sandbox, in `<dataDir>/oci/sandboxes/<id>/`: config.json, pid, process.json, run/ (the socket), and for writable roots layer
 * (upper/ and work/, see volume.ts) and rootfs/ (the mounted overlay). State of the runtime: `<dataDir>/oci/state`. Groups: /thaw/<tag>/<id>.
 */
export class OciDriver implements Driver {
  readonly kind = 'oci'
  readonly #memory: MemorySnapshots
  readonly #scratch: Scratch
  readonly #volume: Volume
  readonly #engine: string
  /** With engine runsc. */
  readonly #gvisor: Gvisor | null
  readonly #sandboxesDir: string
  readonly #stateDir: string
  readonly #cgroupBase: string
  readonly #cgroups: Cgroups
  readonly #network: EgressNetwork
  readonly #pipes = new PipeSource()
  readonly #maxNofile = hardNofileLimit()
  readonly #running = new Map<string, Running>()
  readonly #destroying = new Map<string, Promise<void>>()
  readonly #snapshots = new Turns()
  readonly #restores = new Restores()
  readonly #stages: Stages
  #probe: Promise<Probe> | undefined

  constructor(options: OciOptions) {
    const { engine = 'auto' } = options
    this.#engine = engine === 'auto' ? defaultEngine() : engine
    this.#sandboxesDir = join(options.dataDir, 'oci', 'sandboxes')
    const tag = createHash('sha256').update(options.dataDir).digest('hex').slice(0, 12)
    this.#cgroupBase = `/thaw/${tag}`
    this.#cgroups = openCgroups()
    const gvisorDir = join('/run/thaw', tag)
    this.#stateDir = engine === 'runsc' ? gvisorDir : join(options.dataDir, 'oci', 'state')
    this.#gvisor = engine === 'runsc' ? new Gvisor({ stateDir: gvisorDir, cgroups: this.#cgroups }) : null
    this.#network = new EgressNetwork(options.dataDir)
    this.#stages = new Stages(this.#cgroups, this.#cgroupBase)
    this.#memory = new MemorySnapshots(options.dataDir)
    this.#scratch = new Scratch(tag)
    const { dataDir, storageMib = null, diskMib = 10_240 } = options
    this.#volume = new Volume({ dataDir, storageMib, diskMib })
    this.#adoptNetworks()
  }

  /** Sandboxes of an earlier server hold their namespaces until they are destroyed. */
  #adoptNetworks(): void {
    if (!existsSync(this.#sandboxesDir)) return
    for (const id of readdirSync(this.#sandboxesDir)) {
      const made = readJson<Made>(join(this.#dir(id), 'network.json'))
      // Without one, or the server ended while it was written: a namespace that nobody holds is found by its name.
      if (made !== null) this.#network.adopt(id, made)
    }
  }

  get abilities(): Abilities {
    const memory = this.#gvisor === null ? !this.#memory.ruledOut : this.#gvisor.recent
    return { isolation: 'container', pause: true, snapshot: memory ? 'memory' : 'filesystem' }
  }

  probe(): Promise<Probe> {
    this.#probe ??= probeOci(this.#engine, this.#cgroups, this.#volume, this.#gvisor)
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
      { disks: true },
    )
  }

  async #start(spec: CreateSpec, signal: AbortSignal): Promise<void> {
    const dir = this.#dir(spec.id)
    const runDir = join(dir, 'run')
    mkdirSync(dir, { recursive: true, mode: 0o711 })
    mkdirSync(runDir, { mode: 0o700 })
    const owner = idShift + (spec.user === 'root' ? 0 : 1000)
    chownSync(runDir, owner, owner)
    const mounts = [...spec.mounts]
    if (spec.slot !== undefined) {
      mkdirSync(join(dir, 'slot'), { mode: 0o755 })
      mounts.push({ source: join(dir, 'slot'), target: spec.slot, readonly: true })
    }
    let netns: string | undefined
    // A clone of one with a network has this mount, too.
    if (spec.network === 'none' && spec.snapshot?.kind === 'memory') writeFileSync(join(dir, 'resolv.conf'), '', { mode: 0o644 })
    if (spec.network === 'egress') {
      const network = await this.#network.create(spec.id)
      netns = network.path
      writeFileSync(join(dir, 'network.json'), JSON.stringify(network.made), { mode: 0o600 })
      writeFileSync(join(dir, 'resolv.conf'), this.#network.resolvConf, { mode: 0o644 })
      mounts.push({ source: join(dir, 'resolv.conf'), target: '/etc/resolv.conf', readonly: true })
    }
    if (spec.root === 'writable') await makeLayer(this.#volume, dir, spec)

    const failed = new AbortController()
    const stop = AbortSignal.any([signal, failed.signal])
    const viaBridge = this.#gvisor !== null && spec.ready === 'agent'
    const named = spec.ready === 'started' || viaBridge ? Promise.resolve() : waitForName(join(runDir, socketNames[spec.ready]), stop)
    named.catch(() => undefined)
    // Without an agent the output goes on to us, through pipes, which a snapshot can hold.
    const pipes = spec.ready === 'runtime' ? await this.#pipes.take(owner) : null
    if (pipes !== null) writeFileSync(join(dir, 'pipes.json'), JSON.stringify(pipeNames(pipes)), { mode: 0o600 })
    const start = { spec: { ...spec, mounts }, dir, runDir, netns, pipes, signal }
    const started = spec.snapshot?.kind === 'memory' ? await this.#restore(start, spec.snapshot) : await this.#run(start)
    const exit = this.#watchExit(spec.id, started.process, started.silent)
    this.#running.set(spec.id, { process: started.process, exit })
    // A first process that ends before it is ready will never be.
    void exit.then((how) =>
      failed.abort(
        new ThawError('driver_failed', 'The first process of the sandbox ended before it was ready.', { details: { exit: how } }),
      ),
    )
    await named
    if (this.#gvisor === null || !viaBridge) return
    const isClone = spec.snapshot?.kind === 'memory' && !hasOwnName(spec.snapshot, spec.id)
    await Promise.all([
      this.#gvisor.bridge(spec.id).waitFor(insidePaths.agentSocket, stop),
      isClone ? this.#gvisor.nameHost(spec.id, stop) : undefined,
    ])
  }

  async #run({ spec, dir, runDir, netns, pipes, signal }: Start, snapshot?: SnapshotSource): Promise<Started> {
    const image = spec.image.image.path as string
    const rootfs = spec.root === 'writable' ? join(dir, 'rootfs') : image
    const gvisor = this.#gvisor
    const cgroup = this.#cgroup(spec.id)
    const config = (gvisor === null ? ociConfig : gvisorConfig)({
      spec,
      rootfs,
      runDir,
      netns,
      cgroupsPath: cgroup,
      swapLimit: this.#cgroups.swapLimit,
      maxNofile: this.#maxNofile,
    })
    writeFileSync(join(dir, 'config.json'), JSON.stringify(config), { mode: 0o600 })
    try {
      if (spec.root === 'writable') {
        const { source, type, options } = overlay(dir, image)
        await runCommand('mount', ['-t', type, '-o', options, source, rootfs])
      }
      gvisor?.prepareGroup(cgroup, spec.resources)
      signal.throwIfAborted()
    } catch (error) {
      if (pipes !== null) dropPipes(pipes)
      throw error
    }
    const start = snapshot === undefined ? ['run'] : restoreArguments(snapshot)
    const command =
      gvisor === null
        ? runCommandOf(this.#engine, this.#stateDir, dir)
        : [...gvisor.starter(spec, cgroup, join(dir, 'engine.log')), ...start]
    return startContainer({ engine: this.#engine, command, dir, spec, pipes })
  }

  /** The limits come after: CRIU works inside the group, and what it needs is not the sandbox's. */
  async #restore(start: Start, snapshot: SnapshotSource): Promise<Started> {
    if (this.#gvisor !== null) {
      return this.#run(start, snapshot).catch((error: unknown) => {
        throw restoreFailure(error)
      })
    }
    const { spec, dir, runDir, netns, pipes, signal } = start
    const silent = pipes === null ? Promise.resolve() : readOutput(pipes, (source, bytes) => spec.onOutput?.(source, bytes))
    const cgroup = this.#cgroup(spec.id)
    const image = spec.image.image.path as string
    const rootfs = join(dir, 'rootfs')
    try {
      const stage = this.#stages.take(netns === undefined ? 'own' : 'given', cgroup)
      if (stage === undefined) this.#cgroups.create(cgroup)
      const pid = await this.#restores.run({
        criu: await this.#memory.engine(),
        id: spec.id,
        dir,
        snapshotDir: snapshot.dir,
        state: parseState(snapshot.state),
        root: spec.root === 'writable' ? overlay(dir, image) : { source: image, type: 'none', options: 'bind' },
        rootfs,
        given: new Map([
          ['/etc/resolv.conf', join(dir, 'resolv.conf')],
          ...(spec.image.image.binds ?? []).map((mount) => [mount.target, mount.source] as const),
          ...spec.mounts.map((mount) => [mount.target, mount.source] as const),
          [insidePaths.runDir, runDir],
        ]),
        netns,
        stage,
        entrances: this.#cgroups.entrances(cgroup),
        pipes,
        signal,
      })
      this.#cgroups.limit(cgroup, spec.resources)
      const first = rememberProcess(dir)
      if (first === null) throw new ThawError('snapshot_failed', `The sandbox ended right after it was restored (process ${pid}).`)
      return { process: first, silent: silent.then(() => unknownExit) }
    } finally {
      if (pipes !== null) closeWriteEnds(pipes)
    }
  }

  /**
   * The first process is not our child, so nobody tells us its exit code; but its output pipes are ours, and the
   * kernel closes them when the last process of the container is gone. A process may close them earlier by itself.
   */
  async #watchExit(id: string, first: ProcessIdentity | null, silent: Started['silent']): Promise<Exit> {
    const exit = await silent
    if (exit.code === null && exit.signal === null && first !== null) await whenEnded(first)
    return { ...exit, out_of_memory: this.#oomKilled(id) }
  }

  async bind(id: string, { code, resources }: BindSpec): Promise<void> {
    if (code !== undefined) linkTree(code, join(this.#dir(id), 'slot'))
    this.#cgroups.limit(this.#cgroup(id), this.#gvisor === null ? resources : withOverhead(resources))
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
      // Those of gVisor are not those inside.
      processes: this.#gvisor === null ? this.#cgroups.processes(cgroup).length : null,
      out_of_memory: this.#oomKilled(id),
    }
  }

  async pause(id: string): Promise<void> {
    const cgroup = this.#alive(id)
    if (this.#gvisor === null) await this.#cgroups.freeze(cgroup, true)
    else await this.#gvisor.pause(id, cgroup)
  }

  async resume(id: string): Promise<void> {
    const cgroup = this.#alive(id)
    if (this.#gvisor === null) await this.#cgroups.freeze(cgroup, false)
    else await this.#gvisor.resume(id, cgroup)
  }

  async snapshot(id: string, target: SnapshotTarget): Promise<SnapshotResult> {
    const cgroup = this.#alive(id)
    const pid = this.#firstProcess(id)?.pid as number
    const dir = this.#dir(id)
    const layer = join(layerFolder(dir), 'upper')
    const upper = existsSync(layer) ? layer : undefined
    const disk = diskOf(dir) ?? undefined
    const gvisor = this.#gvisor
    if (gvisor !== null && target.kind === 'memory') {
      const hostSockets = readdirSync(join(dir, 'run')).length > 0
      return this.#snapshots.inTurn(id, () => keepGvisorMemory(target, { gvisor, id, cgroups: this.#cgroups, cgroup, upper, hostSockets }))
    }
    const pipes = readJson<PipeNames>(join(dir, 'pipes.json'))
    const subject = { cgroups: this.#cgroups, cgroup, pid, upper, disk, pipes, memory: this.#memory, scratch: this.#scratch }
    return this.#snapshots.inTurn(id, () => takeSnapshot(target, subject))
  }

  async dropSnapshot({ dir }: SnapshotSource): Promise<void> {
    this.#scratch.drop(join(dir, snapshotFolders.memory))
  }

  async fingerprint(): Promise<Record<string, string>> {
    return this.#gvisor?.fingerprint() ?? fingerprint(await this.#memory.engine())
  }

  /** The group of a sandbox that runs. */
  #alive(id: string): string {
    const first = this.#firstProcess(id)
    if (first === null || !isAlive(first)) throw new ThawError('driver_failed', `The sandbox ${id} does not run.`)
    return this.#cgroup(id)
  }

  async list(): Promise<string[]> {
    const groups = this.#cgroups.children(this.#cgroupBase).filter((name) => !this.#stages.owns(name))
    const ids = new Set<string>([...this.#network.list(), ...groups])
    for (const folder of [this.#sandboxesDir, this.#stateDir]) {
      if (existsSync(folder)) for (const name of readdirSync(folder)) ids.add(name)
    }
    return [...ids]
  }

  wait(id: string): Promise<Exit> {
    const running = this.#running.get(id)
    if (running !== undefined) return running.exit
    return this.#watchExit(id, this.#firstProcess(id), Promise.resolve(unknownExit))
  }

  dial(id: string, port: Port): Promise<Duplex> {
    if (this.#gvisor !== null && port === 'agent') return this.#gvisor.bridge(id).dial(insidePaths.agentSocket)
    return connectUnixSocket(join(this.#dir(id), 'run', socketNames[port]))
  }

  destroy(id: string): Promise<void> {
    const pending = this.#destroying.get(id) ?? this.#destroy(id).finally(() => this.#destroying.delete(id))
    this.#destroying.set(id, pending)
    return pending
  }

  async #destroy(id: string): Promise<void> {
    await this.#restores.stop(id)
    const cgroup = this.#cgroup(id)
    // Of an earlier server: its engine may still be at work on the container, and would finish it behind our back.
    const folders = [this.#dir(id), this.#cgroups.freezer(cgroup).folder]
    if (!this.#running.has(id)) for (const pid of findProcesses((candidate) => isEngineOf(candidate, folders))) killQuietly(pid)
    // What is frozen cannot end.
    if (this.#cgroups.frozen(cgroup)) await this.#cgroups.freeze(cgroup, false).catch(() => undefined)
    // The first process takes its pid namespace with it; the group also has a runtime that was caught half-way.
    if (!(await endGroup(this.#cgroups, cgroup))) throw new ThawError('driver_failed', `Processes of sandbox ${id} do not end.`)
    const first = this.#firstProcess(id)
    if (first !== null && isAlive(first)) {
      signalProcess(first, 'SIGKILL')
      await waitUntil(() => !isAlive(first), 5_000)
    }
    await this.#gvisor?.closeBridge(id)
    this.#cgroups.remove(cgroup)
    rmSync(join(this.#stateDir, id), { recursive: true, force: true })
    await this.#network.remove(id)
    const dir = this.#dir(id)
    await unmount(join(dir, 'rootfs'))
    await this.#volume.give(dir)
    rmSync(dir, { recursive: true, force: true })
    this.#running.delete(id)
  }

  async close(): Promise<void> {
    await this.#pipes.close()
    await this.#scratch.close()
    await this.#stages.close()
    await this.#gvisor?.closeBridges()
    await this.#network.dropSpares()
    const sandboxesLeft = (await this.list()).length > 0
    await this.#volume.close(sandboxesLeft)
    if (sandboxesLeft) return
    await this.#network.close()
    if (this.#gvisor !== null) rmSync(this.#stateDir, { recursive: true, force: true })
    if (existsSync('/sys/fs/cgroup')) this.#cgroups.remove(this.#cgroupBase)
  }

  #firstProcess(id: string): ProcessIdentity | null {
    const known = this.#running.get(id)?.process
    if (known !== undefined) return known
    // Of an earlier server, which wrote it down when it had started it.
    return readJson<ProcessIdentity>(join(this.#dir(id), 'process.json'))
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

/** What the steps of a start hand on. */
interface Start {
  spec: CreateSpec
  dir: string
  runDir: string
  netns: string | undefined
  pipes: OutputPipes | null
  signal: AbortSignal
}

const unknownExit = { code: null, signal: null }

function readJson<T>(path: string): T | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as T
  } catch {
    return null
  }
}
