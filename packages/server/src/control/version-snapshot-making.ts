import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { newId, sandboxCreateSchema } from '@thaw/protocol'
import type { Driver } from '../drivers/driver.ts'
import type { SnapshotRow, SnapshotStore } from '../store/store.ts'
import type { Drivers } from './drivers.ts'
import type { Instance } from './instance.ts'
import { runtimeFolder } from './launch.ts'
import type { SnapshotFiles } from './ports.ts'
import type { Version } from './version.ts'

interface MakingParts {
  store: SnapshotStore
  files: SnapshotFiles
  drivers: Drivers
  startBare: (version: Version, signal: AbortSignal) => Promise<Instance>
  runtimesDir: string
  signal: AbortSignal
}

/**
 * Starts an instance without its secrets, lets it make itself ready, and keeps its memory. The row is in the store, `creating`, from
 * before anything else exists: a server that dies meanwhile leaves nothing that its successor does not remove. `onBegin` hears
 * of it. Rejects with whatever went wrong; the row is the caller's to settle then, and no files are left.
 */
export async function makeVersionSnapshot(
  version: Version,
  { store, files, drivers, startBare, runtimesDir, signal }: MakingParts,
  onBegin: (row: SnapshotRow) => void,
): Promise<SnapshotRow> {
  const driver = await drivers.usable(version.config.driver)
  const row = rowOf(version)
  await store.create(row)
  onBegin(row)
  await using draft = await files.draft()
  const captured = await capture(await startBare(version, signal), draft.data, signal)
  const fingerprint = await fingerprintOf(version, driver, runtimesDir)
  const { id, kind, image_digest, spec } = row
  const committed = await draft.commit(
    { id, kind, driver: row.driver, image_digest, fingerprint, driver_state: captured.state, spec },
    row.created_at,
  )
  const made: SnapshotRow = {
    ...row,
    state: 'ready',
    fingerprint,
    driver_state: captured.state,
    frozen_ms: captured.frozen_ms,
    ...committed,
  }
  try {
    signal.throwIfAborted()
    await store.update(id, made)
  } catch (error) {
    await files.remove(id)
    throw error
  }
  // What is read now need not be read by the first start.
  await files.check(id, made.manifest_digest ?? '')
  return made
}

async function capture(instance: Instance, dir: string, signal: AbortSignal) {
  try {
    return await instance.keep(dir, signal)
  } finally {
    await instance.destroy()
  }
}

function rowOf(version: Version): SnapshotRow {
  const { config } = version
  return {
    id: newId('snap'),
    tenant: version.tenant,
    purpose: 'version',
    kind: 'memory',
    state: 'creating',
    name: null,
    sandbox_id: null,
    version_id: version.id,
    driver: config.driver,
    image_digest: version.imageDigest ?? '',
    spec: specOf(version),
    fingerprint: {},
    driver_state: {},
    manifest_digest: null,
    size_bytes: 0,
    frozen_ms: null,
    success_count: 0,
    failure_count: 0,
    failures_in_row: 0,
    error: null,
    created_at: Date.now(),
    last_used_at: null,
    archived_at: null,
  }
}

/** The row has that of a sandbox; a version has more of its own. */
function specOf({ config }: Version): SnapshotRow['spec'] {
  const { memory_mib, cpus, pids } = config.resources
  const { driver: _driver, name: _name, snapshot_id: _snapshot, command: _command, ...defaults } = sandboxCreateSchema.parse({})
  return { ...defaults, resources: { memory_mib, cpus, pids }, image: config.image, agent: '', network: config.network }
}

/** What has to be the same where the memory of a version goes on: the machine, and the runtime that is part of that memory. */
export async function fingerprintOf(version: Version, driver: Driver, runtimesDir: string): Promise<Record<string, string>> {
  const folder = runtimeFolder(version)
  const runtime = folder === null ? {} : { runtime: digestOf(join(runtimesDir, folder)) }
  return { ...(await driver.fingerprint?.()), ...runtime }
}

/** They do not change while a server runs. */
const digests = new Map<string, string>()

function digestOf(folder: string): string {
  let digest = digests.get(folder)
  if (digest === undefined) {
    const hash = createHash('sha256')
    for (const entry of readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1)))
      if (entry.isFile()) hash.update(`${entry.name}\0`).update(readFileSync(join(folder, entry.name)))
    digest = hash.digest('hex').slice(0, 16)
    digests.set(folder, digest)
  }
  return digest
}
