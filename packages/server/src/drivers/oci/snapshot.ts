import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import type { SnapshotResult, SnapshotTarget } from '../driver.ts'
import { Bystanders } from './bystanders.ts'
import { type Cgroups, endGroup, killQuietly } from './cgroup.ts'
import { type CheckpointInput, checkpoint, snapshotFolders } from './checkpoint.ts'
import { type Criu, criuInstalled, fingerprint, openCriu } from './criu.ts'
import type { PipeNames } from './pipes.ts'
import type { Scratch } from './scratch.ts'
import { freezeOutsideVfork } from './vfork.ts'

/** The engine of memory snapshots, looked for when it is first needed: the start of a server does not wait for it. */
export class MemorySnapshots {
  readonly #dataDir: string
  #opened: Promise<Criu | string> | undefined
  /** Known not to work here. */
  ruledOut = !criuInstalled()

  constructor(dataDir: string) {
    this.#dataDir = dataDir
  }

  /** Throws `snapshot_unsupported` where there is none that works. */
  async engine(): Promise<Criu> {
    this.#opened ??= openCriu(this.#dataDir)
    const opened = await this.#opened
    if (typeof opened !== 'string') return opened
    this.ruledOut = true
    throw new ThawError('snapshot_unsupported', `Memory snapshots cannot be taken on this machine: ${opened}.`)
  }
}

/** Snapshots of one sandbox are taken one after the other: only one CRIU can hold its processes. */
export class Turns {
  /** The last one of each; it never rejects. */
  readonly #last = new Map<string, Promise<void>>()

  async inTurn<T>(id: string, work: () => Promise<T>): Promise<T> {
    const done = (this.#last.get(id) ?? Promise.resolve()).then(work)
    const settled = done.then(
      () => undefined,
      () => undefined,
    )
    this.#last.set(id, settled)
    try {
      return await done
    } finally {
      if (this.#last.get(id) === settled) this.#last.delete(id)
    }
  }
}

/** The sandbox that is to be kept. */
export interface SnapshotSubject {
  cgroups: Cgroups
  cgroup: string
  pid: number
  /** Its writable layer, and the disk that this lies on if it has one. */
  upper: string | undefined
  disk: string | undefined
  pipes: PipeNames | null
  memory: MemorySnapshots
  scratch: Scratch
}

/** The longest that a snapshot may take: a disk that writes 20 MiB a second, and a minute. */
const baseLimitMs = 60_000
const bytesPerMs = (20 * 1024 * 1024) / 1000

/** See `Driver.snapshot`. When it rejects, the folder is as empty as it was. */
export async function takeSnapshot(target: SnapshotTarget, subject: SnapshotSubject): Promise<SnapshotResult> {
  const { cgroups, cgroup, upper } = subject
  if (target.kind === 'filesystem' && upper === undefined)
    throw new ThawError('snapshot_unsupported', 'The sandbox has no files of its own that could be kept.', {
      fix: 'Start it with a writable root file system.',
    })
  const criu = target.kind === 'memory' ? await subject.memory.engine() : null
  const wasFrozen = cgroups.frozen(cgroup)
  const before = new Bystanders(cgroups.processes(cgroup), subject.pid)
  const memoryBytes = cgroups.memoryBytes(cgroup) ?? 0
  const limit = AbortSignal.timeout(Math.round(baseLimitMs + memoryBytes / bytesPerMs))
  const signal = target.signal === undefined ? limit : AbortSignal.any([target.signal, limit])
  const pausing = {
    freeze: () => (criu === null ? cgroups.freeze(cgroup, true) : freezeOutsideVfork(cgroups, cgroup)),
    // With `stop` it ends as it was at this moment; if it cannot be kept, it goes on.
    thaw: async () => {
      if (!wasFrozen && !target.stop) await cgroups.freeze(cgroup, false)
    },
  }
  try {
    signal.throwIfAborted()
    const result =
      criu === null
        ? await keepFiles(upper as string, target.dir, pausing, signal)
        : await keepMemory({
            ...pausing,
            criu,
            pid: subject.pid,
            upper,
            dir: target.dir,
            pipes: subject.pipes,
            memoryBytes,
            scratch: target.use === 'fork' ? subject.scratch : undefined,
            disk: target.use === 'fork' || target.use === 'hibernation' ? subject.disk : undefined,
            linkRemap: false,
            signal,
            freezer: cgroups.freezer(cgroup),
            thawAtEnd: !wasFrozen && !target.stop,
          })
    if (target.stop) await endFrozen(cgroups, cgroup)
    return result
  } catch (error) {
    empty(target.dir, subject.scratch)
    // CRIU lets them go on for a while, held by itself.
    if (cgroups.processes(cgroup).length > 0 && cgroups.frozen(cgroup) !== wasFrozen) await cgroups.freeze(cgroup, wasFrozen)
    // What CRIU was working in when something killed it may have died of it.
    if (!wasFrozen) await before.check(error)
    if (limit.aborted && !(target.signal?.aborted ?? false))
      throw new ThawError('snapshot_failed', 'Taking the snapshot did not end in time, so it was given up; the sandbox goes on.', {
        cause: error,
      })
    throw error
  }
}

async function keepMemory(input: CheckpointInput): Promise<SnapshotResult> {
  let done: Awaited<ReturnType<typeof checkpoint>>
  try {
    done = await checkpoint(input)
  } catch (error) {
    if (!(error instanceof ThawError) || !/link-remap/i.test(JSON.stringify(error.details ?? ''))) throw error
    empty(input.dir, input.scratch)
    done = await checkpoint({ ...input, linkRemap: true })
  }
  return { frozen_ms: done.frozenMs, fingerprint: fingerprint(input.criu), state: { ...done.state } }
}

function empty(dir: string, scratch: Scratch | undefined): void {
  scratch?.drop(join(dir, snapshotFolders.memory))
  for (const name of readdirSync(dir)) rmSync(join(dir, name), { recursive: true, force: true })
}

async function keepFiles(
  upper: string,
  dir: string,
  pausing: Pick<CheckpointInput, 'freeze' | 'thaw'>,
  signal: AbortSignal,
): Promise<SnapshotResult> {
  const frozenSince = performance.now()
  await pausing.freeze()
  const args = ['-a', '--reflink=auto', upper, join(dir, snapshotFolders.upper)]
  try {
    await runCommand('cp', args, { timeoutMs: 3_600_000, signal })
  } catch (error) {
    signal.throwIfAborted()
    const details = error instanceof ThawError ? error.details : undefined
    if (/No space left on device/.test(JSON.stringify(details))) throw new ThawError('disk_full', undefined, { details, cause: error })
    throw new ThawError('snapshot_failed', 'The files of the sandbox could not be copied; it goes on.', { details, cause: error })
  } finally {
    await pausing.thaw()
  }
  return { frozen_ms: performance.now() - frozenSince, fingerprint: { arch: process.arch }, state: {} }
}

/** Not one instruction runs after the snapshot: what is frozen gets the signal, and meets it when it goes on. */
export async function endFrozen(cgroups: Cgroups, cgroup: string): Promise<void> {
  for (const pid of cgroups.processes(cgroup)) killQuietly(pid)
  await cgroups.freeze(cgroup, false).catch((error: NodeJS.ErrnoException) => {
    // An engine that waited for the end has removed the group meanwhile.
    if (error.code !== 'ENOENT') throw error
  })
  if (!(await endGroup(cgroups, cgroup))) throw new ThawError('driver_failed', 'The processes of the sandbox do not end.')
}
