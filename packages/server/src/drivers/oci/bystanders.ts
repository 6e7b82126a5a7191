import { readFileSync } from 'node:fs'
import { ThawError } from '@thaw/protocol'
import { identify, isAlive, type ProcessIdentity, waitUntil } from '../processes.ts'

/** A process that dies of a failed snapshot does so as soon as it goes on; to print its last words may take it a while. */
const afterlifeMs = 250
/** Of /proc/PID/stat (proc(5)), the same on all platforms that we run on. */
const ticksPerSecond = 100

interface Bystander extends ProcessIdentity {
  name: string
}

/** The processes of a sandbox of which a snapshot is taken, to tell afterwards whether that was the end of some. */
export class Bystanders {
  readonly #first: ProcessIdentity | null
  /** Those that had lived for a second: one that ends now hardly does so by itself. */
  readonly #settled: Bystander[]

  constructor(pids: readonly number[], first: number) {
    this.#first = identify(first)
    const now = Number(readFileSync('/proc/uptime', 'latin1').split(' ')[0])
    this.#settled = pids.flatMap((pid) => {
      const identity = identify(pid)
      return identity === null || now - identity.startTicks / ticksPerSecond < 1 ? [] : [{ ...identity, name: nameOf(pid) }]
    })
  }

  /** After a snapshot that failed with `error`: throws an error that says more where it has cost processes their life. */
  async check(error: unknown): Promise<void> {
    const first = this.#first
    const details = error instanceof ThawError && error.details !== undefined ? { because: error.details } : {}
    if (first !== null && (await waitUntil(() => !isAlive(first), afterlifeMs)))
      throw new ThawError('snapshot_failed', 'The sandbox ended while the snapshot was taken.', {
        fix: 'Start another one, from its last snapshot if it has one.',
        details: { ended: true, ...details },
        cause: error,
      })
    const gone = this.#settled.filter((process) => !isAlive(process)).map(({ name }) => name)
    if (gone.length === 0) return
    throw new ThawError(
      'snapshot_failed',
      `The snapshot failed. The sandbox goes on, but without what ended meanwhile: ${gone.join(', ')}.`,
      {
        fix: 'Start it again in the sandbox, and take another snapshot.',
        details: { ended_processes: gone, ...details },
        cause: error,
      },
    )
  }
}

/** What the kernel calls it: the first 15 bytes of its program's name, or what it calls itself. */
function nameOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trim()
  } catch {
    return String(pid)
  }
}
