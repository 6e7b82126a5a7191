import { chownSync, closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { z } from 'zod'
import { idShift } from '../driver.ts'
import { launch } from '../launcher/launcher.ts'
import { commonOptions, digestOf, type MemoryState, ownImages, snapshotFolders } from './checkpoint.ts'
import { type Criu, complaints, quote } from './criu.ts'
import { sourcesOf } from './mounts.ts'
import type { OutputPipes } from './pipes.ts'
import { entering, type Stage } from './stage.ts'

/** As mount(8) takes it. */
export interface FileSystem {
  source: string
  type: string
  options: string
}

export interface RestoreInput {
  criu: Criu
  /** Of the new sandbox; also its host name. */
  id: string
  /** Folder of the new sandbox. */
  dir: string
  /** Folder of the snapshot. Nothing is written there. */
  snapshotDir: string
  state: MemoryState
  /** What is mounted at `rootfs`, in a mount namespace that only CRIU sees. */
  root: FileSystem
  rootfs: string
  /** Host paths by where they are inside. */
  given: ReadonlyMap<string, string>
  /** Path of a prepared network namespace; undefined: a new one with nothing but loopback. */
  netns: string | undefined
  /** Waits in the group already. */
  stage: Stage | undefined
  /** Files to which a process writes 0 to enter the group. */
  entrances: string[]
  pipes: OutputPipes | null
  signal: AbortSignal
}

const stateSchema = z.object({
  version: z.literal(1),
  mounts: z.array(
    z.object({
      target: z.string().startsWith('/'),
      source: z.discriminatedUnion('kind', [
        z.object({ kind: z.literal('given') }),
        z.object({ kind: z.literal('device'), path: z.string().startsWith('/dev/') }),
        z.object({ kind: z.literal('hidden') }),
      ]),
    }),
  ),
  pipes: z.object({ stdout: z.string(), stderr: z.string() }).nullable(),
  files: z.record(z.string(), z.object({ bytes: z.number(), sha256: z.string().nullable() })),
  root: z.enum(['readonly', 'writable']),
})

/** What `checkpoint` handed out. Throws `snapshot_incompatible` for anything else. */
export function parseState(state: unknown): MemoryState {
  const parsed = stateSchema.safeParse(state)
  if (!parsed.success) throw new ThawError('snapshot_incompatible', 'The snapshot was written by another version of thaw.')
  return parsed.data
}

/** A hang is a fault: this long, and a second more for each 64 MiB of image. */
const baseLimitMs = 10_000
const bytesPerMs = (64 * 1024 * 1024) / 1000

/**
 * Lets the processes of a snapshot go on as another sandbox: with its mounts, network, host name, control group and pipes.
 * Returns the first one's number on the host. Rejects with `snapshot_corrupt`, `snapshot_incompatible` or `snapshot_failed`;
 * the caller then ends what is left in the group.
 */
async function restore(input: RestoreInput): Promise<number> {
  const { dir, state } = input
  const kept = join(input.snapshotDir, snapshotFolders.memory)
  const sizeBytes = checkFiles(kept, state)
  const empty = join(dir, 'empty')
  for (const folder of [join(dir, 'images'), empty, input.rootfs]) mkdirSync(folder, { recursive: true, mode: 0o700 })
  ownImages(kept)
  const renamed = renameHost(kept, dir, input.id)
  const sources = sourcesOf(state.mounts, input.given, empty)
  const log = openSync(join(dir, 'engine.log'), 'a', 0o600)
  const limit = AbortSignal.timeout(Math.round(baseLimitMs + sizeBytes / bytesPerMs))
  try {
    const script = (from: 'stage' | 'start') =>
      inside(input, { kept, renamed, sources, hasNetwork: input.netns !== undefined || from === 'stage' })
    const code = await run(input, script, log, AbortSignal.any([input.signal, limit]))
    input.signal.throwIfAborted()
    if (code !== 0) throw failure(dir, limit.aborted)
  } finally {
    closeSync(log)
  }
  return Number(readFileSync(join(dir, 'pid'), 'latin1'))
}

/** Restores at work. Whatever enters a control group while it is removed would stay, so they are stopped first. */
export class Restores {
  readonly #running = new Map<string, { stop: AbortController; settled: Promise<unknown> }>()

  /** See `restore`. */
  async run(input: RestoreInput): Promise<number> {
    const stop = new AbortController()
    const restored = restore({ ...input, signal: AbortSignal.any([input.signal, stop.signal]) })
    this.#running.set(input.id, { stop, settled: restored.catch(() => undefined) })
    try {
      return await restored
    } finally {
      this.#running.delete(input.id)
    }
  }

  /** Resolves when nothing works on this sandbox any more. */
  async stop(id: string): Promise<void> {
    const running = this.#running.get(id)
    running?.stop.abort(new ThawError('driver_failed', 'The sandbox was deleted while it was restored.'))
    await running?.settled
  }
}

/** @returns bytes of all files. */
function checkFiles(folder: string, state: MemoryState): number {
  let total = 0
  for (const [name, { bytes, sha256 }] of Object.entries(state.files)) {
    const found = statSync(join(folder, name), { throwIfNoEntry: false })?.size
    if (found === undefined) throw new ThawError('snapshot_corrupt', `${name} of the snapshot is missing.`)
    if (found !== bytes) throw new ThawError('snapshot_corrupt', `${name} of the snapshot has ${found} bytes instead of ${bytes}.`)
    if (sha256 !== null && digestOf(join(folder, name)) !== sha256)
      throw new ThawError('snapshot_corrupt', `${name} of the snapshot was changed.`)
    total += bytes
  }
  return total
}

/** The host name is one of the images, and a clone has its own from the first instruction on. Returns the image's name. */
function renameHost(kept: string, dir: string, hostname: string): string {
  const name = readdirSync(kept).find((candidate) => /^utsns-\d+\.img$/.test(candidate))
  if (name === undefined) throw new ThawError('snapshot_corrupt', 'The image of the host name is missing.')
  writeFileSync(join(dir, name), renamedHost(readFileSync(join(kept, name)), hostname), { mode: 0o600 })
  chownSync(join(dir, name), idShift, idShift)
  return name
}

/**
 * The image of a UTS namespace (criu/images/utsns.proto): two magic numbers, the length of the message, and the message: field 1
 * the node name, field 2 the domain name, which nobody uses.
 */
export function renamedHost(image: Buffer, hostname: string): Buffer {
  const field = (number: number, text: string) =>
    Buffer.concat([Buffer.from([(number << 3) | 2, Buffer.byteLength(text)]), Buffer.from(text)])
  const message = Buffer.concat([field(1, hostname), field(2, '(none)')])
  const length = Buffer.alloc(4)
  length.writeUInt32LE(message.length)
  return Buffer.concat([image.subarray(0, 8), length, message])
}

interface InsideParts {
  kept: string
  renamed: string
  sources: ReadonlyMap<string, string>
  /** Its network is there already, with loopback up. */
  hasNetwork: boolean
}

function inside(input: RestoreInput, { kept, renamed, sources, hasNetwork }: InsideParts): string {
  const { criu, dir, rootfs, state, pipes } = input
  const command = [
    ...criu.command,
    'restore',
    ...['--images-dir', join(dir, 'images'), '--work-dir', dir, '--log-file', 'restore.log', '--pidfile', join(dir, 'pid')],
    ...['--restore-detached', '--root', rootfs, ...commonOptions],
    ...[...sources].flatMap(([target, path]) => ['--external', `mnt[${target}]:${path}`]),
    ...(state.pipes === null || pipes === null
      ? []
      : ['--inherit-fd', `fd[3]:${state.pipes.stdout}`, '--inherit-fd', `fd[4]:${state.pipes.stderr}`]),
  ]
  // The network namespace is not that of the sandbox's user namespace, whose capability to listen on low ports is void in it.
  return `set -e
${hasNetwork ? '' : 'ip link set lo up & lo=$!'}
echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start
mount --all --fstab ${quote(writeMountTable(input, kept, renamed))}
${hasNetwork ? '' : 'wait $lo'}
exec ${command.map(quote).join(' ')}`
}

/** A list of mounts, for one call of mount instead of four. Returns its path. */
function writeMountTable({ criu, dir, root, rootfs }: RestoreInput, kept: string, renamed: string): string {
  const bind = (source: string): FileSystem => ({ source, type: 'none', options: 'bind' })
  const table: [FileSystem, string][] = [
    [bind(criu.kernelFacts), '/run'],
    [bind(kept), join(dir, 'images')],
    [bind(join(dir, renamed)), join(dir, 'images', renamed)],
    [root, rootfs],
  ]
  const path = join(dir, 'mounts')
  const escaped = (text: string) => text.replace(/[\s\\#]/g, (found) => `\\${found.charCodeAt(0).toString(8).padStart(3, '0')}`)
  const lines = table.map(([{ source, type, options }, target]) => [source, target, type, options].map(escaped).join(' '))
  writeFileSync(path, `${lines.join(' 0 0\n')} 0 0\n`, { mode: 0o600 })
  return path
}

/**
 * Runs a script where CRIU starts in the group, and so do the processes that it makes; its control group namespace begins there.
 * @param script of the stage, or of what is started in its place.
 */
async function run(
  input: RestoreInput,
  script: (from: 'stage' | 'start') => string,
  log: number,
  signal: AbortSignal,
): Promise<number | null> {
  const { dir, stage, netns } = input
  const inNetwork = netns === undefined ? '' : `nsenter --net=${quote(netns)} `
  const within = (from: 'stage' | 'start', unshare: string) =>
    `exec ${inNetwork}unshare ${unshare} sh -c ${quote(script(from))} thaw-restore ${quote(dir)}`
  const outputs = input.pipes === null ? [] : [input.pipes.stdout.write, input.pipes.stderr.write]
  if (stage !== undefined) {
    const [path, begun] = [join(dir, 'restore.sh'), join(dir, 'restore.begun')]
    const streams = outputs.map((fd, index) => `${index + 3}>/proc/${process.pid}/fd/${fd}`)
    const outside = `: >${quote(begun)}\nexec >>${quote(join(dir, 'engine.log'))} 2>&1 </dev/null ${streams.join(' ')}`
    writeFileSync(path, `${outside}\n${within('stage', '--mount')}\n`, { mode: 0o600 })
    const code = await stage.play(path, signal)
    // A shell that something ended before it heard of us is no reason to fail.
    if (existsSync(begun) || signal.aborted) return code
  }
  const own = netns === undefined ? ' --net' : ''
  const args = ['-c', `${entering(input.entrances)}\n${within('start', `--mount --cgroup${own}`)}`, 'thaw-restore', dir]
  const { code, error } = await launch({ program: 'sh', args, streams: [log, log, ...outputs], group: true, signal })
  if (error !== null) throw new ThawError('snapshot_failed', `The shell cannot be started: ${error.message}`, { cause: error })
  return code
}

/** What CRIU says when it cannot make sense of its images. */
const damaged =
  /(magic|Unexpected EOF|Can't parse|unpack|corrupt|Bad image|bad (pagemap|parent|entry)|too short|Can't read|No pages|size mismatch|Failed to load)/i
/** What it says when the files or the machine are not those of the snapshot. */
const foreign =
  /(has bad (size|mode|build)|CPU capabilities|feature .* not supported|No such file or directory.*mnt|Can't open file .* on restore|File .* has bad)/i

function failure(dir: string, timedOut: boolean): ThawError {
  const read = (name: string) => {
    try {
      return readFileSync(join(dir, name), 'utf8')
    } catch {
      return ''
    }
  }
  const log = complaints(`${read('engine.log')}\n${read('restore.log')}`)
  const details = { log }
  if (timedOut) return new ThawError('snapshot_corrupt', 'Restoring the snapshot did not end, so it was ended.', { details })
  if (foreign.test(log)) return new ThawError('snapshot_incompatible', 'The snapshot does not fit the files of this sandbox.', { details })
  if (damaged.test(log)) return new ThawError('snapshot_corrupt', undefined, { details })
  return new ThawError('snapshot_failed', 'The snapshot could not be restored.', { details })
}
