import { homedir, totalmem } from 'node:os'
import { isAbsolute, join } from 'node:path'
import type { Config } from './schema.ts'

const mib = 1024 * 1024
const weekMs = 7 * 86_400_000

/** Where it is taken, the server goes on without SSH: nobody chose it. */
export const defaultSshPort = 2222

/** What the defaults depend on, apart from the environment. */
export interface Machine {
  root: boolean
  home: string
  memory_bytes: number
}

export function thisMachine(env: NodeJS.ProcessEnv): Machine {
  // Inside a container the limit of its cgroup is what there is; without one the call gives 0 or a huge number.
  const constrained = process.constrainedMemory()
  return {
    root: process.getuid?.() === 0,
    home: env.HOME ?? homedir(),
    memory_bytes: constrained > 0 ? Math.min(constrained, totalmem()) : totalmem(),
  }
}

/** Where package managers fetch from is a property of the machine, so builds inherit it. */
export const inheritedBuildVariables = [
  'PIP_INDEX_URL',
  'PIP_EXTRA_INDEX_URL',
  'npm_config_registry',
  'GOPROXY',
  'GOSUMDB',
  'GONOSUMDB',
  'HTTP_PROXY',
  'HTTPS_PROXY',
  'NO_PROXY',
] as const

function inheritedBuildEnv(env: NodeJS.ProcessEnv): Record<string, string> {
  const inherited: Record<string, string> = {}
  for (const name of inheritedBuildVariables) {
    const value = env[name]
    if (value !== undefined && value !== '') inherited[name] = value
  }
  return inherited
}

/** A folder of the XDG base directory specification, which says that relative values are to be ignored. */
function xdgDir(value: string | undefined, fallback: string): string {
  return value !== undefined && isAbsolute(value) ? value : fallback
}

export function defaultConfig(env: NodeJS.ProcessEnv, machine: Machine): Config {
  return {
    host: '127.0.0.1',
    port: 8080,
    data_dir: machine.root ? '/var/lib/thaw' : join(xdgDir(env.XDG_DATA_HOME, join(machine.home, '.local/share')), 'thaw'),
    images_dir: machine.root ? '/var/cache/thaw/images' : join(xdgDir(env.XDG_CACHE_HOME, join(machine.home, '.cache')), 'thaw/images'),
    driver: 'auto',
    auth: 'auto',
    log_level: 'info',
    limits: {
      max_payload_bytes: 100 * mib,
      max_archive_bytes: 256 * mib,
      max_unpacked_bytes: 1024 * mib,
      max_archive_entries: 20_000,
      max_log_bytes_per_invocation: mib,
      header_timeout_ms: 10_000,
      request_timeout_ms: 300_000,
      max_instances: 200,
      memory_mib: Math.max(16, Math.floor((machine.memory_bytes * 0.8) / mib)),
      queue_length: 100,
      queue_timeout_ms: 30_000,
      start_timeout_ms: 30_000,
      build_timeout_ms: 600_000,
      max_connections: 10_000,
      requests_per_second: null,
      request_burst: null,
      websocket_idle_ms: 600_000,
      websocket_max_message_bytes: 16 * mib,
      websocket_stall_ms: 30_000,
    },
    pools: { size: 2, max_size: 16, demand_ms: 300_000 },
    sandboxes: { domain: 'localhost', hibernate_after_ms: 600_000, archive_after_ms: weekMs, disk_mib: 10_240, storage_mib: null },
    ssh: { enabled: true, host: '127.0.0.1', port: defaultSshPort, idle_ms: 14_400_000, connections_per_key: 32 },
    snapshots: { auto_init_ms: 1000 },
    retention: {
      invocations_ms: weekMs,
      logs_ms: weekMs,
      sandboxes_ms: 86_400_000,
      snapshots_ms: null,
      idempotency_ms: 86_400_000,
      images_ms: weekMs,
      version_snapshots_ms: weekMs,
    },
    registries: { insecure: [], auth_file: null },
    builds: { env: inheritedBuildEnv(env), ca_file: env.SSL_CERT_FILE || null },
    oci: { engine: 'auto' },
    docker: {
      host: env.DOCKER_HOST || 'unix:///var/run/docker.sock',
      cert_dir: env.DOCKER_TLS_VERIFY ? env.DOCKER_CERT_PATH || join(machine.home, '.docker') : null,
    },
    shutdown: { drain_ms: 10_000 },
  }
}
