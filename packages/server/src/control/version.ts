import type { Contract, DriverKind, FunctionConfig, VersionItem } from '@thaw/protocol'
import type { FunctionRow, VersionRow } from '../store/store.ts'

/** A version of a function with every default filled in: what the parts of control hand to each other. */
export interface Version {
  id: string
  functionId: string
  tenant: string
  functionName: string
  number: number
  config: ResolvedConfig
  codeDigest: string | null
  /** null until it was first made ready. */
  imageDigest: string | null
}

/** Some settings have defaults that depend on the rest; here they are decided. */
export type ResolvedConfig = Omit<FunctionConfig, 'contract' | 'handler' | 'image' | 'driver'> & {
  contract: Contract
  handler: string
  image: string
  driver: DriverKind
}

export function toVersion(of: Pick<FunctionRow, 'tenant' | 'name'>, row: VersionRow): Version {
  return {
    id: row.id,
    functionId: row.function_id,
    tenant: of.tenant,
    functionName: of.name,
    number: row.version,
    config: row.config as ResolvedConfig,
    codeDigest: row.code_digest,
    imageDigest: row.image_digest,
  }
}

/** A version as the API shows it: names of variables and secrets, no values. */
export function versionItem(functionName: string, row: VersionRow, snapshot: VersionItem['snapshot']): VersionItem {
  const { config } = row
  const { contract, handler, image, driver } = config as ResolvedConfig
  return {
    id: row.id,
    function: functionName,
    version: row.version,
    state: row.state,
    error: row.error === null ? null : { code: row.error.code, message: row.error.message },
    runtime: config.runtime,
    contract,
    handler,
    command: config.command ?? null,
    image,
    image_digest: row.image_digest,
    code_digest: row.code_digest,
    driver,
    env: Object.keys(config.env),
    secrets: config.secrets.map(({ name, env, file }) => ({ name, ...(env === undefined ? { file } : { env }) })),
    resources: config.resources,
    timeout_ms: config.timeout_ms,
    network: config.network,
    scaling: config.scaling,
    retry: config.retry,
    snapshot,
    created_at: new Date(row.created_at).toISOString(),
  }
}
