import type { DriverItem } from '@thaw/protocol'
import { probeDrivers as probe, startApp } from './app.ts'
import { loadConfig } from './config/index.ts'

export { loadConfig } from './config/index.ts'
export { version } from './version.ts'

export interface RunningServer {
  url: string
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
  return { url: app.url, closed, close: () => app.close().finally(stopped) }
}

/** What the drivers find on this machine, without starting a server. */
export async function probeDrivers(): Promise<DriverItem[]> {
  return probe(loadConfig().config.data_dir)
}
