import { newId, type SandboxResources } from '@thaw/protocol'
import { AgentClient } from '../../agent/agent.ts'
import { type CreateSpec, type Driver, insidePaths, type Prepared } from '../../drivers/driver.ts'
import { defaultPath } from '../launch.ts'

export type AgentSpec = Pick<CreateSpec, 'network' | 'resources' | 'gpus' | 'disk_mib' | 'snapshot'>

/** A started sandbox whose agent listens. It belongs to nobody yet, or to one sandbox of the API. */
export class AgentSandbox {
  readonly id: string
  readonly driver: Driver
  readonly agent: AgentClient
  /** From nothing to an agent that listens. */
  readonly bootMs: number
  /** Its first process has ended. */
  readonly lost: Promise<unknown>

  constructor(id: string, driver: Driver, bootMs: number, token?: string) {
    this.id = id
    this.driver = driver
    this.bootMs = bootMs
    this.agent = new AgentClient(() => driver.dial(id, 'agent'), token)
    this.lost = driver.wait(id)
  }

  /** Rejects with what the driver said, and leaves nothing behind. */
  static async start(
    driver: Driver,
    spec: AgentSpec & { image: Prepared; agentDir: string; id?: string; token?: string },
    options: { timeoutMs: number; signal?: AbortSignal | undefined },
  ): Promise<AgentSandbox> {
    const { image, agentDir, id = newId('sbx'), token, ...rest } = spec
    const full: CreateSpec = {
      ...rest,
      id,
      image,
      argv: [insidePaths.agent, 'serve', '--socket', insidePaths.agentSocket],
      env: { PATH: defaultPath, HOME: '/root', LANG: 'C.UTF-8' },
      cwd: '/',
      mounts: [{ source: agentDir, target: insidePaths.runtimeDir, readonly: true }],
      user: 'root',
      root: 'writable',
      ready: 'agent',
      start_timeout_ms: options.timeoutMs,
    }
    const { boot_ms } = await driver.create(full, options.signal)
    return new AgentSandbox(id, driver, boot_ms, token)
  }

  async destroy(): Promise<void> {
    this.agent.close()
    await this.driver.destroy(this.id)
  }
}

/** A sandbox's /tmp lies in its writable layer; `tmp_mib` bounds its shared memory (/dev/shm). */
export function driverResources(resources: SandboxResources): CreateSpec['resources'] {
  const { memory_mib, cpus, pids } = resources
  return { memory_mib, cpus, pids, tmp_mib: Math.max(1, Math.floor(memory_mib / 2)) }
}
