import { mkdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import type { DatabaseSync } from 'node:sqlite'
import { migrations } from '../migrations/index.ts'
import { migrate } from '../migrations/migrate.ts'
import type { Store } from '../store.ts'
import { Checkpointer } from './checkpoint.ts'
import { openConnection, openQueries } from './connection.ts'
import { type Patience, patiently, storeError } from './errors.ts'
import { SqliteFunctions } from './functions.ts'
import { SqliteIdempotency } from './idempotency.ts'
import { markClean, prepareFile } from './integrity.ts'
import { SqliteKeys } from './keys.ts'
import { lockDataDir } from './lock.ts'
import { RecordBuffer } from './record-buffer.ts'
import { RecordWriter } from './record-writer.ts'
import { SqliteRecords } from './records.ts'
import { SqliteResults } from './results.ts'
import { SqliteSandboxes } from './sandboxes.ts'
import { SqliteSecrets } from './secrets.ts'
import { SqliteSnapshots } from './snapshots.ts'
import { SqliteSshKeys } from './ssh-keys.ts'

/** What the store needs of a logger; pino's fits. */
export interface StoreLog {
  info(fields: object, message: string): void
  warn(fields: object, message: string): void
}

export interface OpenOptions {
  /** Made when it does not exist. */
  dataDir: string
  log: StoreLog
  now?: () => number
  /** How long a locked database is tried again before `database_unavailable`. Default 5000. */
  busyMs?: number
  /** Bounds of what waits in memory for being written. Default 50,000 rows and 64 MiB. */
  buffer?: { rows: number; bytes: number }
  /** Called with the number of records that were given up because the buffer was full. */
  onRecordsDropped?: (rows: number) => void
}

/**
 * Opens `<dataDir>/thaw.db` and brings it to the newest form. Errors: `data_dir_in_use`, `database_corrupt`,
 * `database_unavailable`, `disk_full`; after each of them nothing stays open or locked.
 */
export async function openStore(options: OpenOptions): Promise<Store> {
  const { log, now = Date.now } = options
  const dataDir = resolve(options.dataDir)
  const path = join(dataDir, 'thaw.db')
  const opened: (() => void | Promise<void>)[] = []
  const closeAll = async () => {
    for (const close of opened.reverse()) {
      try {
        await close()
      } catch (error) {
        log.warn({ err: error }, 'a part of the database could not be closed in order')
      }
    }
  }
  try {
    // Others may pass through, since sandboxes reach what is mounted from below here, but not look around.
    mkdirSync(dataDir, { recursive: true, mode: 0o711 })
    const lock = lockDataDir(dataDir)
    opened.push(() => lock.release())

    let noteUse = () => {}
    const patience: Patience = { dataDir, busyMs: options.busyMs ?? 5000, done: () => noteUse() }
    await patiently(patience, () => prepareFile(path))

    const durable = await openWhenFree(path, 'FULL', patience, opened)
    const queries = openQueries(durable)
    const taken = await patiently(patience, () => migrate(queries, migrations, now()))
    if (taken.length > 0) log.info({ steps: taken }, 'the database was brought to its newest form')

    const behind = await openWhenFree(path, 'NORMAL', patience, opened)
    const checkpointer = new Checkpointer(path, log, () => behind.exec('PRAGMA wal_autocheckpoint = 1000'))
    opened.push(() => checkpointer.close())
    noteUse = () => checkpointer.noteWrite()

    const buffer = new RecordBuffer(options.buffer ?? { rows: 50_000, bytes: 64 * 1024 * 1024 }, dropReporter(options))
    const writer = new RecordWriter(behind, buffer, patience, log)
    opened.push(() => writer.close())

    // Once open, the mark of a clean shutdown is set after the last connection was closed and before the lock is given back.
    opened.splice(1, 0, () => markClean(path))
    let closing: Promise<void> | undefined
    return {
      functions: new SqliteFunctions(queries, patience),
      records: new SqliteRecords(behind, queries, buffer, writer, patience),
      secrets: new SqliteSecrets(queries, patience),
      keys: new SqliteKeys(queries, patience),
      idempotency: new SqliteIdempotency(queries, patience),
      sandboxes: new SqliteSandboxes(queries, patience),
      snapshots: new SqliteSnapshots(queries, patience),
      results: new SqliteResults(queries, patience),
      sshKeys: new SqliteSshKeys(queries, patience),
      close() {
        closing ??= closeAll()
        return closing
      },
    }
  } catch (error) {
    await closeAll()
    throw storeError(error, dataDir)
  }
}

async function openWhenFree(
  path: string,
  synchronous: 'FULL' | 'NORMAL',
  patience: Patience,
  opened: (() => void)[],
): Promise<DatabaseSync> {
  const db = await patiently(patience, () => openConnection(path, synchronous))
  opened.push(() => db.close())
  return db
}

/** Counts what is dropped, and warns at most once in ten seconds: the log is on a disk that may be full as well. */
function dropReporter({ log, now = Date.now, onRecordsDropped }: OpenOptions): (rows: number) => void {
  let dropped = 0
  let warnedAt = Number.NEGATIVE_INFINITY
  return (rows) => {
    dropped += rows
    onRecordsDropped?.(rows)
    if (now() - warnedAt < 10_000) return
    warnedAt = now()
    log.warn({ dropped_since_start: dropped }, 'records were dropped: the database takes no writes and the buffer is full')
  }
}
