import { type CreatedKeyItem, type DriverItem, type Info, type KeyCreate, keyCreateSchema, ThawError } from '@thaw/protocol'
import { createKeyOffline, probeDrivers as probe, startApp } from './app.ts'
import { loadConfig } from './config/index.ts'

export { loadConfig } from './config/index.ts'
export { version } from './version.ts'

export interface RunningServer {
  url: string
  /** What GET /v1/info says to an admin. Needs no key: whoever has this object runs the server. */
  info(): Promise<Info>
  /** Drains, stops, and leaves nothing behind. Idempotent. */
  close(): Promise<void>
  /** Resolves when the server has stopped. */
  closed: Promise<void>
}

/** Starts a server in this process. Signals are the caller's. */
export async function runServer(
  options: { flags?: Record<string, unknown>; onProgress?: (line: string) => void } = {},
): Promise<RunningServer> {
  const { config } = loadConfig(options.flags === undefined ? {} : { flags: options.flags })
  const app = await startApp(config, options.onProgress)
  let stopped: () => void = () => {}
  const closed = new Promise<void>((resolve) => {
    stopped = resolve
  })
  return { url: app.url, closed, info: () => app.info(), close: () => app.close().finally(stopped) }
}

/** Makes an API key in the data directory of a server that does not run. Throws `data_dir_in_use` when it does. */
export async function createKey(input: KeyCreate, options: { flags?: Record<string, unknown> } = {}): Promise<CreatedKeyItem> {
  const { config } = loadConfig(options.flags === undefined ? {} : { flags: options.flags })
  const parsed = keyCreateSchema.safeParse(input)
  if (!parsed.success) {
    const [issue] = parsed.error.issues
    throw new ThawError('invalid_request', `${issue?.path.join('.')}: ${issue?.message}.`)
  }
  return createKeyOffline(config, parsed.data)
}

/** What the drivers find on this machine, without starting a server. */
export async function probeDrivers(): Promise<DriverItem[]> {
  const { config } = loadConfig()
  return probe(config.data_dir, config)
}
