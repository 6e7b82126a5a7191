import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { InvocationRow, LogRow } from '../store.ts'
import { isEnvironmental, type Patience, patiently, storeError } from './errors.ts'
import type { StoreLog } from './open.ts'
import type { RecordBuffer } from './record-buffer.ts'
import type { InvocationTable, LogTable } from './tables.ts'

const flushMs = 100
const batchRows = 500
/** A batch ends early after this long: writing shares the event loop with the requests. */
const batchMs = 3
const retryMs = { first: 100, longest: 2000 }

/**
 * Moves records from the buffer to the database: within 100 ms or as soon as 500 are waiting, in transactions of a few
 * milliseconds. When the database takes no writes they stay in the buffer, and it is tried again until it does.
 */
export class RecordWriter {
  readonly #db: DatabaseSync
  readonly #buffer: RecordBuffer
  readonly #patience: Patience
  readonly #log: StoreLog
  readonly #insertInvocation: StatementSync
  readonly #insertLog: StatementSync
  #timer: NodeJS.Timeout | null = null
  #immediate: NodeJS.Immediate | null = null
  /** While writing fails: the pause before the next try. */
  #pauseMs: number | null = null
  #closed = false

  constructor(db: DatabaseSync, buffer: RecordBuffer, patience: Patience, log: StoreLog) {
    this.#db = db
    this.#buffer = buffer
    this.#patience = patience
    this.#log = log
    // By hand rather than through Kysely: this is the one hot path of the store, and building a query for each row
    // costs more than writing it.
    this.#insertInvocation = db.prepare(insertSql('REPLACE', 'invocations', invocationColumns))
    this.#insertLog = db.prepare(insertSql('INSERT', 'logs', logColumns))
  }

  /** To be called after every row that was added. */
  schedule(): void {
    if (this.#immediate !== null || this.#pauseMs !== null || this.#closed) return
    if (this.#buffer.size >= batchRows) this.#immediate = setImmediate(this.#run)
    else this.#timer ??= setTimeout(this.#run, flushMs)
  }

  readonly #run = (): void => {
    this.#clearTimers()
    try {
      const cutShort = this.#writeBatch()
      if (this.#pauseMs !== null) this.#log.info({ buffered: this.#buffer.size }, 'records can be written again')
      this.#pauseMs = null
      if (cutShort) this.#immediate = setImmediate(this.#run)
      else if (this.#buffer.size > 0) this.schedule()
    } catch (cause) {
      const error = storeError(cause, this.#patience.dataDir)
      if (this.#pauseMs === null) this.#log.warn({ code: error.code, err: error }, 'records cannot be written; keeping them in memory')
      this.#pauseMs = Math.min((this.#pauseMs ?? retryMs.first / 2) * 2, retryMs.longest)
      this.#timer = setTimeout(this.#run, this.#pauseMs)
    }
  }

  /** Writes all that is buffered, other work of the event loop in between. */
  async flush(): Promise<void> {
    while (this.#buffer.size > 0) {
      await patiently(this.#patience, () => this.#writeBatch())
      await nextTurn()
    }
  }

  /** Writes what can be written and stops. */
  async close(): Promise<void> {
    this.#closed = true
    this.#clearTimers()
    await this.flush().catch((error: unknown) => {
      this.#log.warn({ err: error, lost: this.#buffer.size }, 'records could not be written before closing')
    })
  }

  /** Writes one batch in one transaction. True when it left rows behind because it was full. */
  #writeBatch(): boolean {
    const end = performance.now() + batchMs
    const counts = { invocations: 0, logs: 0 }
    const full = () => {
      const written = counts.invocations + counts.logs
      return written >= batchRows || (written > 0 && performance.now() > end)
    }
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      let cutShort = false
      for (const row of this.#buffer.invocations.values()) {
        if (full()) {
          cutShort = true
          break
        }
        this.#insert(this.#insertInvocation, invocationValues, row)
        counts.invocations++
      }
      for (const row of this.#buffer.logs) {
        if (cutShort || full()) {
          cutShort = true
          break
        }
        this.#insert(this.#insertLog, logValues, row)
        counts.logs++
      }
      this.#db.exec('COMMIT')
      this.#buffer.remove(counts.invocations, counts.logs)
      this.#patience.done?.()
      return cutShort
    } catch (error) {
      // A full disk has ended the transaction by itself.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK')
      throw error
    }
  }

  /** One row that SQLite refuses for what it holds must not hold up all others: it is given up. */
  #insert<Row extends InvocationRow | LogRow>(statement: StatementSync, values: (row: Row) => SQLInputValue[], row: Row): void {
    try {
      statement.run(...values(row))
    } catch (error) {
      if (isEnvironmental(error)) throw error
      this.#log.warn({ err: error, function: row.function }, 'a record could not be written and was dropped')
    }
  }

  #clearTimers(): void {
    if (this.#timer !== null) clearTimeout(this.#timer)
    if (this.#immediate !== null) clearImmediate(this.#immediate)
    this.#timer = null
    this.#immediate = null
  }
}

const invocationColumns = [
  'id',
  'tenant',
  'function',
  'version',
  'status',
  'attempt',
  'trigger',
  'boot_method',
  'sandbox_id',
  'result',
  'error',
  'request_bytes',
  'result_bytes',
  'timing',
  'logs_truncated',
  'created_at',
  'started_at',
  'ended_at',
] as const satisfies (keyof InvocationTable)[]

const logColumns = [
  'tenant',
  'function',
  'version',
  'invocation_id',
  'sandbox_id',
  'source',
  'message',
  'time',
] as const satisfies (keyof LogTable)[]

function insertSql(verb: 'INSERT' | 'REPLACE', table: string, columns: readonly string[]): string {
  return `${verb} INTO ${table} (${columns.map((column) => `"${column}"`).join(', ')}) VALUES (${columns.map(() => '?').join(', ')})`
}

/** In the order of invocationColumns. */
function invocationValues(row: InvocationRow): SQLInputValue[] {
  return [
    row.id,
    row.tenant,
    row.function,
    row.version,
    row.status,
    row.attempt,
    row.trigger,
    row.boot_method,
    row.sandbox_id,
    row.result,
    row.error === null ? null : JSON.stringify(row.error),
    row.request_bytes,
    row.result_bytes,
    row.timing === null ? null : JSON.stringify(row.timing),
    row.logs_truncated ? 1 : 0,
    row.created_at,
    row.started_at,
    row.ended_at,
  ]
}

/** In the order of logColumns. */
function logValues(row: LogRow): SQLInputValue[] {
  return [row.tenant, row.function, row.version, row.invocation_id, row.sandbox_id, row.source, row.message, row.time]
}
