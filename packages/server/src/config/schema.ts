import { isIP } from 'node:net'
import { driverKinds, envSchema } from '@thaw/protocol'
import { z } from 'zod'

const mib = 1024 * 1024
const ociEngines = ['auto', 'runc', 'crun', 'runsc'] as const
const dayMs = 86_400_000

/** What a leaf says about itself: used by `config_invalid` errors and by the test that keeps docs/config.md complete. */
export interface KeyMeta {
  description: string
  /** Completes the sentence "must be …". */
  expected: string
}

function whole(min: number, max: number, description: string) {
  return z
    .int()
    .min(min)
    .max(max)
    .meta({ description, expected: `a whole number from ${min} to ${max}` })
}

function nullableWhole(min: number, max: number, description: string) {
  return z
    .int()
    .min(min)
    .max(max)
    .nullable()
    .meta({ description, expected: `a whole number from ${min} to ${max}, or null` })
}

const bytes = (description: string) => whole(1, 1024 * 1024 * mib, description)
// Timers of Node hold at most 2^31 - 1 ms; a day is plenty and safe.
const waitMs = (description: string) => whole(1, dayMs, description)
const keptMs = (description: string) => whole(1, 3650 * dayMs, description)

const pathSchema = z
  .string()
  .min(1)
  .max(4096)
  .regex(/^[^\0]+$/)
const path = (description: string) => pathSchema.meta({ description, expected: 'a path' })

/** Whether an address can only be reached from this machine. */
export function isLoopback(host: string): boolean {
  if (host === 'localhost' || host === '::1') return true
  return isIP(host) === 4 && host.startsWith('127.')
}

const hostPattern = /^(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63})*|[A-Za-z0-9])$/
export const authModes = ['auto', 'on', 'off'] as const

export const logLevels = ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] as const

/**
 * Every key of the configuration. It holds no defaults: those depend on the machine and are a layer of their own
 * (defaults.ts), so that each value has one origin.
 */
export const configSchema = z.strictObject({
  host: z
    .string()
    .max(253)
    .refine((host) => isIP(host) !== 0 || hostPattern.test(host))
    .meta({ description: 'Address to listen on; other than loopback only with API keys.', expected: 'an IP address or a host name' }),
  port: whole(0, 65_535, 'TCP port to listen on; 0 takes any free one.'),
  data_dir: path('Folder of the database and the code archives; one server per folder.'),
  images_dir: path('Folder of the unpacked images; can be deleted while no server runs.'),
  driver: z.enum(['auto', ...driverKinds.filter((kind) => kind === 'process' || kind === 'oci' || kind === 'docker')]).meta({
    description: 'Driver of functions that name none; auto takes the strongest that works on this machine.',
    expected: 'one of auto, process, oci, docker',
  }),
  auth: z.enum(authModes).meta({
    description: 'Whether requests need an API key; auto: from the first key on, and wherever the server can be reached over a network.',
    expected: 'one of auto, on, off',
  }),
  log_level: z.enum(logLevels).meta({ description: 'Least severe level that is logged.', expected: `one of ${logLevels.join(', ')}` }),
  limits: z.strictObject({
    max_payload_bytes: bytes('Largest body of a request or an answer.'),
    max_archive_bytes: bytes('Largest code archive, packed.'),
    max_unpacked_bytes: bytes('Largest code archive, unpacked.'),
    max_archive_entries: whole(1, 1_000_000, 'Most files and folders in a code archive.'),
    max_log_bytes_per_invocation: whole(0, 1024 * mib, 'Log text kept of one invocation; the rest is cut off and flagged.'),
    header_timeout_ms: waitMs('Longest time until the headers of a request are complete.'),
    request_timeout_ms: waitMs('Longest time until a request, body included, has arrived.'),
    max_instances: whole(1, 100_000, 'Most instances on this machine, of all functions together.'),
    memory_mib: whole(16, 64 * mib, 'Memory that all instances together may be promised.'),
    queue_length: whole(0, 1_000_000, 'Most invocations that wait for an instance, per function.'),
    queue_timeout_ms: waitMs('Longest wait for an instance.'),
    start_timeout_ms: waitMs('Longest start of an instance, loading the code included.'),
    build_timeout_ms: waitMs('Longest installation of dependencies.'),
    max_connections: whole(1, 1_000_000, 'Most client connections at a time.'),
    requests_per_second: nullableWhole(
      0,
      1_000_000,
      'Most requests a second of each key, or of each address without one; null: 1000 where keys are needed, else no limit; 0: no limit.',
    ),
    request_burst: nullableWhole(1, 10_000_000, 'Most requests at once, after a pause; null: those of two seconds.'),
    websocket_idle_ms: waitMs('Longest silence on a WebSocket to a function.'),
    websocket_max_message_bytes: bytes('Largest message on a WebSocket to a function, as it is sent.'),
    websocket_stall_ms: waitMs(
      'How long an end of a WebSocket, or a client with the output of a command, may take nothing of what is there for it.',
    ),
  }),
  pools: z.strictObject({
    size: whole(
      0,
      1000,
      'Sandboxes kept started ahead of need for each kind that a deployed function could use; 0: none unless asked for.',
    ),
    max_size: whole(0, 1000, 'Most sandboxes kept of one kind, however large the demand.'),
    demand_ms: waitMs('How long a start counts as demand: a pool holds as many as were taken within this time.'),
  }),
  sandboxes: z.strictObject({
    domain: z
      .string()
      .max(190)
      .regex(/^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*$/)
      .meta({
        description: 'Ports of sandboxes have host names below it: {port}-{id or name}.{domain}.',
        expected: 'a host name in lower case',
      }),
    hibernate_after_ms: nullableWhole(
      0,
      3650 * dayMs,
      'How long a sandbox is paused before its memory goes to disk, where its driver can keep memory; null: never.',
    ),
    archive_after_ms: nullableWhole(
      0,
      3650 * dayMs,
      'How long a sandbox is hibernated before its snapshot is compressed, which takes less room and longer to wake; null: never.',
    ),
    disk_mib: whole(1, 16_777_216, 'What a sandbox of the driver oci may write that asks for nothing else.'),
    storage_mib: nullableWhole(
      1024,
      1_073_741_824,
      'What all sandboxes of the driver oci together may write; null: half of what is free on the disk of the data directory.',
    ),
  }),
  ssh: z.strictObject({
    enabled: z.boolean().meta({ description: 'Whether sandboxes can be reached over SSH.', expected: 'true or false' }),
    host: z
      .string()
      .max(253)
      .refine((host) => isIP(host) !== 0 || hostPattern.test(host))
      .meta({ description: 'Address to listen on for SSH.', expected: 'an IP address or a host name' }),
    port: whole(0, 65_535, 'TCP port to listen on for SSH; 0 takes any free one.'),
    idle_ms: waitMs('How long an SSH connection may carry nothing before it is closed.'),
    connections_per_key: whole(1, 100_000, 'Most SSH connections of one SSH key at a time.'),
  }),
  snapshots: z.strictObject({
    auto_init_ms: nullableWhole(
      0,
      dayMs,
      'A function that loads for longer starts from memory, unless it says otherwise, where its driver can keep memory; null: none does by itself.',
    ),
  }),
  retention: z.strictObject({
    invocations_ms: keptMs('How long records of invocations are kept.'),
    logs_ms: keptMs('How long log entries are kept.'),
    sandboxes_ms: keptMs('How long the record of a sandbox that has ended is kept.'),
    snapshots_ms: nullableWhole(1, 3650 * dayMs, 'How long a snapshot that nobody uses is kept; null: until it is deleted.'),
    idempotency_ms: keptMs('How long the answer to a request with an Idempotency-Key is kept.'),
    images_ms: keptMs('How long an image that nothing uses is kept.'),
    version_snapshots_ms: keptMs('How long the snapshot of a version is kept from which nothing is started.'),
  }),
  registries: z.strictObject({
    insecure: z
      .array(
        z
          .string()
          .min(1)
          .max(255)
          .regex(/^[^\s/]+$/),
      )
      .meta({ description: 'Registries that are reached over plain HTTP.', expected: 'a list of host or host:port' }),
    auth_file: pathSchema
      .nullable()
      .meta({ description: 'Credentials for registries, as docker login and skopeo login write them.', expected: 'a path or null' }),
  }),
  builds: z.strictObject({
    env: envSchema.meta({ description: 'Environment of dependency installation.', expected: 'names with text values' }),
    ca_file: pathSchema
      .nullable()
      .meta({ description: 'PEM file of certificate authorities that dependency installation trusts.', expected: 'a path or null' }),
  }),
  oci: z.strictObject({
    engine: z.enum(ociEngines).meta({
      description: 'OCI runtime of the driver oci; runsc is gVisor; auto: runc, or crun where only that is installed.',
      expected: `one of ${ociEngines.join(', ')}`,
    }),
  }),
  docker: z.strictObject({
    host: z
      .string()
      .min(1)
      .max(4096)
      .regex(/^[^\s\0]+$/)
      .meta({ description: 'Address of the engine of the driver docker.', expected: 'unix:///path or tcp://host:port' }),
    cert_dir: pathSchema
      .nullable()
      .meta({ description: 'Folder with ca.pem, cert.pem and key.pem for an engine that speaks TLS.', expected: 'a path or null' }),
  }),
  shutdown: z.strictObject({
    drain_ms: whole(0, dayMs, 'How long running invocations may go on after the server was asked to stop.'),
  }),
})

export type Config = z.infer<typeof configSchema>

/** A leaf of the schema: a value of its own. `kind` says how text (environment, flags) becomes that value. */
export interface Leaf {
  key: string
  kind: 'text' | 'number' | 'boolean' | 'list' | 'names' | 'nullable' | 'nullable_number'
  meta: KeyMeta
}

function kindOf(schema: z.ZodType): Leaf['kind'] {
  if (schema instanceof z.ZodNumber) return 'number'
  if (schema instanceof z.ZodBoolean) return 'boolean'
  if (schema instanceof z.ZodArray) return 'list'
  if (schema instanceof z.ZodRecord) return 'names'
  if (schema instanceof z.ZodNullable) return schema.unwrap() instanceof z.ZodNumber ? 'nullable_number' : 'nullable'
  return 'text'
}

function leavesOf(schema: z.ZodObject, prefix: string): Leaf[] {
  return Object.entries(schema.shape).flatMap(([name, child]): Leaf[] => {
    if (child instanceof z.ZodObject) return leavesOf(child, `${prefix}${name}.`)
    const type = child as z.ZodType
    const { description = '', expected = '' } = (type.meta() ?? {}) as Partial<KeyMeta>
    return [{ key: `${prefix}${name}`, kind: kindOf(type), meta: { description, expected } }]
  })
}

/** Dotted key → leaf, in the order of the schema. */
export const configLeaves: ReadonlyMap<string, Leaf> = new Map(leavesOf(configSchema, '').map((leaf) => [leaf.key, leaf]))
