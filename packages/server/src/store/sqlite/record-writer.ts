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
/** Rows of one statement: preparing, stepping and resetting it for each row costs as much as the row. */
const groupRows = 8
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
  readonly #invocations: RowTable<InvocationRow>
  readonly #logs: RowTable<LogRow>
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
    this.#invocations = new RowTable(db, 'REPLACE', 'invocations', invocationColumns, invocationValues)
    this.#logs = new RowTable(db, 'INSERT', 'logs', logColumns, logValues)
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
      const isRest = this.#writeBatch()
      if (this.#pauseMs !== null) this.#log.info({ buffered: this.#buffer.size }, 'records can be written again')
      this.#pauseMs = null
      if (isRest) this.#immediate = setImmediate(this.#run)
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

  /** Writes one batch in one transaction. True when it left rows behind. */
  #writeBatch(): boolean {
    const end = performance.now() + batchMs
    this.#db.exec('BEGIN IMMEDIATE')
    try {
      const invocations = this.#write(this.#invocations, this.#buffer.invocations.values(), batchRows, end)
      const logs = this.#write(this.#logs, this.#buffer.logs, batchRows - invocations, end)
      this.#db.exec('COMMIT')
      this.#buffer.remove(invocations, logs)
      this.#patience.done?.()
      return this.#buffer.size > 0
    } catch (error) {
      // A full disk has ended the transaction by itself.
      if (this.#db.isTransaction) this.#db.exec('ROLLBACK')
      throw error
    }
  }

  /** Writes rows until `most` are written or it is later than `end`, and gives how many are done with. */
  #write<Row extends InvocationRow | LogRow>(table: RowTable<Row>, rows: Iterable<Row>, most: number, end: number): number {
    let written = 0
    let group: Row[] = []
    const writeGroup = () => {
      this.#insert(table, group)
      written += group.length
      group = []
    }
    for (const row of rows) {
      if (written + group.length >= most) break
      group.push(row)
      if (group.length < groupRows) continue
      writeGroup()
      if (performance.now() > end) return written
    }
    writeGroup()
    return written
  }

  /** One row that SQLite refuses for what it holds must not hold up all others: it is given up. */
  #insert<Row extends InvocationRow | LogRow>(table: RowTable<Row>, rows: readonly Row[]): void {
    if (rows.length === groupRows) {
      try {
        table.insertGroup(rows)
        return
      } catch (error) {
        // A statement that fails leaves none of its rows: they are tried one by one.
        if (isEnvironmental(error)) throw error
      }
    }
    for (const row of rows) {
      try {
        table.insert(row)
      } catch (error) {
        if (isEnvironmental(error)) throw error
        this.#log.warn({ err: error, function: row.function }, 'a record could not be written and was dropped')
      }
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

/** The two statements of a table: one row, and a group of them. */
class RowTable<Row> {
  readonly #one: StatementSync
  readonly #group: StatementSync
  readonly #values: (row: Row) => SQLInputValue[]

  constructor(
    db: DatabaseSync,
    verb: 'INSERT' | 'REPLACE',
    table: string,
    columns: readonly string[],
    values: (row: Row) => SQLInputValue[],
  ) {
    const into = `${verb} INTO ${table} (${columns.map((column) => `"${column}"`).join(', ')}) VALUES `
    const row = `(${columns.map(() => '?').join(', ')})`
    this.#one = db.prepare(into + row)
    this.#group = db.prepare(into + Array(groupRows).fill(row).join(', '))
    this.#values = values
  }

  insert(row: Row): void {
    this.#one.run(...this.#values(row))
  }

  /** Exactly `groupRows` rows. */
  insertGroup(rows: readonly Row[]): void {
    this.#group.run(...rows.flatMap(this.#values))
  }
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
