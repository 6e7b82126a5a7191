import type { Contract, DriverKind, FunctionConfig } from '@thaw/protocol'
import type { VersionRow } from '../store/store.ts'

/** A version of a function with every default filled in: what the parts of control hand to each other. */
export interface Version {
  id: string
  functionId: string
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

export function toVersion(functionName: string, row: VersionRow): Version {
  return {
    id: row.id,
    functionId: row.function_id,
    functionName,
    number: row.version,
    config: row.config as ResolvedConfig,
    codeDigest: row.code_digest,
    imageDigest: row.image_digest,
  }
}
