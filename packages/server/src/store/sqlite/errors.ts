import { statfsSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { ThawError } from '@thaw/protocol'

/** Primary result codes, https://sqlite.org/rescode.html; the upper bits of `errcode` only say more about the same. */
const result = {
  busy: 5,
  locked: 6,
  nomem: 7,
  readonly: 8,
  ioerr: 10,
  corrupt: 11,
  full: 13,
  cantopen: 14,
  protocol: 15,
  notadb: 26,
} as const

function resultOf(error: unknown): number | null {
  const errcode = (error as { errcode?: unknown } | null)?.errcode
  return typeof errcode === 'number' ? errcode & 0xff : null
}

/** Somebody else holds the lock right now. */
export function isBusy(error: unknown): boolean {
  const code = resultOf(error)
  return code === result.busy || code === result.locked || code === result.protocol
}

/** The database as a whole cannot be used now, whatever the statement was; anything else is about one row. */
export function isEnvironmental(error: unknown): boolean {
  const code = resultOf(error)
  if (isBusy(error)) return true
  const others: (number | null)[] = [
    result.nomem,
    result.readonly,
    result.ioerr,
    result.corrupt,
    result.full,
    result.cantopen,
    result.notadb,
  ]
  return others.includes(code)
}

/** What SQLite said, as an error of ours. `dataDir` is asked whether its disk is full. */
export function storeError(error: unknown, dataDir: string): ThawError {
  if (error instanceof ThawError) return error
  const said = error instanceof Error ? error.message : String(error)
  const code = resultOf(error)
  const systemCode = (error as { code?: unknown } | null)?.code
  if (code === result.corrupt || code === result.notadb) {
    return new ThawError('database_corrupt', `The database in ${dataDir} is damaged; it was left as it is. SQLite says: ${said}.`, {
      cause: error,
    })
  }
  // A full disk shows as SQLITE_FULL when a page is written, and as an I/O error when the shared memory grows.
  const full = code === result.full || systemCode === 'ENOSPC' || systemCode === 'EDQUOT'
  if (full || (code === result.ioerr && isDiskFull(dataDir))) {
    return new ThawError('disk_full', `The disk of ${dataDir} is full.`, { cause: error })
  }
  if (isEnvironmental(error) || typeof systemCode === 'string') {
    return new ThawError('database_unavailable', `The database in ${dataDir} does not answer: ${said}.`, { cause: error })
  }
  return new ThawError('internal', undefined, { cause: error })
}

function isDiskFull(path: string): boolean {
  try {
    return statfsSync(path).bavail === 0
  } catch {
    return false
  }
}

export interface Patience {
  dataDir: string
  /** How long a locked database is tried again. */
  busyMs: number
  /** Called after each piece of work that succeeded. */
  done?: () => void
}

/**
 * Does the work, again while the database is locked, and gives errors as ours. SQLite's own busy timeout is not used:
 * it would stop the event loop while it waits.
 */
export async function patiently<Value>(patience: Patience, work: () => Value | Promise<Value>): Promise<Value> {
  const deadline = performance.now() + patience.busyMs
  for (let pauseMs = 2; ; pauseMs = Math.min(pauseMs * 2, 50)) {
    try {
      const value = await work()
      patience.done?.()
      return value
    } catch (error) {
      if (!isBusy(error) || performance.now() >= deadline) throw storeError(error, patience.dataDir)
    }
    await delay(pauseMs)
  }
}
