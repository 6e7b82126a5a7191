import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { type Probe, ThawError } from '@thaw/protocol'
import type { Bridge } from '../bridge.ts'
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
  type SnapshotResult,
  type SnapshotSource,
  type SnapshotTarget,
  socketNames,
} from '../driver.ts'
import { identify, type ProcessIdentity } from '../processes.ts'
import { connectUnixSocket, waitForName } from '../socket.ts'
import { startWithin } from '../starting.ts'
import { openBridge } from './bridge.ts'
import { type BuildRequest, buildImage } from './builds.ts'
import { containerConfig, limitsOf } from './container.ts'
import { inspectContainer, pauseContainer, removeContainer, resumeContainer, startFailure, statusOfContainer } from './containers.ts'
import { Debts } from './debts.ts'
import { Engine, isUnreachable, statusOf } from './engine.ts'
import { exitOf, waitFor } from './exit.ts'
import { type EngineFacts, readFacts } from './facts.ts'
import { gpuRequest } from './gpu.ts'
import { EngineImages } from './images.ts'
import { CopiedFiles, SharedFiles, type Sharing } from './mounts.ts'
import { BridgeNetwork } from './network.ts'
import { probeDocker } from './probe.ts'
import { sharesFiles } from './sharing.ts'
import { dropSnapshot, imageOfSnapshot, takeSnapshot } from './snapshots.ts'
import { demultiplex } from './streams.ts'

export interface DockerOptions {
  /** Everything of this driver lies below it. */
  dataDir: string
  /** unix:///path or tcp://host:port. */
  host: string
  /** Folder with ca.pem, cert.pem and key.pem, for an engine that speaks TLS. */
  certDir?: string | null
  /** `never`: treat the engine as a remote one, also where it could mount our files. */
  sharedFiles?: 'auto' | 'never'
  /** The agent's program on this host, which is the way into containers of a remote engine. */
  agent?: string | undefined
}

/** What is kept on disk of a sandbox, for the next server. */
interface Kept extends Pick<CreateSpec, 'mounts' | 'user'> {
  slot: string | null
}

/** What this process knows of a sandbox that it started itself. */
interface Running {
  exit: Promise<Exit>
  process: ProcessIdentity | null
}

/** What is known of the engine. */
interface Session {
  facts: EngineFacts
  shared: boolean
  sharing: Sharing
}

/**
 * Containers of a Docker engine, of this host or another. An engine that sees our files is given them as mounts, and its
 * sockets are ours; to another one everything is copied, and its sockets are reached through the engine's own API.
 *
 * Containers are named thaw-<tag>-<id> and labelled with the tag of the data directory. On disk, per sandbox, in
 * `<dataDir>/docker/<id>/`: sandbox.json, and where files are shared run/ (the sockets) and slot/.
 */
export class DockerDriver implements Driver {
  readonly kind = 'docker'
  readonly abilities = { isolation: 'container', pause: true, snapshot: 'filesystem' } as const
  readonly engine: Engine
  readonly #options: DockerOptions
  readonly #dir: string
  readonly #tag: string
  readonly #network: BridgeNetwork
  readonly #images: EngineImages
  readonly #running = new Map<string, Running>()
  readonly #bridges = new Map<string, Bridge>()
  readonly #destroying = new Map<string, Promise<void>>()
  readonly #debts = new Debts((id) => this.destroy(id))
  #session: Promise<Session> | undefined
  #probe: Promise<Probe> | undefined

  constructor(options: DockerOptions) {
    this.#options = options
    this.#dir = join(options.dataDir, 'docker')
    this.#tag = createHash('sha256').update(options.dataDir).digest('hex').slice(0, 10)
    this.engine = new Engine({ host: options.host, certDir: options.certDir ?? null })
    this.#network = new BridgeNetwork(this.engine, this.#tag)
    this.#images = new EngineImages(this.engine)
  }

  probe(): Promise<Probe> {
    this.#probe ??= probeDocker(this.engine, this.#network, () => this.#open())
    return this.#probe
  }

  async prepare(image: ImageSource): Promise<Prepared> {
    await this.#images.bring(image, (await this.#open()).facts)
    return { image }
  }

  create(spec: CreateSpec, signal?: AbortSignal): Promise<Handle> {
    return startWithin(
      spec,
      signal,
      (stop) => this.#start(spec, stop),
      () => this.destroy(spec.id),
      { gpus: true },
    )
  }

  async #start(spec: CreateSpec, signal: AbortSignal): Promise<void> {
    const session = await this.#open()
    const devices = gpuRequest(spec.gpus, session.facts.info)
    const image = await this.#imageOf(spec, session)
    mkdirSync(this.#sandboxDir(spec.id), { recursive: true, mode: process.getuid?.() === 0 ? 0o711 : 0o700 })
    const kept: Kept = { slot: spec.slot ?? null, mounts: spec.mounts, user: spec.user }
    writeFileSync(join(this.#sandboxDir(spec.id), 'sandbox.json'), JSON.stringify(kept), { mode: 0o600 })
    const container = this.#container(spec.id)
    const body = containerConfig({
      spec,
      image,
      labels: this.#labels(spec.id),
      mounts: session.sharing.mounts(spec),
      network: spec.network === 'egress' ? this.#network.name : 'none',
      readonlyRoot: session.sharing.readonlyRoot(spec),
      resolvers: session.shared ? this.#network.resolvers : [],
      devices,
      facts: session.facts,
      ownRunDir: !session.shared,
    })
    signal.throwIfAborted()
    // Given up half-way the engine would go on and leave a container that nobody knows of: these calls are waited for.
    await this.#createContainer(container, body, spec, session)
    signal.throwIfAborted()
    await session.sharing.fill(container, spec, signal)
    signal.throwIfAborted()
    const running = await this.#run(spec, container, session)
    this.#running.set(spec.id, running)
    const failed = new AbortController()
    // A first process that ends before it is ready will never be.
    running.exit.then(
      (exit) =>
        failed.abort(new ThawError('driver_failed', 'The first process of the sandbox ended before it was ready.', { details: { exit } })),
      (error) => failed.abort(error),
    )
    await this.#ready(spec, session, AbortSignal.any([signal, failed.signal]))
  }

  /** What somebody removed from the engine behind our back is made anew, once. */
  async #createContainer(container: string, body: object, spec: CreateSpec, session: Session): Promise<void> {
    const create = async () => {
      if (spec.network === 'egress') await this.#network.setUp()
      await this.engine.call('POST', '/containers/create', { query: { name: container }, body })
    }
    try {
      await create()
    } catch (error) {
      if (statusOf(error) !== 404) throw error
      this.#network.forget()
      this.#images.forget()
      await this.#imageOf(spec, session)
      await create()
    }
  }

  async #imageOf(spec: CreateSpec, { facts }: Session): Promise<string> {
    if (spec.snapshot === undefined) return this.#images.bring(spec.image.image, facts)
    return imageOfSnapshot(this.engine, spec.snapshot)
  }

  /** Listens before it starts: nothing that is printed and no exit, however fast, is missed. */
  async #run(spec: CreateSpec, container: string, { shared }: Session): Promise<Running> {
    const attached = spec.ready === 'agent' || spec.onOutput === undefined ? null : await this.#attach(container, spec.onOutput)
    const first = waitFor(this.engine, container, 'next-exit')
    first.catch(() => undefined)
    try {
      await this.engine.call('POST', `/containers/${container}/start`)
    } catch (error) {
      throw startFailure(error, spec.argv[0] ?? '')
    }
    const known = shared ? await this.#localProcess(container) : null
    const exit = this.#ended(container, spec, { first, output: attached?.closed ?? Promise.resolve(), process: () => known })
    exit.catch(() => undefined)
    return { exit, process: known }
  }

  async #attach(container: string, onOutput: NonNullable<CreateSpec['onOutput']>): Promise<{ closed: Promise<void> }> {
    const stream = await this.engine.hijack(`/containers/${container}/attach`, { query: { stream: 1, stdout: 1, stderr: 1 } })
    unref(stream)
    stream.on('data', demultiplex(onOutput))
    return { closed: new Promise((resolve) => stream.once('error', () => resolve()).once('close', () => resolve())) }
  }

  async #ready(spec: CreateSpec, { shared }: Session, signal: AbortSignal): Promise<void> {
    if (spec.ready === 'started') return
    const name = socketNames[spec.ready]
    if (shared) await waitForName(join(this.#sandboxDir(spec.id), 'run', name), signal)
    else await this.#bridge(spec.id).waitFor(`${insidePaths.runDir}/${name}`, signal)
  }

  /** The first process, where its number is one of this host. */
  async #localProcess(container: string): Promise<ProcessIdentity | null> {
    const { Id, State } = await inspectContainer(this.engine, container)
    try {
      return readFileSync(`/proc/${State.Pid}/cgroup`, 'latin1').includes(Id) ? identify(State.Pid) : null
    } catch {
      return null
    }
  }

  async bind(id: string, { code, resources }: BindSpec): Promise<void> {
    const { sharing } = await this.#open()
    const { slot } = this.#kept(id)
    await this.engine.call('POST', `/containers/${this.#container(id)}/update`, { body: limitsOf(resources) })
    if (code !== undefined && slot !== null) await sharing.fillSlot(this.#container(id), id, slot, code)
  }

  async inspect(id: string): Promise<SandboxStatus | null> {
    const status = await statusOfContainer(this.engine, this.#container(id))
    if (status !== null || !existsSync(this.#sandboxDir(id))) return status
    // Half-made, or lost by the engine.
    return { state: 'exited', pid: null, memory_bytes: null, cpu_ms: null, processes: null, out_of_memory: false }
  }

  pause(id: string): Promise<void> {
    return pauseContainer(this.engine, this.#container(id))
  }

  resume(id: string): Promise<void> {
    return resumeContainer(this.engine, this.#container(id))
  }

  async snapshot(id: string, target: SnapshotTarget): Promise<SnapshotResult> {
    const { facts } = await this.#open()
    return takeSnapshot(this.engine, this.#container(id), target, { engineId: facts.info.ID, owner: this.#tag })
  }

  dropSnapshot(source: SnapshotSource): Promise<void> {
    return dropSnapshot(this.engine, source)
  }

  async list(): Promise<string[]> {
    const ids = new Set(existsSync(this.#dir) ? readdirSync(this.#dir) : [])
    try {
      const filters = JSON.stringify({ label: [`thaw.owner=${this.#tag}`] })
      const found = await this.engine.call<{ Labels: Record<string, string> }[]>('GET', '/containers/json', {
        query: { all: true, filters },
      })
      for (const { Labels } of found) if (Labels['thaw.id'] !== undefined) ids.add(Labels['thaw.id'])
    } catch (error) {
      // Where there is no engine and never was one there is nothing.
      if (isUnreachable(error) === null) throw error
    }
    return [...ids]
  }

  wait(id: string): Promise<Exit> {
    const running = this.#running.get(id)
    if (running !== undefined) return running.exit
    const container = this.#container(id)
    return this.#ended(container, this.#kept(id), { first: null, output: Promise.resolve(), process: () => null })
  }

  /** The exit of a container, once what it wrote is here. */
  async #ended(container: string, spec: Pick<CreateSpec, 'mounts' | 'user'>, watch: Parameters<typeof exitOf>[2]): Promise<Exit> {
    const exit = await exitOf(this.engine, container, watch)
    const { sharing } = await this.#open()
    // Destroyed meanwhile: nobody wants it any more.
    await sharing.collect(container, spec).catch((error) => {
      if (statusOf(error) !== 404) throw error
    })
    return exit
  }

  async dial(id: string, port: Port): Promise<Duplex> {
    const { shared } = await this.#open()
    if (shared) return connectUnixSocket(join(this.#sandboxDir(id), 'run', socketNames[port]))
    return this.#bridge(id).dial(`${insidePaths.runDir}/${socketNames[port]}`)
  }

  destroy(id: string): Promise<void> {
    const pending = this.#destroying.get(id) ?? this.#destroy(id).finally(() => this.#destroying.delete(id))
    this.#destroying.set(id, pending)
    return pending
  }

  async #destroy(id: string): Promise<void> {
    this.#bridges.get(id)?.close()
    this.#bridges.delete(id)
    try {
      await removeContainer(this.engine, this.#container(id))
    } catch (error) {
      // Without an engine there is no container of an id that this data directory knows nothing of.
      if (isUnreachable(error) === null) throw error
      if (existsSync(this.#sandboxDir(id))) {
        this.#debts.add(id)
        throw error
      }
    }
    this.#debts.remove(id)
    rmSync(this.#sandboxDir(id), { recursive: true, force: true })
    this.#running.delete(id)
  }

  async close(): Promise<void> {
    await this.#debts.close()
    for (const bridge of this.#bridges.values()) bridge.close()
    this.#bridges.clear()
    if (!existsSync(this.#dir)) return
    try {
      if ((await this.list()).length > 0) return
      await this.#network.remove()
      rmSync(this.#dir, { recursive: true, force: true })
    } catch (error) {
      // Its containers have ended with it; the next start finds what is left.
      if (isUnreachable(error) === null) throw error
    }
  }

  /** Builds an image from a Dockerfile, as the port of the image catalog wants it. RUN steps have the network of sandboxes. */
  async buildImage(request: Omit<BuildRequest, 'network'>): Promise<void> {
    const { usable, missing } = await this.probe()
    if (!usable) {
      throw new ThawError('driver_unavailable', `Images are built by a Docker engine: ${missing.map(({ what }) => what).join(', ')}.`, {
        fix: missing.map(({ fix }) => fix).join(' '),
      })
    }
    await this.#network.setUp()
    mkdirSync(this.#dir, { recursive: true, mode: 0o711 })
    await buildImage(this.engine, { ...request, network: this.#network.name })
  }

  /** What the engine is, asked once, and again after it could not be asked. */
  #open(): Promise<Session> {
    this.#session ??= this.#look().catch((error) => {
      this.#session = undefined
      throw error
    })
    return this.#session
  }

  async #look(): Promise<Session> {
    const facts = await readFacts(this.engine)
    const shared = this.#options.sharedFiles !== 'never' && facts.sameKernel && (await sharesFiles(this.engine, this.#options.dataDir))
    if (shared) return { facts, shared, sharing: new SharedFiles((id) => this.#sandboxDir(id), facts) }
    const { agent } = this.#options
    if (agent === undefined || !existsSync(agent)) {
      throw new ThawError('driver_unavailable', 'This Docker engine does not see the files of this host, and the agent is not built.', {
        fix: 'Run `npm run bootstrap`, which builds it.',
      })
    }
    return { facts, shared, sharing: new CopiedFiles(this.engine, facts, { 'thaw.owner': this.#tag }, agent) }
  }

  #bridge(id: string): Bridge {
    const bridge = this.#bridges.get(id) ?? openBridge(this.engine, this.#container(id))
    this.#bridges.set(id, bridge)
    return bridge
  }

  #kept(id: string): Kept {
    try {
      return JSON.parse(readFileSync(join(this.#sandboxDir(id), 'sandbox.json'), 'utf8')) as Kept
    } catch {
      return { slot: null, mounts: [], user: 'function' }
    }
  }

  #labels(id: string): Record<string, string> {
    return { 'thaw.owner': this.#tag, 'thaw.id': id }
  }

  #container(id: string): string {
    return `thaw-${this.#tag}-${id}`
  }

  #sandboxDir(id: string): string {
    return join(this.#dir, id)
  }
}

/** The connection alone keeps nobody from ending. */
function unref(stream: Duplex): void {
  ;(stream as Duplex & { unref?: () => void }).unref?.()
}
