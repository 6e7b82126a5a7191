import type { DatabaseSync, SQLInputValue } from 'node:sqlite'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { InvocationStatus } from '@thaw/protocol'
import { type Compilable, type Kysely, sql } from 'kysely'
import type { InvocationRow, LogRow, RecordStore } from '../store.ts'
import { type Patience, patiently } from './errors.ts'
import type { RecordBuffer } from './record-buffer.ts'
import type { RecordWriter } from './record-writer.ts'
import type { InvocationTable, LogTable, Tables } from './tables.ts'

/** Rows removed in one transaction: a few milliseconds of the event loop. */
const pruneRows = 500

/**
 * Records of invocations and logs. Reads are synchronous inside: each sees the buffer and the database at one moment,
 * so that a row is never missed or seen twice because a batch was written in between.
 */
export class SqliteRecords implements RecordStore {
  readonly #db: DatabaseSync
  readonly #queries: Kysely<Tables>
  readonly #buffer: RecordBuffer
  readonly #writer: RecordWriter
  readonly #patience: Patience

  /** `queries` only compiles here; it runs on `db`. */
  constructor(db: DatabaseSync, queries: Kysely<Tables>, buffer: RecordBuffer, writer: RecordWriter, patience: Patience) {
    this.#db = db
    this.#queries = queries
    this.#buffer = buffer
    this.#writer = writer
    this.#patience = patience
  }

  invocation(row: InvocationRow): void {
    this.#buffer.addInvocation(row)
    this.#writer.schedule()
  }

  log(row: LogRow): void {
    this.#buffer.addLog(row)
    this.#writer.schedule()
  }

  async getInvocation(id: string): Promise<InvocationRow | null> {
    const buffered = this.#buffer.invocations.get(id)
    if (buffered !== undefined) return { ...buffered }
    const query = this.#queries.selectFrom('invocations').selectAll().where('id', '=', id)
    return patiently(this.#patience, () => {
      for (const row of this.#rows<InvocationTable>(query)) return decodeInvocation(row)
      return null
    })
  }

  listInvocations(filter: {
    tenant: string
    function?: string | undefined
    status?: InvocationStatus | undefined
    before?: string | undefined
    limit: number
  }): Promise<InvocationRow[]> {
    let query = this.#queries.selectFrom('invocations').selectAll().where('tenant', '=', filter.tenant).orderBy('id', 'desc')
    if (filter.function !== undefined) query = query.where('function', '=', filter.function)
    if (filter.status !== undefined) query = query.where('status', '=', filter.status)
    // The index by status holds no others, and is used only where the query itself says so.
    if (filter.status !== undefined && filter.status !== 'succeeded') query = query.where(sql<boolean>`status <> 'succeeded'`)
    if (filter.before !== undefined) query = query.where('id', '<', filter.before)
    return patiently(this.#patience, () => {
      const found: InvocationRow[] = []
      for (const row of this.#buffer.invocations.values()) {
        if (row.tenant !== filter.tenant) continue
        if (filter.function !== undefined && row.function !== filter.function) continue
        if (filter.status !== undefined && row.status !== filter.status) continue
        if (filter.before === undefined || row.id < filter.before) found.push({ ...row })
      }
      let stored = 0
      for (const row of this.#rows<InvocationTable>(query)) {
        // The buffer holds a newer form of this row, whether or not that one fits the filter.
        if (this.#buffer.invocations.has(row.id)) continue
        if (stored++ >= filter.limit) break
        found.push(decodeInvocation(row))
      }
      return found.sort((a, b) => (a.id < b.id ? 1 : -1)).slice(0, filter.limit)
    })
  }

  logs(filter: { tenant?: string; function?: string; invocation_id?: string; limit: number }): Promise<LogRow[]> {
    let query = this.#queries.selectFrom('logs').selectAll().orderBy('seq', 'desc').limit(filter.limit)
    if (filter.tenant !== undefined) query = query.where('tenant', '=', filter.tenant)
    if (filter.function !== undefined) query = query.where('function', '=', filter.function)
    if (filter.invocation_id !== undefined) query = query.where('invocation_id', '=', filter.invocation_id)
    return patiently(this.#patience, () => {
      const stored = [...this.#rows<LogTable>(query)].reverse().map(decodeLog)
      const buffered = this.#buffer.logs.filter(
        (row) =>
          (filter.tenant === undefined || row.tenant === filter.tenant) &&
          (filter.function === undefined || row.function === filter.function) &&
          (filter.invocation_id === undefined || row.invocation_id === filter.invocation_id),
      )
      return [...stored, ...buffered.map((row) => ({ ...row }))].slice(-filter.limit)
    })
  }

  async prune(olderThan: { invocations: number; logs: number }): Promise<number> {
    // Neither has an index on time: both come in its order, so the old ones are the first. A run that finds a young one
    // among them stops there, and goes on when that one is old too.
    let removed = await this.#deleteAll(
      `DELETE FROM invocations WHERE created_at < ? AND id IN (SELECT id FROM invocations ORDER BY id LIMIT ${pruneRows})`,
      olderThan.invocations,
    )
    removed += await this.#deleteAll(
      `DELETE FROM logs WHERE time < ? AND seq IN (SELECT seq FROM logs ORDER BY seq LIMIT ${pruneRows})`,
      olderThan.logs,
    )
    for (const { tenant, name } of await this.#orphans()) removed += await this.#deleteStored(tenant, name)
    return removed
  }

  async deleteOfFunction(tenant: string, name: string): Promise<void> {
    this.#buffer.removeFunction(tenant, name)
    await this.#deleteStored(tenant, name)
  }

  flush(): Promise<void> {
    return this.#writer.flush()
  }

  async #deleteStored(tenant: string, name: string): Promise<number> {
    const some = (key: string, table: string) =>
      `DELETE FROM ${table} WHERE ${key} IN (SELECT ${key} FROM ${table} WHERE tenant = ? AND function = ? LIMIT ${pruneRows})`
    const invocations = await this.#deleteAll(some('id', 'invocations'), tenant, name)
    return invocations + (await this.#deleteAll(some('seq', 'logs'), tenant, name))
  }

  /** Functions that have records and are gone. Hops from name to name in the index instead of reading all of it. */
  async #orphans(): Promise<{ tenant: string; name: string }[]> {
    const known = this.#db.prepare('SELECT 1 FROM functions WHERE tenant = ? AND name = ?')
    const orphans: { tenant: string; name: string }[] = []
    for (const table of ['invocations', 'logs']) {
      const hop = this.#db.prepare(
        `SELECT tenant, function AS name FROM ${table} WHERE (tenant, function) > (?, ?) ORDER BY tenant, function LIMIT 1`,
      )
      for (let at = { tenant: '', name: '' }; ; ) {
        const next = await patiently(this.#patience, () => hop.get(at.tenant, at.name) as typeof at | undefined)
        if (next === undefined) break
        if ((await patiently(this.#patience, () => known.get(next.tenant, next.name))) === undefined) orphans.push(next)
        at = next
      }
    }
    return orphans
  }

  /** Runs a delete of at most pruneRows until it removes fewer, letting other work through in between. */
  async #deleteAll(sql: string, ...parameters: SQLInputValue[]): Promise<number> {
    const statement = this.#db.prepare(sql)
    for (let removed = 0; ; ) {
      const changes = await patiently(this.#patience, () => Number(statement.run(...parameters).changes))
      removed += changes
      if (changes < pruneRows) return removed
      await nextTurn()
    }
  }

  /** The rows of a query, one by one; whoever stops early stops the reading. */
  #rows<Row>(query: Compilable<Row>): Iterable<Row> {
    const { sql, parameters } = query.compile()
    return this.#db.prepare(sql).iterate(...(parameters as SQLInputValue[])) as Iterable<unknown> as Iterable<Row>
  }
}

function decodeInvocation(row: InvocationTable): InvocationRow {
  return {
    ...row,
    status: row.status as InvocationRow['status'],
    trigger: row.trigger as InvocationRow['trigger'],
    boot_method: row.boot_method as InvocationRow['boot_method'],
    error: row.error === null ? null : JSON.parse(row.error),
    timing: row.timing === null ? null : JSON.parse(row.timing),
    logs_truncated: row.logs_truncated === 1,
  }
}

function decodeLog({ seq: _, ...row }: LogTable): LogRow {
  return { ...row, source: row.source as LogRow['source'] }
}
