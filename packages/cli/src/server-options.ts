import type { Command } from 'commander'
import { wholeNumber } from './context.ts'

/** The keys of the configuration that have a flag of their own. */
export interface ServerFlags {
  port?: number
  host?: string
  dataDir?: string
  driver?: string
  config?: string
}

export function addServerOptions(command: Command): Command {
  return command
    .option('--port <n>', 'TCP port; 0 takes a free one', wholeNumber(0, 65_535))
    .option('--host <address>', 'address to listen on')
    .option('--data-dir <dir>', 'folder of the database and the code')
    .option('--driver <kind>', 'driver of functions that name none; auto takes the strongest')
    .option('--config <file>', 'configuration file; default: thaw.config.json, where there is one')
}

/** Flags under the names of the configuration; those that were not given are undefined, which the server passes over. */
export function serverFlags(flags: ServerFlags): Record<string, unknown> {
  return { port: flags.port, host: flags.host, data_dir: flags.dataDir, driver: flags.driver, config_file: flags.config }
}
