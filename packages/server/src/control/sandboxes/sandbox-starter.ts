import { type BootMethod, type DriverKind, type NetworkMode, ThawError } from '@thaw/protocol'
import type { Driver } from '../../drivers/driver.ts'
import type { E2bFacet, SandboxRow, SandboxSpec, SnapshotRow } from '../../store/store.ts'
import type { Drivers } from '../drivers.ts'
import type { PoolKey } from '../pool.ts'
import type { Images, ReadyImage } from '../ports.ts'
import { AgentSandbox, type AgentSpec, driverResources } from './agent-sandbox.ts'

export interface SandboxStarterParts {
  drivers: Drivers
  images: Images
  pools: { take(key: PoolKey): AgentSandbox | undefined }
  agents: Agents
  startTimeoutMs: number
  /** A faster way of starting failed, and the next one is used. */
  onFallback: (method: BootMethod, error: unknown) => void
}

/** Limits of a sandbox that waits in a pool; `bind` sets those that it is to have. */
const pooledResources = { memory_mib: 512, cpus: 1, pids: 512 }

/** The programs of agents that sandboxes of this server have, by their SHA-256: what was started with one cannot change to another. */
export interface Agents {
  readonly current: string
  /** The folder that holds it. Throws `snapshot_incompatible` for one that this server does not have. */
  dir(digest: string): string
}

export interface SandboxPlan {
  driver: Driver
  image: ReadyImage
  /** The image as it was asked for. */
  ref: string
}

/** Starts the sandboxes of the API: from the pool, else from their image. */
export class SandboxStarter {
  readonly #parts: SandboxStarterParts

  constructor(parts: SandboxStarterParts) {
    this.#parts = parts
  }

  /** The agent that new sandboxes get. */
  get agent(): string {
    return this.#parts.agents.current
  }

  /** Which driver and image a request means; the image is on disk then. */
  async plan(request: { image?: string | undefined; driver?: DriverKind | undefined }, signal: AbortSignal): Promise<SandboxPlan> {
    const kind = request.driver ?? (await this.#parts.drivers.defaultKind())
    const driver = await this.#parts.drivers.usable(kind)
    const ref = request.image ?? (kind === 'process' ? 'host' : 'python')
    return { driver, ref, image: await this.#parts.images.ensure(ref, { signal }) }
  }

  /** A sandbox from the pool of this plan, or undefined. */
  pooled(plan: SandboxPlan, spec: SandboxSpec): AgentSandbox | undefined {
    // What cannot be changed while it runs has to be as it is in the pool.
    if (spec.resources.disk_mib !== undefined || spec.resources.gpus !== undefined) return undefined
    return this.#parts.pools.take(poolKey(plan, spec.network))
  }

  /** Gives a pooled sandbox its limits and its identity. It is destroyed when that fails. */
  async adoptPooled(pooled: AgentSandbox, plan: SandboxPlan, row: SandboxRow, signal: AbortSignal): Promise<boolean> {
    try {
      await pooled.driver.bind(pooled.id, { resources: driverResources(row.spec.resources) })
      await this.introduce(pooled, plan.image, row, signal)
      return true
    } catch (error) {
      await pooled.destroy()
      if (signal.aborted) throw error
      this.#parts.onFallback('pooled', error)
      return false
    }
  }

  async cold(plan: SandboxPlan, row: SandboxRow, signal: AbortSignal): Promise<AgentSandbox> {
    const image = await plan.driver.prepare(plan.image.source)
    const { resources, network } = row.spec
    const started = await AgentSandbox.start(
      plan.driver,
      { id: row.id, image, network, ...limitsOf(resources), agentDir: this.#parts.agents.dir(row.spec.agent) },
      { timeoutMs: this.#parts.startTimeoutMs, signal },
    )
    try {
      await this.introduce(started, plan.image, row, signal)
      return started
    } catch (error) {
      await started.destroy()
      throw error
    }
  }

  /** The image that a sandbox was made from. Throws `image_unavailable` where it is gone. */
  async imageOf(row: Pick<SandboxRow, 'image_digest' | 'spec'>): Promise<ReadyImage> {
    const image = row.image_digest === null ? null : await this.#parts.images.find(row.image_digest)
    if (image === null) throw new ThawError('image_unavailable', `The image ${row.spec.image} that the sandbox was made from is gone.`)
    return image
  }

  /** A sandbox that goes on from a snapshot, whose files were checked, with the identity of `row`. */
  async restore(
    snapshot: Pick<SnapshotRow, 'kind' | 'driver_state' | 'fingerprint'>,
    row: SandboxRow,
    dir: string,
    signal: AbortSignal,
  ): Promise<AgentSandbox> {
    const driver = await this.#parts.drivers.usable(row.driver)
    const image = await this.imageOf(row)
    if (snapshot.kind === 'memory') await checkFingerprint(driver, snapshot.fingerprint)
    const { resume_token, ...state } = snapshot.driver_state
    const started = await AgentSandbox.start(
      driver,
      {
        id: row.id,
        image: await driver.prepare(image.source),
        network: row.spec.network,
        ...limitsOf(row.spec.resources),
        agentDir: this.#parts.agents.dir(row.spec.agent),
        snapshot: { dir, kind: snapshot.kind, state },
        ...(typeof resume_token === 'string' ? { token: resume_token } : {}),
      },
      { timeoutMs: this.#parts.startTimeoutMs, signal },
    )
    try {
      if (snapshot.kind === 'memory') await started.agent.resumeFromSnapshot({ ...initOf(image, row), restored: true }, signal)
      else await this.introduce(started, image, row, signal)
      return started
    } catch (error) {
      await started.destroy()
      throw error
    }
  }

  /** Removes what a driver keeps of a snapshot outside its folder. */
  async dropSnapshot(snapshot: Pick<SnapshotRow, 'driver' | 'kind' | 'driver_state'>, dir: string): Promise<void> {
    const driver = this.#parts.drivers.all().find((candidate) => candidate.kind === snapshot.driver)
    const { resume_token: _, ...state } = snapshot.driver_state
    await driver?.dropSnapshot?.({ dir, kind: snapshot.kind, state })
  }

  /** Starts one for a pool. */
  async startForPool(key: PoolKey, signal: AbortSignal): Promise<AgentSandbox> {
    const driver = await this.#parts.drivers.usable(key.driver)
    const image = (await this.#parts.images.find(key.imageDigest)) ?? (await this.#parts.images.ensure(key.imageRef, { signal }))
    return AgentSandbox.start(
      driver,
      {
        image: await driver.prepare(image.source),
        network: key.network,
        resources: driverResources(pooledResources),
        agentDir: this.#parts.agents.dir(this.#parts.agents.current),
      },
      { timeoutMs: this.#parts.startTimeoutMs, signal },
    )
  }

  /** Tells the agent whose sandbox it is in. */
  async introduce(sandbox: AgentSandbox, image: ReadyImage, row: SandboxRow, signal: AbortSignal): Promise<void> {
    await sandbox.agent.init(initOf(image, row), signal)
  }
}

/** Throws `snapshot_incompatible` where memory cannot go on: on another kernel, processor or engine. */
async function checkFingerprint(driver: Driver, taken: Record<string, string>): Promise<void> {
  const now = (await driver.fingerprint?.()) ?? {}
  const changed = Object.keys(now).filter((name) => taken[name] !== now[name])
  if (changed.length === 0) return
  const words = changed.map((name) => `${name} was ${taken[name] ?? 'unknown'} and is ${now[name]}`)
  throw new ThawError('snapshot_incompatible', `The snapshot was taken where something else was: ${words.join(', ')}.`, {
    details: { snapshot: taken, now },
  })
}

export function initOf(image: Pick<ReadyImage, 'config'>, row: SandboxRow) {
  const { env, command, e2b } = row.spec
  const envVars = { ...image.config?.env, ...env, THAW_SANDBOX_ID: row.id }
  const [cmd, ...args] = command === undefined ? [] : argvOf(command)
  return {
    accessToken: row.access_token,
    hostname: row.id,
    timestamp: new Date().toISOString(),
    envVars,
    ...(e2b === undefined ? imageDefaults(image) : e2bDefaults(row, e2b)),
    ...(cmd === undefined ? {} : { main: { cmd, args, envs: {} } }),
  }
}

function imageDefaults({ config }: Pick<ReadyImage, 'config'>) {
  return config?.workdir ? { defaultWorkdir: config.workdir } : {}
}

/** Clients of E2B expect an account of their own, and to be in its home. The process driver has those of the host alone. */
function e2bDefaults({ driver }: SandboxRow, { user, workdir = '' }: E2bFacet) {
  return driver === 'process' ? { defaultWorkdir: workdir } : { defaultUser: user, makeUser: true, defaultWorkdir: workdir }
}

/** Text is for a shell. */
export function argvOf(command: string | string[]): string[] {
  return typeof command === 'string' ? ['/bin/sh', '-c', command] : command
}

function poolKey(plan: SandboxPlan, network: NetworkMode): PoolKey {
  return { driver: plan.driver.kind, imageDigest: plan.image.digest, imageRef: plan.ref, folder: 'agent', network, tmp_mib: 64 }
}

/** Throws where a request asks for what the driver cannot do. */
export function checkDriver(driver: Driver, spec: SandboxSpec): void {
  if ((spec.idle_ms !== null || spec.on_timeout === 'pause') && !driver.abilities.pause) {
    throw new ThawError('invalid_request', `The driver ${driver.kind} cannot pause sandboxes.`, {
      fix: 'Leave idle_ms and on_timeout out, or choose another driver.',
    })
  }
}

function limitsOf(resources: SandboxSpec['resources']): Pick<AgentSpec, 'resources' | 'gpus' | 'disk_mib'> {
  const { gpus, disk_mib } = resources
  return {
    resources: driverResources(resources),
    ...(gpus === undefined ? {} : { gpus }),
    ...(disk_mib === undefined ? {} : { disk_mib }),
  }
}
