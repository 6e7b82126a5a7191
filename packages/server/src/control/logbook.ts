import { EventEmitter } from 'node:events'
import type { LogEntry } from '@thaw/protocol'
import type { LogRow } from '../store/store.ts'
import { qualified } from './caller.ts'
import type { Version } from './version.ts'

export interface LogLine {
  invocationId: string | null
  sandboxId: string | null
  source: LogEntry['source']
  message: string
}

/** Takes what functions print: to the store, and to those who follow right now. */
export class LogBook {
  readonly #store: { log(row: LogRow): void }
  readonly #followers = new EventEmitter()

  constructor(store: { log(row: LogRow): void }) {
    this.#store = store
    this.#followers.setMaxListeners(0)
  }

  add(version: Version, line: LogLine): void {
    const row: LogRow = {
      tenant: version.tenant,
      function: version.functionName,
      version: version.number,
      invocation_id: line.invocationId,
      sandbox_id: line.sandboxId,
      source: line.source,
      message: line.message.endsWith('\n') ? line.message.slice(0, -1) : line.message,
      time: Date.now(),
    }
    this.#store.log(row)
    this.#followers.emit(qualified(row.tenant, row.function), row)
  }

  /** Calls `onRow` for each new line of a function until the returned function is called. */
  follow(tenant: string, functionName: string, onRow: (row: LogRow) => void): () => void {
    const name = qualified(tenant, functionName)
    this.#followers.on(name, onRow)
    return () => this.#followers.off(name, onRow)
  }
}
