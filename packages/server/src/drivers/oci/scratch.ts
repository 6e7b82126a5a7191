import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statfsSync, symlinkSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { identify, isAlive } from '../processes.ts'

const shm = '/dev/shm'
/** Of statfs(2). */
const tmpfsType = 0x01021994
/** An image is larger than the memory in it, but never by so much. */
const roomPerByte = 1.5

/**
 * Room in memory for images that are read at once and never kept: neither written to a disk nor read back. The folder of a snapshot has a
 * link to it. A server has one folder, named by its process, so that the next one finds what a killed one left.
 */
export class Scratch {
  readonly #prefix: string
  readonly #dir: string | null
  /** Giving memory back takes as long as filling it: nobody waits for that. */
  readonly #dropping = new Set<Promise<void>>()

  /** @param tag names the data directory. */
  constructor(tag: string) {
    this.#prefix = `thaw-${tag}-`
    const self = identify(process.pid)
    this.#dir = self === null || !isTmpfs() ? null : join(shm, `${this.#prefix}${self.pid}-${self.startTicks}`)
    if (this.#dir !== null) this.#dropOthers()
  }

  /** Makes `link` lead to a new folder in memory. False: there is not enough of it. */
  give(link: string, memoryBytes: number): boolean {
    if (this.#dir === null) return false
    const { bavail, bsize } = statfsSync(shm)
    if (bavail * bsize < memoryBytes * roomPerByte) return false
    // Walked through by the root of the new sandbox, which is nobody here.
    mkdirSync(this.#dir, { recursive: true, mode: 0o711 })
    symlinkSync(mkdtempSync(`${this.#dir}/image-`), link)
    return true
  }

  /** Removes what a link leads to, if it is one of ours, in the background. Idempotent. */
  drop(link: string): void {
    if (this.#dir === null || lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink() !== true) return
    const target = readlinkSync(link)
    if (!target.startsWith(`${this.#dir}/`)) return
    // What cannot be removed now goes with the folder, by `close` or the next server.
    const dropped = rm(join(this.#dir, basename(target)), { recursive: true, force: true }).catch(() => undefined)
    this.#dropping.add(dropped)
    void dropped.then(() => this.#dropping.delete(dropped))
  }

  async close(): Promise<void> {
    await Promise.all(this.#dropping)
    if (this.#dir !== null) await rm(this.#dir, { recursive: true, force: true })
  }

  #dropOthers(): void {
    for (const name of readdirSync(shm)) {
      if (!name.startsWith(this.#prefix)) continue
      const [pid = 0, startTicks = 0] = name.slice(this.#prefix.length).split('-').map(Number)
      if (!isAlive({ pid, startTicks })) rmSync(join(shm, name), { recursive: true, force: true })
    }
  }
}

function isTmpfs(): boolean {
  try {
    return statfsSync(shm).type === tmpfsType
  } catch {
    return false
  }
}
