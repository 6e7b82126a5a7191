import type {
  BootMethod,
  CodeFailure,
  DriverKind,
  ErrorCode,
  FunctionConfig,
  InvocationItem,
  InvocationStatus,
  LogEntry,
  Role,
  SandboxCreateParsed,
  SandboxState,
  SshKeyType,
} from '@thaw/protocol'

/**
 * The ports of the store: what control keeps, and nothing about how. Rows are plain objects; times are Unix
 * milliseconds. What a promise acknowledges is on disk (synchronous=FULL), except for `records`, which is written
 * behind the traffic and may lose its last moments in a power cut, but never in a crash of the server.
 *
 * Errors: `database_unavailable` (locked or busy for longer than its limit), `disk_full`, `database_corrupt`.
 */
export interface Store {
  readonly functions: FunctionStore
  readonly records: RecordStore
  readonly secrets: SecretStore
  readonly keys: KeyStore
  readonly idempotency: IdempotencyStore
  readonly sandboxes: SandboxStore
  readonly snapshots: SnapshotStore
  readonly results: ResultStore
  readonly sshKeys: SshKeyStore
  /** Flushes what is buffered and closes the file. */
  close(): Promise<void>
}

/** An API key as it is kept: by its hash. */
export interface KeyRow {
  id: string
  /** SHA-256 of the key, in hexadecimal. */
  hash: string
  name: string
  tenant: string
  role: Role
  /** The last four characters of the key. */
  hint: string
  created_at: number
  expires_at: number | null
  /** Set in the one row that is left of keys that were revoked. */
  revoked_at: number | null
}

export interface KeyStore {
  create(row: KeyRow): Promise<void>
  /** All, ordered by id; at most one of them is revoked. */
  list(): Promise<KeyRow[]>
  /** False when there is none, or it was revoked before. */
  revoke(id: string, now: number): Promise<boolean>
}

/** An answer that was given to a request with an Idempotency-Key. */
export interface IdempotencyRow {
  tenant: string
  key: string
  /** Hash of what was asked for. */
  fingerprint: string
  status: number
  headers: Record<string, string | string[]>
  /** null: it was too large to be kept. */
  body: Uint8Array | null
  created_at: number
}

export interface IdempotencyStore {
  get(tenant: string, key: string): Promise<IdempotencyRow | null>
  /** In the place of an older one of the same key. */
  put(row: IdempotencyRow): Promise<void>
  /** Removes those made before that time. Returns how many. */
  prune(before: number): Promise<number>
}

export interface FunctionRow {
  id: string
  tenant: string
  name: string
  /** The version that serves, or null while none was ever ready. */
  active_version_id: string | null
  /** Number of the next version; numbers are never used twice. */
  next_version: number
  /** Of the request that made it: one that comes again after a crash is known by it. */
  creation_token: string | null
  created_at: number
  updated_at: number
}

export interface VersionRow {
  id: string
  function_id: string
  version: number
  state: 'building' | 'ready' | 'failed'
  error: { code: ErrorCode; message: string; details?: unknown } | null
  /** Complete: defaults are filled in, `handler`, `image` and `driver` are set. */
  config: FunctionConfig
  /** sha256:… of the code archive in the blob folder, null for code that comes with its image. */
  code_digest: string | null
  image_digest: string | null
  created_at: number
}

export interface FunctionStore {
  /** Adds a function, without a version. Throws `function_exists`. */
  create(row: FunctionRow): Promise<void>
  get(tenant: string, name: string): Promise<FunctionRow | null>
  /** Of all tenants, ordered by id; `after` is the last id of the page before. */
  list(page: { after?: string | undefined; limit: number }): Promise<FunctionRow[]>
  /** Removes the function and all its versions. False when there was none. */
  delete(id: string): Promise<boolean>

  /** Takes the next number of the function and adds the version under it, in one transaction. */
  addVersion(row: Omit<VersionRow, 'version'>): Promise<VersionRow>
  /** Changes state, error or image digest of a version. */
  updateVersion(id: string, change: Partial<Pick<VersionRow, 'state' | 'error' | 'image_digest'>>): Promise<void>
  deleteVersion(id: string): Promise<void>
  /** Makes a version the active one and marks it ready, in one transaction. */
  activate(functionId: string, versionId: string, now: number): Promise<void>
  version(id: string): Promise<VersionRow | null>
  versionByNumber(functionId: string, version: number): Promise<VersionRow | null>
  /** Newest first. */
  versions(functionId: string): Promise<VersionRow[]>
  /** Of all functions; the reconciler uses it at start. */
  versionsInState(state: VersionRow['state']): Promise<VersionRow[]>
  /** Every code digest that a version refers to; the collector removes other blobs. */
  codeDigests(): Promise<string[]>
}

/** A secret as it is kept: sealed. Whoever holds the key can open it; the store cannot. */
export interface SecretRow {
  tenant: string
  name: string
  /** Nonce, ciphertext and tag. */
  sealed: Uint8Array
  /** Which key sealed it. */
  key_id: string
  created_at: number
  updated_at: number
}

export interface SecretStore {
  /** Throws `secret_exists`. */
  create(row: SecretRow): Promise<void>
  /** Puts another value in the place of the old one. False when there is none of this name. */
  update(tenant: string, name: string, change: Pick<SecretRow, 'sealed' | 'key_id' | 'updated_at'>): Promise<boolean>
  get(tenant: string, name: string): Promise<SecretRow | null>
  /** Ordered by name. */
  list(tenant: string): Promise<Omit<SecretRow, 'sealed'>[]>
  /** Which keys the secrets of all tenants are sealed with, and how many each. */
  keyIds(): Promise<{ key_id: string; count: number }[]>
  /** False when there was none. */
  delete(tenant: string, name: string): Promise<boolean>
}

/** An invocation as it is recorded when it ends. */
export interface InvocationRow {
  id: string
  tenant: string
  function: string
  version: number
  status: InvocationStatus
  attempt: number
  trigger: 'invoke' | 'http'
  boot_method: InvocationItem['boot_method']
  sandbox_id: string | null
  /** JSON text or null; small results only. */
  result: string | null
  error: { code: ErrorCode; message: string; details?: Partial<CodeFailure> } | null
  request_bytes: number
  result_bytes: number
  timing: { queue_ms: number; boot_ms: number; init_ms: number; run_ms: number } | null
  logs_truncated: boolean
  created_at: number
  started_at: number | null
  ended_at: number | null
}

export interface LogRow {
  tenant: string
  function: string
  version: number
  invocation_id: string | null
  sandbox_id: string | null
  source: LogEntry['source']
  message: string
  /** Unix milliseconds. */
  time: number
}

/** Written in batches behind the traffic; reads see what is still buffered. */
export interface RecordStore {
  /** Never waits and never throws: the record is buffered and written within 100 ms. The same id again replaces. */
  invocation(row: InvocationRow): void
  log(row: LogRow): void
  getInvocation(id: string): Promise<InvocationRow | null>
  /** Newest first; `before` is the id of the last row of the page before. */
  listInvocations(filter: {
    tenant: string
    function?: string | undefined
    status?: InvocationStatus | undefined
    before?: string | undefined
    limit: number
  }): Promise<InvocationRow[]>
  /** The newest `limit` entries, oldest first. An id of an invocation is that of one tenant; names need theirs. */
  logs(filter: { tenant?: string; function?: string; invocation_id?: string; limit: number }): Promise<LogRow[]>
  /** Removes records and logs older than the times given, and those of deleted functions. Returns how many rows. */
  prune(olderThan: { invocations: number; logs: number }): Promise<number>
  deleteOfFunction(tenant: string, name: string): Promise<void>
  flush(): Promise<void>
}

/** What a sandbox was asked to be; `image` is always set. */
export type SandboxSpec = Omit<SandboxCreateParsed, 'image' | 'driver' | 'name' | 'snapshot_id'> & {
  image: string
  /** SHA-256 of the agent that it was given. */
  agent: string
  e2b?: E2bFacet
}

/** What is special about a sandbox that a client of E2B made. */
export interface E2bFacet {
  /** As the client named it. */
  template: string
  /** Whoever calls its agent shows the token; else the server does it for everyone. */
  secure: boolean
  /** Its ports are open to all who know its id; else to those who show a token. */
  public_traffic: boolean
  /** Traffic wakes it. */
  auto_resume: boolean
  /** Account of calls that name none; made where the image has no such account. */
  user: string
  workdir?: string
  /** Succeeds when what was started with it is ready. */
  ready_cmd?: string
  /** A template is being built in it. */
  build?: boolean
  /** A snapshot of it is a template, which the next build of its name replaces. */
  is_template?: boolean
}

export interface SandboxRow {
  id: string
  tenant: string
  name: string | null
  state: SandboxState
  driver: DriverKind
  image_digest: string | null
  spec: SandboxSpec
  boot_method: BootMethod | null
  /** What its agent wants to see before it obeys. */
  access_token: string
  parent_id: string | null
  snapshot_id: string | null
  /** The snapshot that it sleeps in. */
  hibernation_id: string | null
  error: { code: ErrorCode; message: string } | null
  created_at: number
  started_at: number | null
  ends_at: number | null
  /** Set in the states stopped and failed. */
  ended_at: number | null
  used_at: number
}

export interface SandboxFilter {
  tenant: string
  states?: SandboxState[] | undefined
  name?: string | undefined
  image?: string | undefined
  metadata?: Record<string, string> | undefined
  /** Id of the last row of the page before. */
  before?: string | undefined
  limit: number
}

export interface SandboxStore {
  /** Throws `sandbox_state_conflict` when the name is taken. */
  create(row: SandboxRow): Promise<void>
  update(id: string, change: Partial<Omit<SandboxRow, 'id' | 'tenant'>>): Promise<void>
  get(id: string): Promise<SandboxRow | null>
  /** The one of this name that has not ended. */
  byName(tenant: string, name: string): Promise<SandboxRow | null>
  /** Newest first. */
  list(filter: SandboxFilter): Promise<SandboxRow[]>
  /** Of all tenants, those that have not ended. */
  live(): Promise<SandboxRow[]>
  /** False when there was none. */
  delete(id: string): Promise<boolean>
  /** Removes those that ended before that time. Returns how many. */
  prune(before: number): Promise<number>
}

export interface SnapshotRow {
  id: string
  tenant: string
  /** Who wanted it: a caller, a sandbox that sleeps in it, or a version that starts from it. */
  purpose: 'user' | 'hibernation' | 'version'
  kind: 'filesystem' | 'memory'
  state: 'creating' | 'ready' | 'unhealthy' | 'deleted'
  name: string | null
  sandbox_id: string | null
  version_id: string | null
  driver: DriverKind
  image_digest: string
  spec: SandboxSpec
  fingerprint: Record<string, string>
  driver_state: Record<string, unknown>
  /** SHA-256 of the manifest: nothing else vouches for the files. */
  manifest_digest: string | null
  size_bytes: number
  frozen_ms: number | null
  success_count: number
  failure_count: number
  /** Since the last success. */
  failures_in_row: number
  error: { code: ErrorCode; message: string } | null
  created_at: number
  last_used_at: number | null
  /** Since when its files are compressed. */
  archived_at: number | null
}

export interface SnapshotStore {
  create(row: SnapshotRow): Promise<void>
  update(id: string, change: Partial<Omit<SnapshotRow, 'id' | 'tenant'>>): Promise<void>
  get(id: string): Promise<SnapshotRow | null>
  /** Those that callers took; newest first. */
  list(filter: { tenant: string; sandbox_id?: string | undefined; before?: string | undefined; limit: number }): Promise<SnapshotRow[]>
  /** Of all tenants and purposes. */
  all(): Promise<SnapshotRow[]>
  ofVersion(versionId: string): Promise<SnapshotRow[]>
  /** Counts a use: a restore that worked, or one that failed. */
  count(id: string, success: boolean, now: number): Promise<void>
  /** False when there was none. */
  delete(id: string): Promise<boolean>
}

/** The kept result of a command, by the hash of all that it depends on. */
export interface ResultRow {
  tenant: string
  key: string
  /** JSON. */
  result: string
  created_at: number
  expires_at: number
}

export interface ResultStore {
  /** Null also for one whose time is over. */
  get(tenant: string, key: string, now: number): Promise<ResultRow | null>
  /** In the place of an older one. */
  put(row: ResultRow): Promise<void>
  /** Removes those whose time is over. Returns how many. */
  prune(now: number): Promise<number>
}

/** A public key that logs in to sandboxes of its tenant. */
export interface SshKeyRow {
  id: string
  tenant: string
  name: string
  type: SshKeyType
  /** SHA256:… */
  fingerprint: string
  /** Type and key in base64, as one line. */
  public_key: string
  /** The only sandbox that it opens; null: all of its tenant. */
  sandbox_id: string | null
  created_at: number
  rotated_at: number | null
  expires_at: number | null
}

export interface SshKeyStore {
  /** False when the tenant has the key for this sandbox already. */
  create(row: SshKeyRow): Promise<boolean>
  /** Puts another key in the place of the old one. False when there is none of this id. */
  replace(id: string, change: Pick<SshKeyRow, 'type' | 'fingerprint' | 'public_key' | 'rotated_at'>): Promise<boolean>
  /** Of all tenants, ordered by id. */
  list(): Promise<SshKeyRow[]>
  /** False when there was none. */
  delete(id: string): Promise<boolean>
}
