import { chmodSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { z } from 'zod'
import { runCommand } from '../command.ts'
import type { SnapshotResult, SnapshotSource, SnapshotTarget } from '../driver.ts'
import type { Cgroups } from './cgroup.ts'
import { snapshotFolders } from './checkpoint.ts'
import type { Gvisor } from './gvisor.ts'
import { endFrozen } from './snapshot.ts'

const stateSchema = z.object({
  version: z.literal(1),
  engine: z.literal('runsc'),
  /** Sizes of the files of the memory image, in bytes: one that was cut off must not reach gVisor. */
  files: z.record(z.string(), z.number()),
  /** That of the sandbox. Older snapshots do not tell. */
  hostname: z.string().optional(),
})

/** A disk that writes 20 MiB a second, and a minute; as long for a restore. */
const baseLimitMs = 60_000
const bytesPerMs = (20 * 1024 * 1024) / 1000

/** A sandbox of gVisor that is to be kept. */
export interface GvisorSubject {
  gvisor: Gvisor
  id: string
  cgroups: Cgroups
  cgroup: string
  /** Its writable layer. */
  upper: string | undefined
  /** It listens on sockets of the host. */
  hostSockets: boolean
}

/**
 * Keeps the memory and the files of a sandbox; see `Driver.snapshot`. gVisor's kernel writes its own state, with all processes
 * inside; meanwhile they do not run, so files and memory belong together. When it rejects, the folder is as empty as it was.
 */
export async function keepGvisorMemory(target: SnapshotTarget, subject: GvisorSubject): Promise<SnapshotResult> {
  const { gvisor, id, cgroups, cgroup, upper } = subject
  if (!gvisor.recent || subject.hostSockets)
    throw new ThawError('snapshot_unsupported', 'gVisor keeps the memory of sandboxes with an agent only.', {
      fix: 'Let functions start without snapshots, or set oci.engine of the server to runc.',
    })
  const limit = AbortSignal.timeout(Math.round(baseLimitMs + (cgroups.memoryBytes(cgroup) ?? 0) / bytesPerMs))
  const signal = target.signal === undefined ? limit : AbortSignal.any([target.signal, limit])
  const memory = join(target.dir, snapshotFolders.memory)
  const wasPaused = cgroups.frozen(cgroup)
  const frozenSince = performance.now()
  const files: Record<string, number> = {}
  let ended = false
  try {
    signal.throwIfAborted()
    mkdirSync(memory, { mode: 0o700 })
    await gvisor.closeBridge(id)
    // Paused inside it stays, so that nothing but gVisor itself runs.
    if (wasPaused) await cgroups.freeze(cgroup, false)
    else await gvisor.control(id, ['pause'])
    if (upper !== undefined) {
      const args = ['-a', '--reflink=auto', upper, join(target.dir, snapshotFolders.upper)]
      await runCommand('cp', args, { timeoutMs: 3_600_000, signal })
    }
    await gvisor.control(id, ['checkpoint', '--leave-running', '--image-path', memory], { timeoutMs: 3_600_000, signal })
    for (const name of readdirSync(memory)) {
      chmodSync(join(memory, name), 0o600)
      files[name] = statSync(join(memory, name)).size
    }
    if (target.stop) {
      await cgroups.freeze(cgroup, true)
      await endFrozen(cgroups, cgroup)
      ended = true
    }
  } catch (error) {
    for (const name of readdirSync(target.dir)) rmSync(join(target.dir, name), { recursive: true, force: true })
    if (target.signal?.aborted) throw target.signal.reason
    const details = error instanceof ThawError ? error.details : undefined
    if (/No space left on device/i.test(JSON.stringify(details ?? '')))
      throw new ThawError('disk_full', undefined, { details, cause: error })
    throw new ThawError('snapshot_failed', 'The sandbox could not be written to a snapshot; it goes on.', { details, cause: error })
  } finally {
    if (wasPaused && !ended) await cgroups.freeze(cgroup, true)
    // Where it was not reached, or ended, there is nothing to let go on.
    else if (!ended) await gvisor.control(id, ['resume']).catch(() => undefined)
  }
  const state = { version: 1, engine: 'runsc', files, hostname: id }
  return { frozen_ms: performance.now() - frozenSince, fingerprint: gvisor.fingerprint(), state }
}

/** Words of the command line of a restore, for `starter`. Throws `snapshot_incompatible` for what another engine wrote. */
export function restoreArguments(source: SnapshotSource): string[] {
  const parsed = stateSchema.safeParse(source.state)
  if (!parsed.success)
    throw new ThawError('snapshot_incompatible', 'The snapshot was written by another engine than gVisor, or another version of thaw.')
  const memory = join(source.dir, snapshotFolders.memory)
  for (const [name, bytes] of Object.entries(parsed.data.files))
    if (statSync(join(memory, name), { throwIfNoEntry: false })?.size !== bytes)
      throw new ThawError('snapshot_corrupt', `The file ${name} of the snapshot is not as long as it was.`)
  return ['restore', '--image-path', memory]
}

/** Whether a sandbox that was restored has its own host name: it is the one that was kept, not a clone. */
export function hasOwnName(source: SnapshotSource, id: string): boolean {
  return stateSchema.safeParse(source.state).data?.hostname === id
}

/** The error for callers of a restore that gVisor refused. Whatever it finds wrong while it reads an image, the image is not whole. */
export function restoreFailure(error: unknown): unknown {
  if (!(error instanceof ThawError) || error.code !== 'driver_failed') return error
  const isImage = /restoring container|statefile/.test(JSON.stringify(error.details ?? ''))
  return new ThawError(isImage ? 'snapshot_corrupt' : 'snapshot_failed', 'The snapshot could not be restored.', {
    details: error.details,
    cause: error,
  })
}
