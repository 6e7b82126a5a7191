import type { SandboxItem, SnapshotItem } from '@thaw/protocol'
import type { SandboxRow, SnapshotRow } from '../../store/store.ts'

/** A sandbox as the API shows it: without its environment, which may hold what is private, and its token. */
export function sandboxItem(row: SandboxRow): SandboxItem {
  const { spec } = row
  return {
    id: row.id,
    name: row.name,
    state: row.state,
    image: spec.image,
    image_digest: row.image_digest,
    driver: row.driver,
    boot_method: row.boot_method,
    resources: spec.resources,
    ports: spec.ports,
    network: spec.network,
    timeout_ms: spec.timeout_ms,
    on_timeout: spec.on_timeout,
    idle_ms: spec.idle_ms,
    hibernate_ms: spec.hibernate_ms,
    metadata: spec.metadata,
    parent_id: row.parent_id,
    snapshot_id: row.snapshot_id,
    error: row.error,
    created_at: iso(row.created_at),
    started_at: row.started_at === null ? null : iso(row.started_at),
    ends_at: row.ends_at === null ? null : iso(row.ends_at),
    ended_at: row.ended_at === null ? null : iso(row.ended_at),
  }
}

function iso(time: number): string {
  return new Date(time).toISOString()
}

export function snapshotItem(row: SnapshotRow): SnapshotItem {
  return {
    id: row.id,
    name: row.name,
    kind: row.kind,
    state: row.state,
    sandbox_id: row.sandbox_id,
    image: row.spec.image,
    image_digest: row.image_digest,
    driver: row.driver,
    size_bytes: row.size_bytes,
    frozen_ms: row.frozen_ms,
    success_count: row.success_count,
    failure_count: row.failure_count,
    error: row.error,
    created_at: iso(row.created_at),
    last_used_at: row.last_used_at === null ? null : iso(row.last_used_at),
  }
}
