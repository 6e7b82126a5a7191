import { randomBytes } from 'node:crypto'
import { readFileSync, readlinkSync } from 'node:fs'
import { launchWaiting, type Waiting } from '../launcher/launcher.ts'
import type { Cgroups } from './cgroup.ts'
import { quote } from './criu.ts'

/** A restored sandbox gets a network namespace with nothing but loopback, or one that was prepared. */
export type StageNetwork = 'own' | 'given'

/** Names of the control groups of stages, beside those of sandboxes. */
const prefix = 'stage-'
const spareCount = 2
/** The restore that took the last one comes first. */
const refillDelayMs = 50

/**
 * A shell that waits, in a control group and in namespaces of its own, for the script that restores a sandbox there. To enter groups
 * takes 9 ms, and to start a shell as long. It has no mount namespace yet: that would hold what others unmount.
 */
export class Stage {
  readonly group: string
  readonly #cgroups: Cgroups
  readonly #shell: Waiting

  constructor(cgroups: Cgroups, group: string, network: StageNetwork) {
    this.group = group
    this.#cgroups = cgroups
    cgroups.create(group)
    const isOwn = network === 'own'
    const wait = `${isOwn ? 'ip link set lo up\n' : ''}read -r go && . "$go"`
    const script = `${entering(cgroups.entrances(group))}
exec unshare --cgroup ${isOwn ? '--net ' : ''}sh -c ${quote(wait)} thaw-stage`
    this.#shell = launchWaiting({ program: 'sh', args: ['-c', script, 'thaw-stage'], streams: ['ignore', 'ignore'], group: true })
  }

  /** The shell is alone in its group, and in namespaces of its own. */
  get isReady(): boolean {
    const [pid, ...others] = this.#cgroups.processes(this.group)
    if (pid === undefined || others.length > 0) return false
    try {
      const namespace = (process: string) => readlinkSync(`/proc/${process}/ns/cgroup`)
      // Before it is a shell again, it is the program that makes the namespaces.
      return namespace(String(pid)) !== namespace('self') && readFileSync(`/proc/${pid}/comm`, 'latin1') === 'sh\n'
    } catch {
      return false
    }
  }

  /** Resolves when the shell has ended. */
  get ended(): Promise<unknown> {
    return this.#shell.ended
  }

  /** Runs the script in that file, which is for a shell, and resolves with its exit code. Its group is the caller's from then on. */
  async play(path: string, signal: AbortSignal): Promise<number | null> {
    return (await this.#shell.go(`${path}\n`, signal)).code
  }

  async close(): Promise<void> {
    this.#shell.kill()
    await this.#shell.ended
    this.#cgroups.remove(this.group)
  }
}

/** Stages that are ready. There are none until something was restored, and none where control groups keep their names (version 2). */
export class Stages {
  readonly #cgroups: Cgroups
  readonly #base: string
  readonly #spares: Record<StageNetwork, Stage[]> = { own: [], given: [] }
  readonly #timers = new Set<NodeJS.Timeout>()
  #closed = false

  /** @param base the parent of their control groups. */
  constructor(cgroups: Cgroups, base: string) {
    this.#cgroups = cgroups
    this.#base = base
  }

  /** One that waits, if there is one; its control group has this name from then on. */
  take(network: StageNetwork, group: string): Stage | undefined {
    if (this.#cgroups.rename === undefined) return undefined
    this.#closed = false
    const spares = this.#spares[network]
    const index = spares.findIndex((stage) => stage.isReady)
    const [taken] = index < 0 ? [] : spares.splice(index, 1)
    const timer = setTimeout(() => {
      this.#timers.delete(timer)
      try {
        this.#refill(network)
      } catch {
        // A group that cannot be made cannot be made by the next restore either, which says so.
      }
    }, refillDelayMs)
    this.#timers.add(timer.unref())
    try {
      if (taken !== undefined) this.#cgroups.rename(taken.group, group)
    } catch (error) {
      void taken?.close().catch(() => undefined)
      throw error
    }
    return taken
  }

  /** Whether a control group of this name is a stage of ours. */
  owns(name: string): boolean {
    return Object.values(this.#spares).some((spares) => spares.some(({ group }) => group === `${this.#base}/${name}`))
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const timer of this.#timers) clearTimeout(timer)
    this.#timers.clear()
    const all = Object.values(this.#spares).flatMap((spares) => spares.splice(0))
    await Promise.all(all.map((stage) => stage.close()))
  }

  #refill(network: StageNetwork): void {
    const spares = this.#spares[network]
    if (this.#closed || spares.length >= spareCount) return
    const name = `${prefix}${randomBytes(6).toString('hex')}`
    const stage = new Stage(this.#cgroups, `${this.#base}/${name}`, network)
    spares.push(stage)
    // Ended by itself, or with the process that started it: of no use.
    void stage.ended.then(() => {
      const index = spares.indexOf(stage)
      if (index < 0) return
      spares.splice(index, 1)
      return stage.close().catch(() => undefined)
    })
    this.#refill(network)
  }
}

/** Shell commands by which a process enters control groups; what it starts afterwards begins there. */
export function entering(entrances: readonly string[]): string {
  return `${entrances.map((file) => `echo 0 >${quote(file)}`).join(' && ')} || exit 1`
}
