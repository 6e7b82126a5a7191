import type { Kysely } from 'kysely'

/**
 * One step of the database's form. Steps are numbered from 1 without gaps, only ever added, and never changed once
 * they were released. There is no way back: a backup is.
 */
export interface Migration {
  number: number
  name: string
  /** Runs in a transaction of its own. Typed without tables, since those types describe the newest form only. */
  up(db: Kysely<unknown>): Promise<void>
}
