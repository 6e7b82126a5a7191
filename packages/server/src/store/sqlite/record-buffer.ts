import type { InvocationRow, LogRow } from '../store.ts'

export interface BufferLimits {
  rows: number
  bytes: number
}

/** Rough size of a row without its texts: it only has to keep memory bounded, not to be right. */
const rowBytes = 400

/**
 * Records that are not on disk yet, oldest first. Bounded: a database that takes no writes must not eat the memory of
 * the server. Adding costs about a microsecond, because it happens once per invocation and once per log line.
 */
export class RecordBuffer {
  readonly #limits: BufferLimits
  readonly #onDrop: (rows: number) => void
  /** By id, so that the same id again replaces. Maps keep the order of insertion. */
  readonly invocations = new Map<string, InvocationRow>()
  logs: LogRow[] = []
  #bytes = 0

  constructor(limits: BufferLimits, onDrop: (rows: number) => void) {
    this.#limits = limits
    this.#onDrop = onDrop
  }

  get size(): number {
    return this.invocations.size + this.logs.length
  }

  addInvocation(row: InvocationRow): void {
    const replaced = this.invocations.get(row.id)
    if (replaced !== undefined) this.#bytes -= bytesOf(replaced)
    this.invocations.set(row.id, row)
    this.#bytes += bytesOf(row)
    this.#bound()
  }

  addLog(row: LogRow): void {
    this.logs.push(row)
    this.#bytes += bytesOf(row)
    this.#bound()
  }

  /** Removes the oldest rows of each kind, as many as were written. */
  remove(invocations: number, logs: number): void {
    for (const [id, row] of this.invocations) {
      if (invocations-- <= 0) break
      this.#bytes -= bytesOf(row)
      this.invocations.delete(id)
    }
    for (const row of this.logs.splice(0, logs)) this.#bytes -= bytesOf(row)
  }

  removeFunction(tenant: string, name: string): void {
    for (const [id, row] of this.invocations) if (row.function === name && row.tenant === tenant) this.invocations.delete(id)
    this.logs = this.logs.filter((row) => row.function !== name || row.tenant !== tenant)
    this.#bytes = 0
    for (const row of this.invocations.values()) this.#bytes += bytesOf(row)
    for (const row of this.logs) this.#bytes += bytesOf(row)
  }

  /** Drops the oldest logs, and only without any the oldest invocations, which tell more. In hundreds, to stay cheap. */
  #bound(): void {
    while (this.size > this.#limits.rows || (this.#bytes > this.#limits.bytes && this.size > 1)) {
      const before = this.size
      const some = Math.max(1, Math.min(100, before >> 4))
      if (this.logs.length > 0) this.remove(0, some)
      else this.remove(some, 0)
      this.#onDrop(before - this.size)
    }
  }
}

function bytesOf(row: InvocationRow | LogRow): number {
  if ('message' in row) return rowBytes + row.message.length
  return (
    rowBytes + (row.result?.length ?? 0) + (row.error === null ? 0 : row.error.message.length + (row.error.details?.stack?.length ?? 0))
  )
}
