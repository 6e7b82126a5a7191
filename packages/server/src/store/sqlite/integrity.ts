import { chmodSync, closeSync, fsyncSync, openSync, readFileSync, readSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { ThawError } from '@thaw/protocol'

/** First bytes of every SQLite database, https://sqlite.org/fileformat2.html#the_database_header */
const magic = Buffer.from('SQLite format 3\0')
const headerBytes = 100

/**
 * Readies the file for opening: makes it with mode 0600, or refuses it with `database_corrupt`. The header is always
 * looked at; the pages only after a shutdown that was not clean, because that takes seconds per gigabyte. What is
 * refused is left as it is. Only to be called while no connection is open (see lock.ts on POSIX locks).
 */
export function prepareFile(path: string): void {
  // SQLite gives its -wal and -shm files the mode of the database.
  closeSync(openSync(path, 'a', 0o600))
  chmodSync(path, 0o600)
  const { size } = statSync(path)
  if (size > 0) {
    if (!hasHeader(path)) throw corrupt(path, 'it is not an SQLite database')
    if (readMark(path) !== fingerprint(path)) checkPages(path)
  }
  rmSync(markPath(path), { force: true })
  syncFolder(path)
}

/** Remembers that the file was closed in order. To be called after its last connection was closed. */
export function markClean(path: string): void {
  writeFileSync(markPath(path), fingerprint(path), { mode: 0o600 })
}

function markPath(path: string): string {
  return `${path}.clean`
}

function readMark(path: string): string | null {
  try {
    return readFileSync(markPath(path), 'utf8')
  } catch {
    return null
  }
}

/** Changes when anybody else touched the file meanwhile, such as by putting a backup in its place. */
function fingerprint(path: string): string {
  const { size, mtimeMs, ino } = statSync(path)
  return `${size} ${mtimeMs} ${ino}\n`
}

function hasHeader(path: string): boolean {
  const file = openSync(path, 'r')
  try {
    const header = Buffer.alloc(headerBytes)
    return readSync(file, header, 0, headerBytes, 0) === headerBytes && header.subarray(0, magic.length).equals(magic)
  } finally {
    closeSync(file)
  }
}

function checkPages(path: string): void {
  // Read-only: a connection that may write would move the log of a crash into the file when it closes.
  const db = new DatabaseSync(path, { readOnly: true, timeout: 0 })
  try {
    const found = db
      .prepare('PRAGMA quick_check(5)')
      .all()
      .map((row) => String(row.quick_check))
    if (found.length !== 1 || found[0] !== 'ok') throw corrupt(path, found.join('; '))
  } finally {
    db.close()
  }
}

function corrupt(path: string, said: string): ThawError {
  return new ThawError('database_corrupt', `The database ${path} is damaged; it was left as it is: ${said}.`)
}

function syncFolder(path: string): void {
  const folder = openSync(dirname(path), 'r')
  try {
    fsyncSync(folder)
  } finally {
    closeSync(folder)
  }
}
