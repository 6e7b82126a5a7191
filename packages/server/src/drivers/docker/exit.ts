import type { Exit } from '../driver.ts'
import { isAlive, type ProcessIdentity } from '../processes.ts'
import { inspectContainer } from './containers.ts'
import { type Engine, isUnreachable, statusOf } from './engine.ts'

/** How long the last output of a program that ended is waited for. */
const lastOutputMs = 1000
/** An engine that is away for longer has lost its sandboxes, as far as we can use them. */
const absenceMs = 30_000
const retryMs = 100

/**
 * Resolves when the container has ended. The answer of the engine may break off, because it is restarted: then it is asked
 * again, until it says so, knows nothing of the container, or the process is seen to be gone.
 */
export async function exitOf(
  engine: Engine,
  container: string,
  watch: { first: Promise<number> | null; output: Promise<unknown>; process: () => ProcessIdentity | null },
): Promise<Exit> {
  let code: number | null = null
  try {
    code = watch.first === null ? await waitFor(engine, container, 'not-running') : await watch.first
  } catch {
    code = await afterLoss(engine, container, watch.process)
  }
  await Promise.race([watch.output, new Promise((resolve) => setTimeout(resolve, lastOutputMs).unref())])
  const oom = await inspectContainer(engine, container).then(
    ({ State }) => State.OOMKilled,
    () => false,
  )
  return { code, signal: null, out_of_memory: oom }
}

/** The exit code of a container, once it has one. `next-exit` also waits for one that has not started yet. */
export function waitFor(engine: Engine, container: string, condition: 'next-exit' | 'not-running'): Promise<number> {
  return engine
    .call<{ StatusCode: number }>('POST', `/containers/${container}/wait`, { query: { condition }, timeoutMs: null })
    .then(({ StatusCode }) => StatusCode)
}

async function afterLoss(engine: Engine, container: string, process: () => ProcessIdentity | null): Promise<number | null> {
  let lostAt = performance.now()
  for (;;) {
    try {
      const { State } = await inspectContainer(engine, container)
      if (!State.Running) return State.ExitCode
      lostAt = performance.now()
      return await waitFor(engine, container, 'not-running')
    } catch (error) {
      if (statusOf(error) === 404) return null
      if (isUnreachable(error) === null) throw error
      const known = process()
      if ((known !== null && !isAlive(known)) || performance.now() - lostAt > absenceMs) return null
    }
    await new Promise((resolve) => setTimeout(resolve, retryMs).unref())
  }
}
