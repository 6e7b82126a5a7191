import type { Duplex } from 'node:stream'
import type { Abilities, DriverKind, NetworkMode, Probe, Resources } from '@thaw/protocol'

/**
 * The contract of a driver: one kind of isolation.
 *
 * Lifecycle of a sandbox, as a driver sees it:
 *
 *     prepare(image) ─→ create(spec) ─→ running ⇄ paused ─→ exit ─→ destroy(id)
 *                          ↑               └───────────────────────────┘
 *                          └── snapshot(id, target) of a running or paused one
 *
 * - `create` resolves when the sandbox is ready for use (see `CreateSpec.ready`), or rejects and leaves nothing behind.
 * - Sandboxes outlive the server: after a restart whoever knows an id goes on using it.
 * - A sandbox that exited stays known, with what it leaves on disk, until `destroy`.
 * - `destroy` works from every state, also for an id that the driver never saw or that an earlier process of ours
 *   made: afterwards no process, mount, cgroup, network namespace, socket or file of that id exists.
 * - `list` tells reality, not memory: after a crash of the server it names what the old one left.
 * - `close` ends what the driver itself started for its own use. Sandboxes go on running.
 *
 * A driver knows nothing of functions, versions or tenants. Errors are ThawErrors; `driver_failed` carries what the
 * engine said in details. All paths are absolute paths of this host.
 */
export interface Driver {
  readonly kind: DriverKind
  readonly abilities: Abilities

  /** Finds out whether this driver works on this machine, by trying. Cached for the life of the process. */
  probe(): Promise<Probe>

  /** Makes an image startable. Idempotent, safe to call at the same time from several places. */
  prepare(image: ImageSource): Promise<Prepared>

  /** Starts a sandbox. `signal` abandons the start; nothing is left then. */
  create(spec: CreateSpec, signal?: AbortSignal): Promise<Handle>

  /**
   * Shows code in the slot of a sandbox that was started without it, and sets its limits. Once per sandbox. A sandbox
   * whose bind failed is not to be used.
   */
  bind(id: string, what: BindSpec): Promise<void>

  /** What the sandbox is now, or null when the driver knows nothing of the id. */
  inspect(id: string): Promise<SandboxStatus | null>

  /** Ids of everything that this driver's data holds traces of, also half-made or dead. */
  list(): Promise<string[]>

  /** Resolves when the first process of the sandbox has ended, however it ended. */
  wait(id: string): Promise<Exit>

  /**
   * A byte stream to one of the sockets that a sandbox shares with its driver. Never goes through an IP route to the
   * sandbox; ports inside are reached through the agent.
   */
  dial(id: string, port: Port): Promise<Duplex>

  /** Stops all processes of the sandbox where they are; memory is kept. Idempotent. With `abilities.pause`. */
  pause?(id: string): Promise<void>

  /** Lets them go on. Idempotent. */
  resume?(id: string): Promise<void>

  /**
   * Writes what the sandbox is into `target.dir`, an empty folder. It goes on afterwards as it was, running or paused, or,
   * with `target.stop`, has ended; also when this rejects, except that it may have ended then with `stop`. Whoever has
   * connections to the sandbox closes them before. With `abilities.snapshot`.
   */
  snapshot?(id: string, target: SnapshotTarget): Promise<SnapshotResult>

  /** What `SnapshotResult.fingerprint` would say now: where it differs, memory is not restored. With `abilities.snapshot: memory`. */
  fingerprint?(): Promise<Record<string, string>>

  /** Removes what a snapshot keeps outside its folder (an image in an engine). Idempotent. */
  dropSnapshot?(source: SnapshotSource): Promise<void>

  /** Ends and removes the sandbox and all that belongs to it. Idempotent. */
  destroy(id: string): Promise<void>

  close(): Promise<void>
}

/**
 * What can be dialled: the Unix sockets on which the runtime listens, the web server which the runtime runs, and the agent.
 */
export type Port = 'runtime' | 'http' | 'agent'

/** Their names, in the folder that a sandbox shares with its driver (`insidePaths.runDir`). */
export const socketNames = { runtime: 'runtime.sock', http: 'http.sock', agent: 'agent.sock' } as const satisfies Record<Port, string>

export type SnapshotKind = 'filesystem' | 'memory'

/**
 * keep: for later, here or elsewhere, for as long as somebody wants it. fork: restored at once, perhaps many times, then removed; it need
 * not outlive the server. hibernation: restored once on this machine. The last two go on without noticing anything, as far as
 * the driver can see to that.
 */
export type SnapshotUse = 'keep' | 'fork' | 'hibernation'

export interface SnapshotTarget {
  /** Empty, private folder of the host, on the disk of the snapshots. */
  dir: string
  kind: SnapshotKind
  /** End the sandbox at the moment of the snapshot (hibernation): nothing that happens after it is lost. */
  stop: boolean
  /** Default: keep. */
  use?: SnapshotUse
  signal?: AbortSignal
}

export interface SnapshotResult {
  /** How long no process of the sandbox ran. */
  frozen_ms: number
  /** What must be the same where it is restored: versions of engine, kernel, processor features. */
  fingerprint: Record<string, string>
  /** What the driver wants to see again at restore, apart from the files. */
  state: Record<string, unknown>
}

/** A snapshot to start from, whose files were checked by whoever keeps it. */
export interface SnapshotSource {
  dir: string
  kind: SnapshotKind
  state: Record<string, unknown>
}

/** An image on disk: a folder tree, owned as the sandbox's users see it before any shift of ids. */
export interface ImageSource {
  /** `host`: this machine's own toolchains, read-only. `rootfs`: a folder that holds a root file system. */
  kind: 'host' | 'rootfs'
  /** sha256:… of the content; for `host` a name that changes when the machine does. */
  digest: string
  /** kind rootfs: the folder. Owned by the image store, which shifts ids at unpacking (see `idShift`). */
  path?: string
  /** Host folders that are shown read-only on top of it (the `host` image). */
  binds?: { source: string; target: string }[]
}

/** Opaque result of prepare, for create of the same driver. */
export interface Prepared {
  readonly image: ImageSource
}

export interface Mount {
  source: string
  target: string
  readonly: boolean
}

export interface CreateSpec {
  /** Given by the caller, so that it is known before anything exists. A DNS label. */
  id: string
  image: Prepared
  /** The first process. `${runtime}`-like templates do not exist: paths are those inside (see `paths`). */
  argv: string[]
  env: Record<string, string>
  cwd: string
  /** Host folders and files shown inside. The process driver, which shows nothing, maps them by `paths`. */
  mounts: Mount[]
  /** Where `bind` shows code later; an empty folder until then. */
  slot?: string
  resources: Resources
  /** NVIDIA GPUs, by number or all. `gpu_unavailable` where the driver or the machine has none. */
  gpus?: number | 'all'
  /**
   * What the sandbox may write to its root file system, MiB; undefined: as the driver is configured. `invalid_request` or
   * `driver_unavailable` where the driver or the machine cannot hold it to that.
   */
  disk_mib?: number
  network: NetworkMode
  /**
   * Start from this instead of from nothing. Kind `filesystem`: argv starts on the files that were kept. Kind `memory`: the
   * processes go on; argv, env and cwd are not looked at. `image` is the one of the sandbox that was snapshotted.
   */
  snapshot?: SnapshotSource
  /** Who runs argv: an ordinary user, or root of the sandbox (never of the host). */
  user: 'function' | 'root'
  /** `writable`: changes of the root file system are kept until destroy; else only /tmp can be written. */
  root: 'readonly' | 'writable'
  /**
   * `runtime`, `agent`: wait until that one listens on its socket; `started`: until argv runs. A sandbox with an agent
   * does not depend on the server: its output goes nowhere.
   */
  ready: 'runtime' | 'agent' | 'started'
  /** Longest wait for readiness. */
  start_timeout_ms: number
  /** Raw stdout and stderr of the first process. Called until exit; must not throw. */
  onOutput?: (source: 'stdout' | 'stderr', bytes: Buffer) => void
}

export interface BindSpec {
  /** Folder of the host; undefined: there is no code to show. */
  code?: string
  resources: Resources
}

export interface Handle {
  id: string
  /** Milliseconds from the call of create until ready. */
  boot_ms: number
}

export interface SandboxStatus {
  state: 'running' | 'paused' | 'exited'
  pid: number | null
  memory_bytes: number | null
  /** Processor time used since it was created or restored; null where the driver cannot tell. */
  cpu_ms: number | null
  processes: number | null
  /** The kernel has killed a process of the sandbox because its memory limit was reached; others may still run. */
  out_of_memory: boolean
}

export interface Exit {
  /** null where the driver cannot tell, or a signal ended the process. */
  code: number | null
  signal: string | null
  /** The kernel killed a process of the sandbox because its memory limit was reached. */
  out_of_memory: boolean
}

/** Where things lie inside a sandbox of the drivers that have an inside of their own. */
export const insidePaths = {
  runtimeDir: '/thaw/runtime',
  runDir: '/thaw/run',
  runtimeSocket: '/thaw/run/runtime.sock',
  agentSocket: '/thaw/run/agent.sock',
  /** The agent's program, in the folder where other sandboxes have their runtime. */
  agent: '/thaw/runtime/thaw-agent',
  codeDir: '/function',
  /** In memory: secrets of a function that are files. The runtime writes them when it loads the code. */
  secretsDir: '/run/secrets',
} as const

/**
 * Ids inside a sandbox with a user namespace are ids of the host plus this shift: root inside is an ordinary,
 * otherwise unused user outside. Unpacked images and shared folders are owned accordingly. The range lies above what
 * /etc/subuid hands out by default (100000 and up, 65536 each).
 */
export const idShift = 1_048_576
export const idShiftRange = 65_536
