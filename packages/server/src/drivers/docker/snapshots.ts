import { randomBytes } from 'node:crypto'
import { ThawError } from '@thaw/protocol'
import type { SnapshotResult, SnapshotSource, SnapshotTarget } from '../driver.ts'
import { pauseContainer, resumeContainer } from './containers.ts'
import { type Engine, statusOf } from './engine.ts'

const repository = 'thaw/snapshot'

/** Keeps the files of a container as an image of the engine. What lies in memory or in a mount is not part of it. */
export async function takeSnapshot(
  engine: Engine,
  container: string,
  target: SnapshotTarget,
  of: { engineId: string; owner: string },
): Promise<SnapshotResult> {
  if (target.kind !== 'filesystem') {
    throw new ThawError('snapshot_unsupported', 'The docker driver keeps files in snapshots, not memory.', {
      fix: 'Ask for kind "filesystem", or use a driver that keeps memory (thaw doctor).',
    })
  }
  const tag = randomBytes(12).toString('hex')
  const started = performance.now()
  if (target.stop) await pauseContainer(engine, container)
  try {
    await engine.call('POST', '/commit', {
      query: { container, repo: repository, tag, pause: true },
      body: { Labels: { 'thaw.owner': of.owner } },
      timeoutMs: null,
      signal: target.signal,
    })
  } catch (error) {
    if (target.stop) await resumeContainer(engine, container).catch(() => undefined)
    throw error
  }
  const frozenMs = performance.now() - started
  // A container that is killed while it is paused never runs again.
  if (target.stop) await engine.call('POST', `/containers/${container}/kill`, { query: { signal: 'SIGKILL' } })
  return { frozen_ms: frozenMs, fingerprint: { docker_engine: of.engineId }, state: { image: `${repository}:${tag}` } }
}

/** The image that a snapshot is. */
export async function imageOfSnapshot(engine: Engine, { state }: SnapshotSource): Promise<string> {
  const reference = referenceOf(state)
  if (reference === null) throw new ThawError('snapshot_incompatible', 'The snapshot was not taken by the docker driver.')
  try {
    await engine.call('GET', `/images/${reference}/json`)
    return reference
  } catch (error) {
    if (statusOf(error) !== 404) throw error
    throw new ThawError('snapshot_corrupt', 'The Docker engine no longer has the image of the snapshot.', { cause: error })
  }
}

/** Idempotent. */
export async function dropSnapshot(engine: Engine, { state }: SnapshotSource): Promise<void> {
  const reference = referenceOf(state)
  if (reference === null) return
  try {
    await engine.call('DELETE', `/images/${reference}`, { query: { force: true } })
  } catch (error) {
    if (statusOf(error) !== 404) throw error
  }
}

function referenceOf({ image }: SnapshotSource['state']): string | null {
  return typeof image === 'string' && image.startsWith(`${repository}:`) ? image : null
}
