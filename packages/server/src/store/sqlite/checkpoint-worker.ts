import { DatabaseSync } from 'node:sqlite'
import { parentPort, workerData } from 'node:worker_threads'

/**
 * Runs in a thread of its own (see checkpoint.ts): moves pages from the write-ahead log into the database, one pass
 * per message, and answers each with null or what went wrong.
 */
const { path, longestLogPages } = workerData as { path: string; longestLogPages: number }
const db = new DatabaseSync(path, { timeout: 1000 })

parentPort?.on('message', (message: 'checkpoint' | 'close') => {
  if (message === 'close') {
    db.close()
    parentPort?.close()
    return
  }
  try {
    // PASSIVE stops nobody. Under writes without a pause it never reaches the end, and the log would grow for ever:
    // then writers are held off once, for as long as copying the rest takes.
    const pass = db.prepare('PRAGMA wal_checkpoint(PASSIVE)').get()
    if (Number(pass?.log ?? 0) > longestLogPages) db.prepare('PRAGMA wal_checkpoint(TRUNCATE)').get()
    parentPort?.postMessage(null)
  } catch (error) {
    parentPort?.postMessage(error instanceof Error ? error.message : String(error))
  }
})
