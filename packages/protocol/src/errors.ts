/**
 * The one table of errors. Every error that leaves thaw, over HTTP, in the SDK or on the command line, carries a code
 * of this table; docs/errors.md documents each (a test compares the two).
 *
 * `blame` says who can repair it: the `caller` (the request), the `code` (what the user deployed) or the `platform`.
 */
export interface ErrorSpec {
  readonly status: number
  readonly retryable: boolean
  readonly blame: 'caller' | 'code' | 'platform'
  readonly message: string
  readonly fix: string
}

function define<const Table extends Record<string, ErrorSpec>>(table: Table): Table {
  return table
}

const caller = (status: number, message: string, fix: string, retryable = false): ErrorSpec => ({
  status,
  retryable,
  blame: 'caller',
  message,
  fix,
})
const code = (status: number, message: string, fix: string, retryable = false): ErrorSpec => ({
  status,
  retryable,
  blame: 'code',
  message,
  fix,
})
const platform = (status: number, message: string, fix: string, retryable = false): ErrorSpec => ({
  status,
  retryable,
  blame: 'platform',
  message,
  fix,
})

export const errorTable = define({
  // The request
  invalid_json: caller(400, 'The body is not valid JSON.', 'Send one JSON value, UTF-8 encoded, without duplicate keys.'),
  invalid_request: caller(400, 'The request does not fit the schema.', 'Compare the request with /docs; details name each field.'),
  archive_invalid: caller(
    400,
    'The code archive cannot be read.',
    'Send a whole zip or tar.gz file, base64 encoded in code.archive or as a multipart file.',
  ),
  file_invalid: caller(
    400,
    'The path cannot be used like this.',
    'Read and write plain files; folders, devices, sockets and named pipes have no content to send.',
  ),
  archive_unsafe: caller(
    400,
    'The code archive has an entry that is not allowed.',
    'Pack plain files and folders with relative paths; links must stay inside the archive.',
  ),
  ssh_key_invalid: caller(
    400,
    'This is not a public key that can log in.',
    'Send the one line of a .pub file: ed25519, ECDSA, or RSA of at least 2048 bits; `ssh-keygen -t ed25519` makes one.',
  ),
  unauthorized: caller(
    401,
    'The request has no API key that is valid.',
    'Send a key as `Authorization: Bearer KEY` or `X-API-KEY: KEY`, or set THAW_API_KEY; an admin makes one with `thaw key create`.',
  ),
  forbidden: caller(403, 'Only a key with the role admin may do this.', 'Ask whoever runs the server, or use an admin key.'),
  forbidden_host: caller(
    403,
    'This Host is not served here.',
    'Use the address that the server printed when it started: 127.0.0.1 or localhost, with its port.',
  ),
  forbidden_origin: caller(
    403,
    'Requests from this Origin are refused.',
    'Call the API from a program, or from a page that this server itself serves.',
  ),
  file_forbidden: caller(403, 'The user may not do that with this file.', 'Choose another path, or another user.'),
  port_not_listed: caller(
    403,
    'The sandbox does not offer this port.',
    'List it: `thaw sandbox port ID PORT`, or ports when the sandbox is created.',
  ),
  route_not_found: caller(404, 'There is nothing at this path.', 'See /docs for the paths that exist.'),
  function_not_found: caller(404, 'There is no function of this name.', 'List functions with `thaw ls`, or deploy it with `thaw deploy`.'),
  version_not_found: caller(404, 'The function has no such version.', 'List versions with `thaw versions NAME`.'),
  invocation_not_found: caller(
    404,
    'There is no invocation of this id.',
    'Records are kept for a limited time; list them with GET /v1/invocations.',
  ),
  secret_not_found: caller(
    404,
    'There is no secret of this name.',
    'List secrets with `thaw secret ls`, or make it with `thaw secret set`.',
  ),
  ssh_key_not_found: caller(404, 'There is no SSH key of this id.', 'List SSH keys with `thaw ssh-key ls`.'),
  key_not_found: caller(404, 'There is no API key of this id.', 'List keys with `thaw key ls`.'),
  sandbox_not_found: caller(404, 'There is no sandbox of this id or name.', 'List sandboxes with `thaw sandbox ls`.'),
  process_not_found: caller(
    404,
    'There is no such process in the sandbox.',
    'List its processes; one that ended is kept for half a minute.',
  ),
  file_not_found: caller(
    404,
    'There is no such file in the sandbox.',
    'List the folder; paths are absolute, or relative to the home folder.',
  ),
  snapshot_not_found: caller(404, 'There is no snapshot of this id.', 'List snapshots with `thaw snapshot ls`.'),
  image_not_found: caller(404, 'There is no image of this name.', 'List images with `thaw image ls`.'),
  method_not_allowed: caller(405, 'This path does not take this method.', 'The Allow header names the methods that it takes.'),
  request_timeout: caller(408, 'The request did not arrive in time.', 'Send headers and body without long pauses.', true),
  function_exists: caller(
    409,
    'A function of this name exists already.',
    'Use PUT /v1/functions/{name} (or `thaw deploy`) to make a new version.',
  ),
  function_not_ready: caller(
    409,
    'The function has no version that is ready.',
    'Look with `thaw versions NAME`: a build may be running, or has failed; the version says why.',
    true,
  ),
  sandbox_not_running: caller(409, 'The sandbox has ended.', 'Create another one; the state of the sandbox says how it ended.'),
  sandbox_state_conflict: caller(409, 'The sandbox cannot do that in its present state.', 'Look at its state with GET /v1/sandboxes/{id}.'),
  file_exists: caller(409, 'There is something at this path already.', 'Remove it first, or choose another path.'),
  secret_exists: caller(
    409,
    'A secret of this name exists already.',
    'Use PUT /v1/secrets/{name} (or `thaw secret set`) to change its value.',
  ),
  ssh_key_exists: caller(
    409,
    'This SSH key is there already.',
    'List SSH keys with `thaw ssh-key ls`; remove or rotate the one that is there.',
  ),
  secret_in_use: caller(
    409,
    'The secret is used by a function.',
    'Deploy the functions that used_by names without it, or delete them, first.',
  ),
  image_in_use: caller(
    409,
    'The image is used by a function.',
    'Remove the functions that use it first; docs/images.md says how to renew an image that is in use.',
  ),
  idempotency_in_flight: caller(
    409,
    'A request with this Idempotency-Key is still running.',
    'Try again after Retry-After seconds, with the same key and body.',
    true,
  ),
  idempotency_answer_too_large: caller(
    409,
    'A request with this Idempotency-Key was answered already, and the answer was too large to be kept.',
    'What was asked for has been done; look for it where the API lists it, or send a new key to do it again.',
  ),
  payload_too_large: caller(413, 'The body is larger than allowed.', 'Send less, or raise limits.max_payload_bytes (docs/config.md).'),
  archive_too_large: caller(
    413,
    'The code archive is larger than allowed, packed, unpacked or in entries.',
    'Leave out what the function does not need, or raise limits.max_archive_bytes.',
  ),
  range_not_satisfiable: caller(416, 'The file does not have these bytes.', 'Ask for a range within its size.'),
  unsupported_media_type: caller(
    415,
    'The content type is not taken here.',
    'Send application/json, or multipart/form-data where an archive is uploaded.',
  ),
  image_too_large: platform(507, 'The image is larger than allowed.', 'Use a smaller image; look for what its largest layer holds.'),
  image_unresolvable: caller(
    422,
    'The image cannot be found or read in its registry.',
    'Check the reference and that this machine reaches the registry.',
  ),
  image_digest_mismatch: caller(
    422,
    'The image does not have the digest that was asked for.',
    'Ask for the digest that the registry serves now, or for a tag.',
  ),
  runtime_unsupported: caller(
    422,
    'The image does not carry what this runtime needs.',
    'Use an image with the interpreter in it, or leave image out to use the built one.',
  ),
  command_not_found: caller(
    422,
    'The sandbox does not have this program.',
    'Check its name and the PATH inside, or install it. A list is a program and its arguments; a line for a shell is sent as text.',
  ),
  idempotency_mismatch: caller(
    422,
    'This Idempotency-Key was used for another request.',
    'Make a new key for each request, and send the same key only with the same body.',
  ),
  snapshot_unsupported: caller(
    422,
    'This cannot be kept in a snapshot of this kind.',
    'Run `thaw doctor`: it names what memory snapshots need; kind "filesystem" keeps the files alone.',
  ),
  header_fields_too_large: caller(431, 'The request headers are larger than allowed.', 'Send at most 16 KiB of headers.'),
  too_many_requests: caller(
    429,
    'The function is at its capacity and its queue is full.',
    'Try again after Retry-After seconds, or raise scaling.max_instances.',
    true,
  ),
  rate_limited: caller(
    429,
    'Too many requests came with this key, or from this address.',
    'Try again after Retry-After seconds, or raise limits.requests_per_second of the server.',
    true,
  ),
  cancelled: caller(499, 'The invocation was cancelled.', 'The client went away or asked for it; invoke again if that was not meant.'),

  // The user's code
  build_failed: code(
    422,
    'The dependencies could not be installed.',
    'Read the end of the build log in details.log, and repair the dependency file.',
  ),
  handler_invalid: code(
    422,
    'The handler could not be loaded.',
    'Check that `handler` (file.function for Python and Node.js) is in the code, and read details.stack for what went wrong while loading it.',
  ),
  function_failed: code(500, 'The function raised an error.', 'Read details.stack, and what the function printed with `thaw logs NAME`.'),
  function_crashed: code(
    502,
    'The function ended its process.',
    'Read what it printed with `thaw logs NAME`; handlers must return, not exit.',
  ),
  out_of_memory: code(502, 'The function used more memory than its limit.', 'Raise resources.memory_mib, or use less.'),
  result_too_large: code(
    502,
    'The result of the function is larger than allowed.',
    'Return less, stream it, or raise limits.max_payload_bytes.',
  ),
  protocol_violation: code(
    502,
    'The instance broke the runtime protocol and was destroyed.',
    'Code must not write to the socket of its runtime.',
  ),
  timed_out: code(504, 'The function did not finish in time.', 'Raise timeout_ms, or do less in one invocation.'),

  port_unreachable: code(
    502,
    'Nothing listens on this port of the sandbox.',
    'Start the server inside, and let it listen on this port.',
    true,
  ),

  // The platform
  sandbox_unavailable: platform(
    503,
    'The sandbox does not answer right now.',
    'Try again; it may be about to be snapshotted or to end.',
    true,
  ),
  internal: platform(500, 'Something went wrong inside thaw.', 'Look for the request id in the log of the server and report it.'),
  config_invalid: platform(
    500,
    'The configuration is not valid.',
    'Correct what the message names; docs/config.md has every key and what it takes.',
  ),
  data_dir_in_use: platform(
    500,
    'Another server is using this data directory.',
    'Stop the other server, or give this one its own --data-dir.',
  ),
  database_corrupt: platform(
    500,
    'The database file is damaged; it was left as it is.',
    'Restore the file from a backup, or move it away to start empty.',
  ),
  database_unavailable: platform(503, 'The database does not answer.', 'Try again; if it stays, look at disk and locks.', true),
  secret_unreadable: platform(
    500,
    'A secret cannot be decrypted.',
    'Put the secrets.key that it was written with back into the data directory, or set the secret anew.',
  ),
  driver_unavailable: platform(
    503,
    'The driver cannot be used on this machine.',
    'Run `thaw doctor`: it names what is missing and how to get it.',
  ),
  gpu_unavailable: platform(
    503,
    'There is no GPU that sandboxes could have here.',
    'Use the driver docker on a machine with NVIDIA GPUs, and set up its container toolkit: nvidia-ctk runtime configure --runtime=docker.',
  ),
  driver_failed: platform(503, 'The driver could not do what was asked.', 'Try again; what the engine said is in details.', true),
  image_unavailable: platform(503, 'The image cannot be made available right now.', 'Try again; check the registry and the disk.', true),
  start_failed: platform(503, 'No instance could be started.', 'Try again; what each way of starting said is in details.', true),
  snapshot_failed: platform(
    503,
    'The snapshot could not be taken or restored.',
    'Try again; what the engine said is in details. docs/snapshots.md says what a snapshot cannot keep.',
    true,
  ),
  snapshot_corrupt: platform(500, 'The files of the snapshot are damaged.', 'Delete the snapshot and take a new one; check the disk.'),
  snapshot_incompatible: platform(
    500,
    'The snapshot was taken on another kernel, processor or engine, or does not fit the sandbox.',
    'Take a new one on this machine.',
  ),
  disk_full: platform(
    503,
    'The disk of the server is full.',
    'Free space in the data directory of the server (`thaw config show` names it where the server was started).',
    true,
  ),
  shutting_down: platform(503, 'The server is shutting down.', 'Try again in a moment.', true),
  unreachable: platform(
    503,
    'No thaw server answers at this address.',
    'Start one with `thaw up`, or point THAW_URL at a running one.',
    true,
  ),
})

export type ErrorCode = keyof typeof errorTable

/** What user code reported when it failed: the type, message and stack of its own language. */
export interface CodeFailure {
  type: string
  message: string
  stack?: string | undefined
}

/** The body of every error answer: `{"error": ErrorBody}`. */
export interface ErrorBody {
  code: ErrorCode
  message: string
  fix: string
  details?: unknown
  request_id?: string
}

/** The one error class. `message` and `fix` default to those of the table; `details` must be JSON-safe. */
export class ThawError extends Error {
  override readonly name = 'ThawError'
  readonly code: ErrorCode
  readonly fix: string
  readonly details: unknown
  /** Of the HTTP request that failed, when the error came from a server. */
  requestId: string | undefined

  constructor(code: ErrorCode, message?: string, options: { fix?: string; details?: unknown; cause?: unknown } = {}) {
    super(message ?? errorTable[code].message, options.cause === undefined ? {} : { cause: options.cause })
    this.code = code
    this.fix = options.fix ?? errorTable[code].fix
    this.details = options.details
  }

  get status(): number {
    return errorTable[this.code].status
  }

  get retryable(): boolean {
    return errorTable[this.code].retryable
  }

  toBody(requestId?: string): { error: ErrorBody } {
    const body: ErrorBody = { code: this.code, message: this.message, fix: this.fix }
    if (this.details !== undefined) body.details = this.details
    if (requestId !== undefined) body.request_id = requestId
    return { error: body }
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && Object.hasOwn(errorTable, value)
}

/** Any thrown thing as a ThawError; what is not ours becomes `internal` with the original as its cause. */
export function toThawError(error: unknown, fallback: ErrorCode = 'internal'): ThawError {
  if (error instanceof ThawError) return error
  const message = error instanceof Error ? error.message : String(error)
  const nodeCode = (error as { code?: unknown } | null)?.code
  if (nodeCode === 'ENOSPC') return new ThawError('disk_full', undefined, { cause: error })
  return new ThawError(fallback, fallback === 'internal' ? undefined : `${errorTable[fallback].message} ${message}`, { cause: error })
}
