import { ThawError } from '@thaw/protocol'
import type { SandboxStatus } from '../driver.ts'
import { type Engine, statusOf } from './engine.ts'

/** What is used of GET /containers/{id}/json. */
export interface ContainerState {
  Id: string
  State: { Status: string; Running: boolean; Paused: boolean; Pid: number; ExitCode: number; OOMKilled: boolean }
  Config: { Labels: Record<string, string> | null }
}

export function inspectContainer(engine: Engine, container: string): Promise<ContainerState> {
  return engine.call<ContainerState>('GET', `/containers/${container}/json`)
}

/** What the container is now; null where the engine knows none of this name. */
export async function statusOfContainer(engine: Engine, container: string): Promise<SandboxStatus | null> {
  try {
    const { State } = await inspectContainer(engine, container)
    const usage = State.Running ? await usageOf(engine, container) : { memory_bytes: null, cpu_ms: null, processes: null }
    return {
      state: !State.Running ? 'exited' : State.Paused ? 'paused' : 'running',
      pid: State.Running ? State.Pid : null,
      ...usage,
      out_of_memory: State.OOMKilled,
    }
  } catch (error) {
    if (statusOf(error) === 404) return null
    throw error
  }
}

async function usageOf(engine: Engine, container: string): Promise<Pick<SandboxStatus, 'memory_bytes' | 'cpu_ms' | 'processes'>> {
  const stats = await engine.call<{
    memory_stats?: { usage?: number }
    cpu_stats?: { cpu_usage?: { total_usage?: number } }
    pids_stats?: { current?: number }
  }>('GET', `/containers/${container}/stats`, { query: { stream: false, 'one-shot': true } })
  const nanoseconds = stats.cpu_stats?.cpu_usage?.total_usage
  return {
    memory_bytes: stats.memory_stats?.usage ?? null,
    cpu_ms: nanoseconds === undefined ? null : Math.round(nanoseconds / 1e6),
    processes: stats.pids_stats?.current ?? null,
  }
}

/** Idempotent. */
export function pauseContainer(engine: Engine, container: string): Promise<void> {
  return settle(engine, container, 'pause', (state) => state.Paused)
}

/** Idempotent. */
export function resumeContainer(engine: Engine, container: string): Promise<void> {
  return settle(engine, container, 'unpause', (state) => state.Running && !state.Paused)
}

/** An engine refuses what is so already, in words of its own. */
async function settle(engine: Engine, container: string, verb: string, isSo: (state: ContainerState['State']) => boolean): Promise<void> {
  try {
    await engine.call('POST', `/containers/${container}/${verb}`)
  } catch (error) {
    if (statusOf(error) !== null && statusOf(error) !== 404 && isSo((await inspectContainer(engine, container)).State)) return
    throw error
  }
}

const removalTries = 100
const removalPauseMs = 50

/** Idempotent. A removal that goes on already is waited for. */
export async function removeContainer(engine: Engine, container: string): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      // What is paused may not end before it is resumed, depending on the version of the engine.
      if (tries === 0) await engine.call('POST', `/containers/${container}/unpause`).catch(() => undefined)
      await engine.call('DELETE', `/containers/${container}`, { query: { force: true, v: true } })
      return
    } catch (error) {
      if (statusOf(error) === 404) return
      if (statusOf(error) !== 409 || tries >= removalTries) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, removalPauseMs))
  }
}

/** An image without the program that is to start is the image's fault, not the engine's. */
export function startFailure(error: unknown, program: string): unknown {
  const said = error instanceof ThawError ? error.message : ''
  if (!/executable file not found|exec: .*no such file or directory|exec.*no such file/.test(said)) return error
  return new ThawError('runtime_unsupported', `The image has no ${program}.`, { details: (error as ThawError).details, cause: error })
}
