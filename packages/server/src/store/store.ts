import type { CodeFailure, ErrorCode, FunctionConfig, InvocationItem, InvocationStatus, LogEntry } from '@thaw/protocol'

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
  /** Flushes what is buffered and closes the file. */
  close(): Promise<void>
}

export interface FunctionRow {
  id: string
  name: string
  /** The version that serves, or null while none was ever ready. */
  active_version_id: string | null
  /** Number of the next version; numbers are never used twice. */
  next_version: number
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
  get(name: string): Promise<FunctionRow | null>
  /** Ordered by name; `after` is the last name of the page before. */
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
  update(name: string, change: Pick<SecretRow, 'sealed' | 'key_id' | 'updated_at'>): Promise<boolean>
  get(name: string): Promise<SecretRow | null>
  /** Ordered by name. */
  list(): Promise<Omit<SecretRow, 'sealed'>[]>
  /** False when there was none. */
  delete(name: string): Promise<boolean>
}

/** An invocation as it is recorded when it ends. */
export interface InvocationRow {
  id: string
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
    function?: string | undefined
    status?: InvocationStatus | undefined
    before?: string | undefined
    limit: number
  }): Promise<InvocationRow[]>
  /** The newest `limit` entries, oldest first. */
  logs(filter: { function?: string; invocation_id?: string; limit: number }): Promise<LogRow[]>
  /** Removes records and logs older than the times given, and those of deleted functions. Returns how many rows. */
  prune(olderThan: { invocations: number; logs: number }): Promise<number>
  deleteOfFunction(name: string): Promise<void>
  flush(): Promise<void>
}
