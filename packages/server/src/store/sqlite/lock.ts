import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { ThawError } from '@thaw/protocol'
import { isBusy, storeError } from './errors.ts'

/**
 * Takes the data directory for this process, or throws `data_dir_in_use`. The lock is an exclusive transaction on a
 * database of its own: Node has no flock, and unlike a file with a process id in it the kernel gives this one back when
 * the process dies, however it dies. It is not inherited by children.
 *
 * Nobody may open `lock.db` by other means in this process: closing any descriptor of a file drops its POSIX locks.
 */
export function lockDataDir(dataDir: string): { release(): void } {
  let db: DatabaseSync | undefined
  try {
    db = new DatabaseSync(join(dataDir, 'lock.db'), { timeout: 0 })
    // Nothing is ever written in it, so there is no journal to keep either.
    db.exec('PRAGMA journal_mode = MEMORY; BEGIN EXCLUSIVE')
  } catch (error) {
    db?.close()
    if (isBusy(error)) throw new ThawError('data_dir_in_use', `Another server is using ${dataDir}.`, { cause: error })
    throw storeError(error, dataDir)
  }
  const held = db
  return { release: () => held.close() }
}
