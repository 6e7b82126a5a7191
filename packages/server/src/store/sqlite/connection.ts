import { DatabaseSync, type SQLInputValue } from 'node:sqlite'
import { Kysely, type SqliteDatabase, SqliteDialect } from 'kysely'
import type { Tables } from './tables.ts'

/**
 * Opens a connection in WAL mode. Busy timeout 0: whoever waits does so in `patiently`, not inside SQLite.
 * Checkpoints are left to the checkpointer, since they sync the disk (see checkpoint.ts).
 */
export function openConnection(path: string, synchronous: 'FULL' | 'NORMAL'): DatabaseSync {
  const db = new DatabaseSync(path, { timeout: 0 })
  try {
    db.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = ${synchronous}; PRAGMA wal_autocheckpoint = 0; PRAGMA foreign_keys = ON`)
  } catch (error) {
    db.close()
    throw error
  }
  return db
}

/** Kysely speaks to better-sqlite3; this makes a connection of node:sqlite look like one. */
function asKyselyDatabase(db: DatabaseSync): SqliteDatabase {
  return {
    close: () => db.close(),
    prepare(sql) {
      // A deferred transaction that reads first and writes then can fail in the middle; this one waits at its start.
      const statement = db.prepare(sql === 'begin' ? 'begin immediate' : sql)
      const values = (parameters: readonly unknown[]) => parameters as SQLInputValue[]
      return {
        reader: statement.columns().length > 0,
        all: (parameters) => statement.all(...values(parameters)),
        run: (parameters) => statement.run(...values(parameters)),
        iterate: (parameters) => statement.iterate(...values(parameters)) as IterableIterator<unknown>,
      }
    },
  }
}

/** Queries on a connection. `destroy()` of it closes the connection, if it was ever used through Kysely. */
export function openQueries(db: DatabaseSync): Kysely<Tables> {
  return new Kysely<Tables>({ dialect: new SqliteDialect({ database: asKyselyDatabase(db) }) })
}
