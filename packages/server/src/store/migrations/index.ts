import { initial } from './0001-initial.ts'
import { secrets } from './0002-secrets.ts'
import { keys } from './0003-keys.ts'
import { sandboxes } from './0004-sandboxes.ts'
import { records } from './0005-records.ts'
import { results } from './0006-results.ts'
import { sshKeys } from './0007-ssh-keys.ts'
import type { Migration } from './migration.ts'

/** All steps, in order. */
export const migrations: readonly Migration[] = [initial, secrets, keys, sandboxes, records, results, sshKeys]
