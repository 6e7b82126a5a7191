import type { SandboxRow, SnapshotRow, SnapshotStore } from '../../store/store.ts'
import type { SnapshotDraft, SnapshotFiles } from '../ports.ts'
import type { Captured } from './capture.ts'

export interface ToKeep {
  id: string
  purpose: Extract<SnapshotRow['purpose'], 'user' | 'hibernation'>
  name: string | null
  /** The sandbox that it was taken of; no id where it was imported. */
  of: Pick<SandboxRow, 'tenant' | 'driver' | 'spec'> & { id: string | null }
  imageDigest: string
  captured: Captured
  draft: SnapshotDraft
}

/** Makes what was captured a snapshot that is listed: its files first, then its row. When it rejects, neither is left. */
export async function keepSnapshot(
  { store, files }: { store: SnapshotStore; files: Pick<SnapshotFiles, 'remove'> },
  { id, purpose, name, of, imageDigest, captured, draft }: ToKeep,
): Promise<SnapshotRow> {
  const { kind, fingerprint, state, frozen_ms } = captured
  const now = Date.now()
  const committed = await draft.commit(
    { id, kind, driver: of.driver, image_digest: imageDigest, fingerprint, driver_state: state, spec: { ...of.spec, env: {} } },
    now,
  )
  const kept: SnapshotRow = {
    id,
    tenant: of.tenant,
    purpose,
    kind,
    state: 'ready',
    name,
    sandbox_id: of.id,
    version_id: null,
    driver: of.driver,
    image_digest: imageDigest,
    spec: of.spec,
    fingerprint,
    driver_state: { ...state, resume_token: captured.resume_token },
    ...committed,
    frozen_ms,
    success_count: 0,
    failure_count: 0,
    failures_in_row: 0,
    error: null,
    created_at: now,
    last_used_at: null,
    archived_at: null,
  }
  try {
    await store.create(kept)
  } catch (error) {
    await files.remove(id)
    throw error
  }
  return kept
}
