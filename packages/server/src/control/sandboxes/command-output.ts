import { maxOutputBytes } from '@thaw/protocol'

/** Any command may have so much of its output kept, whatever others do. */
const ownBytes = 1024 * 1024
/** What is kept beyond that, of all commands together: callers decide how many write, and how slowly they take it. */
const maxSharedBytes = 128 * 1024 * 1024
let sharedBytes = 0

/** What a command wrote, as far as it is kept: in memory, until its caller has it. */
export class CommandOutput {
  truncated = false
  #bytes = 0
  #shared = 0
  readonly #pieces: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] }

  add(data: { stdout?: string | undefined; stderr?: string | undefined }): void {
    for (const name of ['stdout', 'stderr'] as const) {
      const text = data[name]
      if (text === undefined || this.truncated) continue
      const bytes = Buffer.from(text, 'base64')
      const kept = bytes.subarray(0, this.#claim(bytes.length))
      this.#pieces[name].push(kept)
      this.#bytes += kept.length
      // Behind a gap nothing is kept: output of which the middle is missing says something else.
      this.truncated = kept.length < bytes.length
    }
  }

  /** What is taken is no longer kept here, but still counted until `release`: it is on its way to the caller. */
  take(name: 'stdout' | 'stderr', encoding: 'utf8' | 'base64'): string {
    return Buffer.concat(this.#pieces[name].splice(0)).toString(encoding)
  }

  /** The caller has it, or does not want it. */
  release(): void {
    sharedBytes -= this.#shared
    this.#shared = 0
  }

  #claim(wanted: number): number {
    const own = Math.min(wanted, Math.max(0, ownBytes - this.#bytes))
    const shared = Math.min(wanted - own, maxOutputBytes - this.#bytes - own, maxSharedBytes - sharedBytes)
    sharedBytes += shared
    this.#shared += shared
    return own + shared
  }
}
