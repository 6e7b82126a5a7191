/** The rows as SQLite holds them: structured values are JSON text, booleans are 0 and 1. */
export interface Tables {
  functions: FunctionTable
  versions: VersionTable
  invocations: InvocationTable
  logs: LogTable
  secrets: SecretTable
  api_keys: KeyTable
  idempotency: IdempotencyTable
  sandboxes: SandboxTable
  snapshots: SnapshotTable
  results: ResultTable
  ssh_keys: SshKeyTable
  schema_migrations: MigrationTable
}

export interface FunctionTable {
  id: string
  tenant: string
  name: string
  active_version_id: string | null
  next_version: number
  creation_token: string | null
  created_at: number
  updated_at: number
}

export interface VersionTable {
  id: string
  function_id: string
  version: number
  state: string
  error: string | null
  config: string
  code_digest: string | null
  image_digest: string | null
  created_at: number
}

export interface InvocationTable {
  id: string
  tenant: string
  function: string
  version: number
  status: string
  attempt: number
  trigger: string
  boot_method: string | null
  sandbox_id: string | null
  result: string | null
  error: string | null
  request_bytes: number
  result_bytes: number
  timing: string | null
  logs_truncated: number
  created_at: number
  started_at: number | null
  ended_at: number | null
}

export interface LogTable {
  /** Grows with every entry; the order in which entries came. */
  seq: number
  tenant: string
  function: string
  version: number
  invocation_id: string | null
  sandbox_id: string | null
  source: string
  message: string
  time: number
}

export interface SecretTable {
  tenant: string
  name: string
  sealed: Uint8Array
  key_id: string
  created_at: number
  updated_at: number
}

export interface KeyTable {
  id: string
  hash: string
  name: string
  tenant: string
  role: string
  hint: string
  created_at: number
  expires_at: number | null
  revoked_at: number | null
}

export interface IdempotencyTable {
  tenant: string
  key: string
  fingerprint: string
  status: number
  headers: string
  body: Uint8Array | null
  created_at: number
}

export interface SandboxTable {
  id: string
  tenant: string
  name: string | null
  state: string
  driver: string
  image_digest: string | null
  spec: string
  boot_method: string | null
  access_token: string
  parent_id: string | null
  snapshot_id: string | null
  hibernation_id: string | null
  error: string | null
  created_at: number
  started_at: number | null
  ends_at: number | null
  ended_at: number | null
  used_at: number
}

export interface SnapshotTable {
  id: string
  tenant: string
  purpose: string
  kind: string
  state: string
  name: string | null
  sandbox_id: string | null
  version_id: string | null
  driver: string
  image_digest: string
  spec: string
  fingerprint: string
  driver_state: string
  manifest_digest: string | null
  size_bytes: number
  frozen_ms: number | null
  success_count: number
  failure_count: number
  failures_in_row: number
  error: string | null
  created_at: number
  last_used_at: number | null
  archived_at: number | null
}

export interface ResultTable {
  tenant: string
  key: string
  result: string
  created_at: number
  expires_at: number
}

export interface SshKeyTable {
  id: string
  tenant: string
  name: string
  type: string
  fingerprint: string
  public_key: string
  sandbox_id: string | null
  created_at: number
  rotated_at: number | null
  expires_at: number | null
}

export interface MigrationTable {
  number: number
  name: string
  applied_at: number
}
