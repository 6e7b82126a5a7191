import { type InvocationItem, type InvocationStatus, type LogEntry, ThawError } from '@thaw/protocol'
import type { InvocationRow, LogRow, RecordStore } from '../store/store.ts'
import type { Caller } from './caller.ts'
import type { Invoker } from './invoker.ts'
import type { LogBook } from './logbook.ts'

/** What is known of invocations: those that run, and the records of those that ended. */
export class Invocations {
  readonly #records: RecordStore
  readonly #invoker: Invoker
  readonly #logBook: LogBook

  constructor(records: RecordStore, invoker: Invoker, logBook: LogBook) {
    this.#records = records
    this.#invoker = invoker
    this.#logBook = logBook
  }

  async get(caller: Caller, id: string): Promise<InvocationItem> {
    const row = this.#invoker.active(id)?.row() ?? (await this.#records.getInvocation(id))
    if (row === null || row.tenant !== caller.tenant) throw new ThawError('invocation_not_found', `There is no invocation ${id}.`)
    return toItem(row)
  }

  /** Newest first; those that still run come first on the first page. */
  async list(
    caller: Caller,
    filter: {
      function?: string | undefined
      status?: InvocationStatus | undefined
      cursor?: string | undefined
      limit: number
    },
  ): Promise<{ items: InvocationItem[]; next: string | null }> {
    const running = this.#invoker.running
      .map((invocation) => invocation.row())
      .filter(
        (row) =>
          row.tenant === caller.tenant &&
          (filter.function === undefined || row.function === filter.function) &&
          (filter.status === undefined || row.status === filter.status) &&
          (filter.cursor === undefined || row.id < filter.cursor),
      )
    const ended = await this.#records.listInvocations({
      tenant: caller.tenant,
      function: filter.function,
      status: filter.status,
      before: filter.cursor,
      limit: filter.limit + 1,
    })
    const rows = [...running, ...ended].sort((a, b) => (a.id < b.id ? 1 : -1))
    const page = rows.slice(0, filter.limit)
    return { items: page.map(toItem), next: rows.length > filter.limit ? (page.at(-1)?.id ?? null) : null }
  }

  async logs(caller: Caller, id: string, limit: number): Promise<LogEntry[]> {
    await this.get(caller, id)
    return (await this.#records.logs({ invocation_id: id, limit })).map(toLogEntry)
  }

  async logsOfFunction({ tenant }: Caller, name: string, limit: number): Promise<LogEntry[]> {
    return (await this.#records.logs({ tenant, function: name, limit })).map(toLogEntry)
  }

  /** Calls `onEntry` for each new line until the returned function is called. */
  followLogs({ tenant }: Caller, name: string, onEntry: (entry: LogEntry) => void): () => void {
    return this.#logBook.follow(tenant, name, (row) => onEntry(toLogEntry(row)))
  }

  /** Ends a running invocation; one that has ended stays as it is. */
  async cancel(caller: Caller, id: string): Promise<InvocationItem> {
    const invocation = this.#invoker.active(id)
    if (invocation === undefined || invocation.version.tenant !== caller.tenant) return this.get(caller, id)
    invocation.cancel()
    return toItem(invocation.row())
  }
}

function toItem({ tenant: _, ...row }: InvocationRow): InvocationItem {
  const time = (value: number | null) => (value === null ? null : new Date(value).toISOString())
  return {
    ...row,
    result: row.result === null ? null : parseResult(row.result),
    created_at: new Date(row.created_at).toISOString(),
    started_at: time(row.started_at),
    ended_at: time(row.ended_at),
  }
}

/** Results are recorded as the function sent them; what calls itself JSON need not be. */
function parseResult(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

function toLogEntry({ tenant: _, ...row }: LogRow): LogEntry {
  return { ...row, time: new Date(row.time).toISOString() }
}
