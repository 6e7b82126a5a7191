import { newId } from '@thaw/protocol'
import type { FunctionRow, InvocationRow, LogRow, SecretRow, VersionRow } from '../store.ts'

export function functionRow(name: string, tenant = 'default'): FunctionRow {
  return { id: newId('fn'), tenant, name, active_version_id: null, next_version: 1, creation_token: null, created_at: 1, updated_at: 1 }
}

export function versionRow(functionId: string, change: Partial<VersionRow> = {}): Omit<VersionRow, 'version'> {
  return {
    id: newId('ver'),
    function_id: functionId,
    state: 'building',
    error: null,
    config: {
      runtime: 'python',
      contract: 'handler',
      handler: 'main.handler',
      image: 'python',
      driver: 'oci',
      env: { GREETING: 'hi' },
      secrets: [],
      resources: { memory_mib: 128, cpus: 1, pids: 64, tmp_mib: 64 },
      timeout_ms: 30_000,
      network: 'egress',
      scaling: { concurrency: 1, min_instances: 0, max_instances: 10, idle_timeout_ms: 300_000 },
      retry: { max_attempts: 3, retry_handler_errors: false },
      snapshot: false,
    },
    code_digest: null,
    image_digest: null,
    created_at: 2,
    ...change,
  }
}

export function invocationRow(change: Partial<InvocationRow> = {}): InvocationRow {
  return {
    id: newId('inv'),
    tenant: 'default',
    function: 'hello',
    version: 1,
    status: 'succeeded',
    attempt: 1,
    trigger: 'invoke',
    boot_method: 'reused',
    sandbox_id: 'sbx-1',
    result: '{"n":1}',
    error: null,
    request_bytes: 2,
    result_bytes: 7,
    timing: { queue_ms: 0.1, boot_ms: 0, init_ms: 0, run_ms: 1.5 },
    logs_truncated: false,
    created_at: 100,
    started_at: 101,
    ended_at: 102,
    ...change,
  }
}

export function secretRow(name: string, change: Partial<SecretRow> = {}): SecretRow {
  return { tenant: 'default', name, sealed: new Uint8Array([1, 0, 255]), key_id: 'k1', created_at: 1, updated_at: 1, ...change }
}

export function logRow(message: string, change: Partial<LogRow> = {}): LogRow {
  return {
    tenant: 'default',
    function: 'hello',
    version: 1,
    invocation_id: 'inv-1',
    sandbox_id: 'sbx-1',
    source: 'stdout',
    message,
    time: 100,
    ...change,
  }
}
