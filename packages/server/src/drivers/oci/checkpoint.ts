import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, chownSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { ThawError } from '@thaw/protocol'
import { idShift } from '../driver.ts'
import { waitUntil } from '../processes.ts'
import type { Cgroups } from './cgroup.ts'
import { type Criu, complaints, quote } from './criu.ts'
import { type OutsideMount, outsideMounts } from './mounts.ts'
import type { PipeNames } from './pipes.ts'
import type { Scratch } from './scratch.ts'
import { isPristine } from './volume.ts'

/** What a restore needs to know beside the files; JSON. */
export interface MemoryState {
  /** Of this structure. */
  version: 1
  mounts: OutsideMount[]
  /** Those of stdout and stderr; none for a sandbox with an agent. */
  pipes: PipeNames | null
  /**
   * The files of the memory image. What was cut off or changed must not reach CRIU, which may hang on it; only the large ones, whose
   * every byte is memory of a process, are for the keeper of the snapshot alone to check.
   */
  files: Record<string, { bytes: number; sha256: string | null }>
  root: 'readonly' | 'writable'
}

/** What lies in the folder of a snapshot: the memory image, and the writable layer, as a folder or with the disk that it lies on. */
export const snapshotFolders = { memory: 'memory', upper: 'upper', disk: 'disk.tar' } as const

export interface CheckpointInput {
  criu: Criu
  /** First process of the sandbox, as the host numbers it. */
  pid: number
  /** Writable layer, or undefined. */
  upper: string | undefined
  /** The disk on which it lies (see volume.ts), if all of that is to be kept: so the files keep their numbers. */
  disk: string | undefined
  dir: string
  pipes: PipeNames | null
  /** Bytes in memory that the sandbox may hold, to choose where the image is written first. */
  memoryBytes: number
  /** Where the image of a snapshot that is never kept may stay. */
  scratch: Scratch | undefined
  /** Keep hard links of files that are open and have lost their name. Costs a shell per stage, and is rarely needed. */
  linkRemap: boolean
  signal: AbortSignal
  /** Stops all processes of the sandbox. */
  freeze(): Promise<void>
  /** Lets them go on, if they ran before. Called once, as early as possible. */
  thaw(): Promise<void>
  freezer: ReturnType<Cgroups['freezer']>
  /** The script itself lets the processes go on when it ends, should this process be gone by then. */
  thawAtEnd: boolean
}

/** Options that must be the same at dump and restore. Established TCP connections are not kept, also those within a sandbox. */
export const commonOptions = ['--file-locks', '--tcp-close', '--manage-cgroups=ignore', '--ghost-limit', '256M']

/**
 * Writes the memory image and the writable layer into `dir`. The sandbox is stopped only while both are read. CRIU runs in the
 * network namespace of the sandbox, so that the network is not part of the image: a clone gets one of its own.
 *
 * Rejects with `snapshot_failed` (`details.log`: what CRIU said) or the reason of the signal.
 */
export async function checkpoint(input: CheckpointInput): Promise<{ frozenMs: number; state: MemoryState }> {
  const { dir, pid, upper, pipes, signal } = input
  const memory = join(dir, snapshotFolders.memory)
  const stage = join(dir, 'stage')
  const fits = input.memoryBytes < availableMemory() / 4
  const stays = fits && input.scratch?.give(memory, input.memoryBytes) === true
  if (!stays) mkdirSync(memory, { mode: 0o700 })
  if (fits && !stays) mkdirSync(stage, { mode: 0o700 })
  const mounts = outsideMounts(pid)
  const state: MemoryState = {
    version: 1,
    mounts,
    pipes,
    files: {},
    root: upper === undefined ? 'readonly' : 'writable',
  }
  // The folder of the group says, to a later server, whose snapshot this process takes.
  const args = [
    `--net=/proc/${pid}/ns/net`,
    'unshare',
    '--mount',
    'sh',
    '-c',
    script(input, mounts, fits && !stays ? stage : null, memory),
    'thaw-snapshot',
    input.freezer.folder,
  ]
  const child = spawn('nsenter', args, { stdio: ['pipe', 'pipe', 'pipe'], detached: true })
  const steps = new Steps(child, signal)
  let frozenSince: number | undefined
  let frozenMs = 0
  const thaw = async () => {
    if (frozenSince === undefined) return
    const since = frozenSince
    frozenSince = undefined
    await input.thaw()
    frozenMs = performance.now() - since
  }
  try {
    await steps.reached('ready')
    await input.freeze()
    frozenSince = performance.now()
    child.stdin.write(upper === undefined || isPristine(upper) ? 'go\n' : 'go files\n')
    await steps.reached('read')
    await thaw()
    await steps.reached('written')
    await steps.ended()
  } catch (error) {
    // Processes that CRIU works in when it is killed may die of it, so it gets the time to finish.
    if (frozenSince !== undefined && signal.aborted) await steps.reachedWithin('read', graceMs)
    // Before the sandbox goes on: CRIU may hold its processes.
    await steps.kill()
    await thaw()
    signal.throwIfAborted()
    const log = complaints(`${readQuietly(join(memory, 'dump.log'))}\n${steps.errors}`)
    if (/No space left on device/.test(log)) throw new ThawError('disk_full', undefined, { details: { log }, cause: error })
    throw new ThawError('snapshot_failed', 'The sandbox could not be written to a snapshot; it goes on.', {
      details: { log },
      cause: error,
    })
  }
  rmSync(stage, { recursive: true, force: true })
  rmSync(join(memory, 'dump.log'), { force: true })
  for (const name of readdirSync(memory)) {
    const bytes = statSync(join(memory, name)).size
    state.files[name] = { bytes, sha256: bytes <= smallImageBytes ? digestOf(join(memory, name)) : null }
  }
  ownImages(memory)
  return { frozenMs, state }
}

/**
 * The image goes to memory first (`stage`) where there is enough of it: writing page by page to a disk's file system takes five times as
 * long, and the sandbox waits for it. The tmpfs is in a mount namespace that ends with this script, whatever ends it.
 */
function script(
  { criu, pid, upper, disk, dir, linkRemap, freezer, thawAtEnd }: CheckpointInput,
  mounts: OutsideMount[],
  stage: string | null,
  memory: string,
) {
  const action = join(dir, 'post-dump')
  const postDump = quote(action)
  const keepFiles = upper === undefined ? ':' : disk === undefined ? copyLayer(upper, dir) : packDisk(disk, dir)
  const dump = [
    ...criu.command,
    'dump',
    ...['--tree', String(pid), '--images-dir', stage ?? memory, '--work-dir', memory, '--log-file', 'dump.log', '--leave-running'],
    ...[...commonOptions, '--skip-in-flight', '--force-irmap', '--timeout', '5', '--freeze-cgroup', freezer.folder],
    ...mounts.flatMap(({ target }) => ['--external', `mnt[${target}]:${target}`]),
    ...(linkRemap ? ['--link-remap', '--action-script', action] : []),
  ]
    .map(quote)
    .join(' ')
  // The names that stand for lost ones exist only until CRIU ends, so the files are copied before.
  const both = linkRemap
    ? `cat >${postDump} <<'END'
#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || { ${keepFiles}; }
END
chmod 700 ${postDump}
${dump}
rm ${postDump}`
    : `[ -z "$files" ] || { ${keepFiles}; } & copy=$!
${dump} || { wait $copy; exit 1; }
wait $copy`
  // A process in which CRIU works when something kills it may die of that: it is the last that a host short of memory is to choose.
  return `set -e
umask 077
trap '' PIPE
{ echo -1000 >/proc/self/oom_score_adj; } 2>/dev/null || :
${thawAtEnd ? `trap ${quote(`echo ${freezer.thawed} >${quote(freezer.file)}`)} EXIT` : ''}
mount --bind ${quote(criu.kernelFacts)} /run
${stage === null ? '' : `mount -t tmpfs -o mode=700 tmpfs ${quote(stage)}`}
${disk === undefined ? '' : writeThrough(disk)}
echo ready
read go files
${both}
echo read
${stage === null ? '' : `cp ${quote(stage)}/*.img ${quote(memory)}`}
echo written`
}

/**
 * Sets owners and modes of the images as a restore needs them: most of it is done by the root of the new sandbox. Its first step is
 * done by a process that is nobody yet: that one reads the offsets of the clocks. The folder above is closed to all but root.
 */
export function ownImages(folder: string): void {
  for (const name of ['.', ...readdirSync(folder)]) {
    const path = join(folder, name)
    const mode = name === '.' ? 0o711 : /^timens-/.test(name) ? 0o644 : 0o600
    const now = statSync(path)
    if (now.uid !== idShift) chownSync(path, idShift, idShift)
    if ((now.mode & 0o777) !== mode) chmodSync(path, mode)
  }
}

function copyLayer(upper: string, dir: string): string {
  return `cp -a --reflink=auto ${quote(upper)} ${quote(join(dir, snapshotFolders.upper))}`
}

/**
 * The disk as it is once everything has been written to it. Programs compare the number of a file that they hold open with the one that
 * has its name (SQLite writes no more when these differ), and only a copy of the whole file system keeps the numbers. Tar notes
 * where the disk has holes, which are most of it.
 */
function packDisk(disk: string, dir: string): string {
  const tar = ['--create', '--sparse', '--hole-detection=seek', '--file', join(dir, snapshotFolders.disk)]
  return `${writeThrough(disk)} && tar ${[...tar, '--directory', dirname(disk), `${basename(disk)}.img`].map(quote).join(' ')}`
}

/** Once before the sandbox stands still, so that little is left to write while it does. */
function writeThrough(disk: string): string {
  return `sync --file-system ${quote(disk)}`
}

const helpersMs = 200
const graceMs = 10_000

/** The steps that a script reports on its stdout, and its end. */
class Steps {
  readonly #child: ChildProcess
  readonly #signal: AbortSignal
  readonly #closed: Promise<number | null>
  readonly #seen = new Set<string>()
  #wake: () => void = () => undefined
  #over = false
  errors = ''

  constructor(child: ChildProcess, signal: AbortSignal) {
    this.#child = child
    this.#signal = signal
    child.stdin?.on('error', () => undefined)
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.errors = (this.errors + text).slice(-2000)
    })
    if (child.stdout !== null)
      createInterface({ input: child.stdout }).on('line', (line) => {
        this.#seen.add(line)
        this.#wake()
      })
    // When CRIU is killed, helpers of it may go on for ever, and hold our pipes: as long as they do, the number of the group is
    // theirs.
    let helpers: NodeJS.Timeout | undefined
    child.once('exit', () => {
      helpers = setTimeout(() => this.#killGroup(), helpersMs)
    })
    child.once('close', () => clearTimeout(helpers))
    this.#closed = new Promise((resolve) => {
      child.once('close', (code) => resolve(code))
      child.once('error', () => resolve(null))
    })
    void this.#closed.then(() => {
      this.#over = true
      this.#wake()
    })
    signal.addEventListener('abort', () => this.#wake(), { once: true })
  }

  async reached(step: string): Promise<void> {
    while (!this.#seen.has(step)) {
      this.#signal.throwIfAborted()
      if (this.#over) throw new Error(`ended before "${step}". ${this.errors.trim()}`)
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  /** Like `reached`, whatever the signal says, for so long. */
  async reachedWithin(step: string, milliseconds: number): Promise<void> {
    await waitUntil(() => this.#seen.has(step) || this.#over, milliseconds)
  }

  async ended(): Promise<void> {
    const code = await this.#closed
    if (code !== 0) throw new Error(`exit code ${code}. ${this.errors.trim()}`)
  }

  /** Ends the script and CRIU below it, and waits until they are gone. */
  async kill(): Promise<void> {
    if (this.#child.exitCode === null && this.#child.signalCode === null) this.#killGroup()
    await this.#closed
  }

  #killGroup(): void {
    if (this.#child.pid === undefined) return
    try {
      process.kill(-this.#child.pid, 'SIGKILL')
    } catch {
      // Ended at this moment.
    }
  }
}

const smallImageBytes = 1024 * 1024

export function digestOf(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex')
}

/** Bytes that programs can still get, by proc(5). */
function availableMemory(): number {
  return Number(/^MemAvailable:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'latin1'))?.[1] ?? 0) * 1024
}

function readQuietly(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return ''
  }
}
