import { posix } from 'node:path'
import { type FileEvent, fileEvents, type StreamCommandParsed, ThawError, toThawError } from '@thaw/protocol'
import { NotUnderstood } from '../../agent/connect.ts'
import { understand, watchMessageSchema } from '../../agent/messages.ts'
import type { StreamLine } from './stream-line.ts'

type Watch = Extract<StreamCommandParsed, { type: 'watch' }>

/** A folder that a stream watches. */
export class StreamWatch {
  readonly id: string
  readonly #request: Watch
  readonly #line: StreamLine
  readonly #over = new AbortController()
  #started = false

  constructor(request: Watch, line: StreamLine) {
    this.id = request.id
    this.#request = request
    this.#line = line
  }

  /** Resolves when nothing is watched any more; says to the client what happened. */
  async run(): Promise<void> {
    try {
      for (;;) {
        await this.#follow()
        await this.#line.whenBack(this.#over.signal)
      }
    } catch (error) {
      if (this.#over.signal.aborted) return
      this.#line.send({ type: 'error', id: this.id, ended: true, error: toThawError(error).toBody().error })
    }
  }

  /** Returns when the connection to the agent broke off. */
  async #follow(): Promise<void> {
    const { path, recursive, user } = this.#request
    try {
      const agent = await this.#line.agent()
      const messages = agent.stream('filesystem.Filesystem/WatchDir', { path, recursive }, { user, signal: this.#over.signal })
      for await (const message of messages) {
        const { start, filesystem } = understand(watchMessageSchema, message)
        if (start !== undefined) this.#onStart()
        const event = kindOf(filesystem?.type)
        if (filesystem === undefined || event === null) continue
        this.#line.send({ type: 'file_event', id: this.id, path: posix.join(path, filesystem.name), event })
        await this.#line.room()
      }
    } catch (error) {
      const isLost = error instanceof ThawError && error.code === 'sandbox_unavailable' && !(error instanceof NotUnderstood)
      if (!isLost || !this.#started || this.#over.signal.aborted) throw await this.#line.why(error)
    }
  }

  #onStart(): void {
    if (!this.#started) this.#line.send({ type: 'started', id: this.id, pid: null })
    else {
      const error = new ThawError('sandbox_unavailable', 'The sandbox was away: what happened to the files meanwhile is not known.')
      this.#line.send({ type: 'error', id: this.id, ended: false, error: error.toBody().error })
    }
    this.#started = true
  }

  close(): void {
    this.#over.abort()
  }
}

/** `EVENT_TYPE_CREATE` and the like. */
function kindOf(type: string | undefined): FileEvent | null {
  const name = type?.replace('EVENT_TYPE_', '').toLowerCase()
  return fileEvents.find((known) => known === name) ?? null
}
