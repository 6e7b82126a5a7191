import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type CreatedKeyItem, type Info, type KeyCreate, ThawError } from '@thaw/sdk'
import type { Output } from './output.ts'

export interface StartedServer {
  url: string
  /** Resolves when the server has ended by itself or by close. */
  closed: Promise<void>
  /** What an admin would hear, without a key. */
  info(): Promise<Info>
  close(): Promise<void>
}

/** Starts the platform in this process. A port that is taken is an error that says what to do. */
export async function startServer(flags: Record<string, unknown>, output: Output): Promise<StartedServer> {
  const { loadConfig, runServer } = await import('@thaw/server')
  const { config, entries } = loadConfig({ flags })
  const origin = entries.find(({ key }) => key === 'log_level')?.origin
  const all = { ...flags, ...quietLog(origin, process.stderr.isTTY === true) }
  // Where it listens is said once, when it can be used.
  const onProgress = (line: string) => line.startsWith('listening on ') || output.note(line)
  try {
    return await output.progress.during('starting', () => runServer({ flags: all, onProgress }))
  } catch (error) {
    if (!isPortTaken(error)) throw error
    throw new ThawError('config_invalid', `Port ${config.port} of ${config.host} is taken.`, {
      fix: 'Stop what listens there, or take another with `--port N` (0: any free one).',
      cause: error,
    })
  }
}

/** Makes a key in the data directory of a server that does not run. */
export async function createKeyOffline(input: KeyCreate, flags: Record<string, unknown>): Promise<CreatedKeyItem> {
  const { createKey } = await import('@thaw/server')
  try {
    return await createKey(input, { flags })
  } catch (error) {
    if (!(error instanceof ThawError) || error.code !== 'data_dir_in_use') throw error
    throw new ThawError('data_dir_in_use', error.message, {
      fix: 'Ask the server that runs: the same command without --data-dir; or stop it first.',
      cause: error,
    })
  }
}

/** On a terminal the log would drown what `up` says to people; warnings are shown. A level that somebody chose is kept. */
export function quietLog(origin: string | undefined, terminal: boolean): { log_level?: 'warn' } {
  return terminal && origin === 'default' ? { log_level: 'warn' } : {}
}

/**
 * Starts the platform for a first look, which should work whatever else runs: where nobody chose the port or the data
 * directory, one that is taken is replaced, and said so.
 */
export async function startForQuickstart(flags: Record<string, unknown>, output: Output): Promise<StartedServer> {
  const { loadConfig } = await import('@thaw/server')
  const { config, entries } = loadConfig({ flags })
  const chosen = (key: string) => entries.find((entry) => entry.key === key)?.origin !== 'default'
  const tried: Record<string, unknown> = { ...flags }
  // The table is what a first look is for; what the server logs of its work would hide it.
  if (!chosen('log_level')) tried.log_level = 'warn'
  let temporary: string | undefined
  const removeTemporary = async () => {
    if (temporary !== undefined) await rm(temporary, { recursive: true, force: true })
  }
  for (;;) {
    try {
      const server = await startServer(tried, output)
      return { ...server, close: () => server.close().finally(removeTemporary) }
    } catch (error) {
      if (isPortTaken(error) && tried.port !== 0 && !chosen('port')) {
        output.note(`port ${config.port} is taken; taking a free one`)
        tried.port = 0
      } else if (error instanceof ThawError && error.code === 'data_dir_in_use' && temporary === undefined && !chosen('data_dir')) {
        temporary = await mkdtemp(join(tmpdir(), 'thaw-quickstart-'))
        output.note(`another server uses ${config.data_dir}; taking a temporary folder`)
        tried.data_dir = temporary
      } else {
        await removeTemporary()
        throw error
      }
    }
  }
}

function isPortTaken(error: unknown): boolean {
  for (let at = error; at instanceof Error; at = at.cause) {
    if ((at as NodeJS.ErrnoException).code === 'EADDRINUSE') return true
  }
  return false
}
