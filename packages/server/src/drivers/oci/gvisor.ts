import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { Duplex } from 'node:stream'
import { type Resources, ThawError } from '@thaw/protocol'
import { Bridge, type BridgeConnection } from '../bridge.ts'
import { runCommand } from '../command.ts'
import { type CreateSpec, insidePaths } from '../driver.ts'
import { waitUntil } from '../processes.ts'
import { type Cgroups, endGroup } from './cgroup.ts'

/** Where scripts/bootstrap.mjs puts it; before the system's own, which may be older. */
const places = ['/opt/thaw/runsc/usr/bin/runsc', '/usr/local/bin/runsc', '/usr/local/sbin/runsc', '/usr/bin/runsc', '/usr/sbin/runsc']

/**
 * A date, as releases have. Older ones have no platform `systrap`, and restart a sandbox of which they take a snapshot
 * instead of letting it go on.
 */
const oldestRelease = 20_240_101

/**
 * What gVisor needs beside the sandbox's own: its kernel and its file server are processes in the same control group, and
 * each process inside has threads outside.
 */
const overhead = { memoryMib: 96, pids: 192 }

/** How long a bridge may take to end by itself. */
const bridgeEndMs = 2_000

/**
 * runsc takes a network namespace for that of the host, and refuses it, when it has /proc/sys/net/core/rmem_default; kernels
 * such as Linux 6.18 have that in all. So it is started where it sees no settings but those that it reads, as copies.
 */
const fewSettings = `cd /proc/sys && mount -t tmpfs -o mode=755,size=64k tmpfs /proc/sys || exit 1
for name in vm/mmap_min_addr kernel/cap_last_cap net/core/somaxconn user/max_user_namespaces; do
  mkdir -p "/proc/sys/\${name%/*}" && cat "$name" >"/proc/sys/$name" || exit 1
done
cd / && exec "$@"`
const withFewSettings = ['unshare', '--mount', 'sh', '-c', fewSettings, 'thaw-network']

/** How runsc is called for a sandbox. */
export interface GvisorOptions {
  /** A short path: below it lie control sockets, whose path may have 107 bytes. A folder per sandbox. */
  stateDir: string
  cgroups: Cgroups
}

/** gVisor: a kernel of its own between the sandbox and that of the host, by its OCI runtime `runsc`. */
export class Gvisor {
  readonly program: string
  /** As `runsc --version` has it, or null: not installed. */
  readonly version: string | null
  readonly #options: GvisorOptions
  readonly #bridges = new Map<string, Bridge>()
  readonly #bridgePrograms = new Map<string, Set<ChildProcess>>()

  constructor(options: GvisorOptions) {
    this.#options = options
    this.program = places.find((path) => existsSync(path)) ?? 'runsc'
    const { stdout } = spawnSync(this.program, ['--version'], { encoding: 'utf8', timeout: 5_000 })
    this.version = /version (?:release-)?(\S+)/.exec(stdout ?? '')?.[1] ?? null
  }

  /** Whether it can do what this driver wants of it. */
  get recent(): boolean {
    const date = /\d{8}/.exec(this.version ?? '')
    return date !== null && Number(date[0]) >= oldestRelease
  }

  /**
   * The words of a command that starts a sandbox, up to `run` or `restore`. It enters the group of the sandbox first: runsc
   * would have to manage the group by itself, and refuses hosts with both versions of groups.
   */
  starter(spec: Pick<CreateSpec, 'id' | 'ready' | 'network'>, cgroup: string, log: string): string[] {
    const { cgroups } = this.#options
    const enter = 'for group; do [ "$group" != -- ] || break; echo 0 >"$group" || exit 1; shift; done; shift; exec "$@"'
    const network = spec.network === 'none' ? ['--network=none'] : ['--network=sandbox']
    return [
      ...(spec.network === 'none' ? [] : withFewSettings),
      ...['sh', '-c', enter, 'thaw-start', ...cgroups.entrances(cgroup), '--'],
      ...[...this.#command(spec.id), '--log', log],
      ...['--platform=systrap', '--ignore-cgroups', ...network],
      // What is written lands in the layer, at once: that is what snapshots of files copy.
      ...['--overlay2=none', '--file-access=shared'],
      // A socket that the host can connect to cannot be part of a snapshot, so agents are reached through a bridge.
      ...(spec.ready === 'agent' ? [] : ['--host-uds=create']),
    ]
  }

  /** Makes the group of a sandbox, with its limits. */
  prepareGroup(cgroup: string, resources: Resources): void {
    this.#options.cgroups.create(cgroup)
    this.#options.cgroups.limit(cgroup, withOverhead(resources))
  }

  /** Ends what a command of ours has started, and removes what it left. */
  async forget(id: string, cgroup: string): Promise<void> {
    if (!(await endGroup(this.#options.cgroups, cgroup))) throw new ThawError('driver_failed', `Processes of sandbox ${id} do not end.`)
    rmSync(join(this.#options.stateDir, id), { recursive: true, force: true })
  }

  /** Asks the kernel of a sandbox for something: pause, resume, checkpoint. */
  async control(id: string, args: string[], options: { timeoutMs?: number; signal?: AbortSignal } = {}): Promise<void> {
    const [program = '', ...first] = this.#command(id)
    await runCommand(program, [...first, ...args, id], options)
  }

  /**
   * Its processes stop inside; then gVisor itself is stopped. Connections to its agent end: the bridge could not end later, when
   * a snapshot of what is paused is to be taken.
   */
  async pause(id: string, cgroup: string): Promise<void> {
    const { cgroups } = this.#options
    if (cgroups.frozen(cgroup)) return
    await this.closeBridge(id)
    await this.control(id, ['pause'])
    await cgroups.freeze(cgroup, true)
  }

  async resume(id: string, cgroup: string): Promise<void> {
    const { cgroups } = this.#options
    if (!cgroups.frozen(cgroup)) return
    await cgroups.freeze(cgroup, false)
    await this.control(id, ['resume'])
  }

  /**
   * Gives a clone a host name of its own: gVisor restores that of the snapshot, and nothing inside may change it. A program of ours
   * may for a moment, with that capability alone.
   */
  async nameHost(id: string, signal: AbortSignal): Promise<void> {
    const [program = '', ...first] = this.#command(id)
    const inside = [insidePaths.agent, 'hostname', id]
    await runCommand(program, [...first, 'exec', '--user', '0:0', '--cap', 'CAP_SYS_ADMIN', id, ...inside], { signal })
  }

  /** The way to the agent of a sandbox. */
  bridge(id: string): Bridge {
    const bridge = this.#bridges.get(id) ?? new Bridge(async () => this.#startBridge(id))
    this.#bridges.set(id, bridge)
    return bridge
  }

  /** Closes the way to the agent: resolves when the program inside has ended, which cannot be part of a snapshot. */
  async closeBridge(id: string): Promise<void> {
    this.#bridges.get(id)?.close()
    this.#bridges.delete(id)
    const programs = this.#bridgePrograms.get(id)
    if (programs === undefined) return
    await waitUntil(() => programs.size === 0, bridgeEndMs)
    for (const child of programs) child.kill('SIGKILL')
    this.#bridgePrograms.delete(id)
  }

  async closeBridges(): Promise<void> {
    await Promise.all([...this.#bridges.keys()].map((id) => this.closeBridge(id)))
  }

  /** What must be the same for a memory image to be restored. */
  fingerprint(): Record<string, string> {
    const cpuinfo = readFileSync('/proc/cpuinfo', 'latin1')
    const features = /^(?:flags|Features)\s*:(.*)$/m.exec(cpuinfo)?.[1]?.trim() ?? ''
    return {
      arch: process.arch,
      cpu: createHash('sha256').update(features.split(/\s+/).sort().join(' ')).digest('hex').slice(0, 16),
      runsc: this.version ?? 'none',
    }
  }

  #command(id: string): string[] {
    return [this.program, '--root', join(this.#options.stateDir, id)]
  }

  #startBridge(id: string): BridgeConnection {
    const [program = '', ...first] = this.#command(id)
    const inside = [insidePaths.agent, 'bridge', '--socket', insidePaths.agentSocket]
    const child = spawn(program, [...first, 'exec', '--user', '0:0', id, ...inside], { stdio: ['pipe', 'pipe', 'pipe'] })
    const programs = this.#bridgePrograms.get(id) ?? new Set()
    this.#bridgePrograms.set(id, programs.add(child))
    child.once('exit', () => programs.delete(child))
    child.once('error', () => programs.delete(child))
    return connectionOf(child)
  }
}

/** Limits of the group of a sandbox. */
export function withOverhead(resources: Resources): Resources {
  return { ...resources, memory_mib: resources.memory_mib + overhead.memoryMib, pids: resources.pids + overhead.pids }
}

/** stdin and stdout of a program as one stream; it gets the end of its input when the stream is destroyed. */
function connectionOf(child: ChildProcess): BridgeConnection {
  const { stdin, stdout } = child
  if (stdin === null || stdout === null) throw new ThawError('driver_failed', 'The way into the sandbox cannot be opened.')
  let stderr = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr = (stderr + text).slice(-2000)
  })
  const stream = new Duplex({
    allowHalfOpen: false,
    read: () => stdout.resume(),
    write: (chunk: Buffer, _encoding, done) => {
      if (stdin.write(chunk)) done()
      else stdin.once('drain', done)
    },
    final: (done) => stdin.end(done),
    destroy: (error, done) => {
      stdin.destroy()
      stdout.destroy()
      done(error)
    },
  })
  stdin.on('error', () => stream.destroy())
  stdout.on('data', (bytes: Buffer) => stream.push(bytes) || stdout.pause())
  stdout.once('end', () => stream.push(null))
  child.once('error', (error) => stream.destroy(error))
  child.once('close', () => stream.destroy())
  child.unref()
  for (const pipe of [stdin, stdout, child.stderr]) (pipe as Duplex & { unref?: () => void }).unref?.()
  return Object.defineProperty(stream, 'stderr', { get: () => stderr.trim() }) as BridgeConnection
}
