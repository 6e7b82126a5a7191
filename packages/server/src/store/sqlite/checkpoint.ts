import { Worker } from 'node:worker_threads'
import type { StoreLog } from './open.ts'

const everyMs = 1000
/** Of 4 KiB: 64 MiB. */
const longestLogPages = 16_384

/**
 * Keeps the write-ahead log short without stopping the event loop: a checkpoint syncs the disk, which takes as long as
 * the disk likes, so a thread does it, at most once a second and only after writes.
 */
export class Checkpointer {
  readonly #worker: Worker
  readonly #log: StoreLog
  readonly #onLost: () => void
  readonly #ended: Promise<void>
  #timer: NodeJS.Timeout | null = null
  #busy = false
  #again = false
  #closing = false

  /** `onLost` is called when the thread has died: from then on somebody else must do checkpoints. */
  constructor(path: string, log: StoreLog, onLost: () => void) {
    this.#log = log
    this.#onLost = onLost
    // Published code is JavaScript; a URL, unlike an import, is not rewritten when it is compiled.
    const file = import.meta.url.endsWith('.ts') ? './checkpoint-worker.ts' : './checkpoint-worker.js'
    this.#worker = new Worker(new URL(file, import.meta.url), { workerData: { path, longestLogPages }, name: 'thaw-checkpoint' })
    this.#worker.unref()
    this.#ended = new Promise((resolve) => {
      this.#worker.once('exit', () => {
        resolve()
        if (!this.#closing) this.#lost('it ended')
      })
    })
    this.#worker.on('error', (error) => this.#lost(error.message))
    this.#worker.on('message', (problem: string | null) => {
      this.#busy = false
      if (problem !== null) this.#log.warn({ problem }, 'a checkpoint of the database failed')
      if (this.#again) this.noteWrite()
    })
  }

  noteWrite(): void {
    if (this.#closing || this.#timer !== null) return
    if (this.#busy) {
      this.#again = true
      return
    }
    this.#again = false
    this.#timer = setTimeout(() => {
      this.#timer = null
      this.#busy = true
      this.#worker.postMessage('checkpoint')
    }, everyMs)
    this.#timer.unref()
  }

  async close(): Promise<void> {
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (!this.#closing) {
      this.#closing = true
      this.#worker.ref()
      this.#worker.postMessage('close')
    }
    await this.#ended
  }

  #lost(reason: string): void {
    if (this.#closing) return
    this.#closing = true
    this.#log.warn({ reason }, 'the checkpoint thread is lost; checkpoints now happen between requests')
    this.#onLost()
  }
}
