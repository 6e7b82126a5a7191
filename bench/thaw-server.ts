import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Thaw } from '@thaw/sdk'
import { type Child, repository, type Workbench } from './workbench.ts'

export interface ThawServer {
  url: string
  thaw: Thaw
  pid: number
  dataDir: string
  child: Child
  /** Address that invokes a function. */
  invokeUrl(name: string): string
}

let servers = 0

/** Starts our server in a process of its own. `env` are settings (THAW_…), `nodeArgs` options of Node.js. */
export async function startThaw(bench: Workbench, env: Record<string, string> = {}, nodeArgs: readonly string[] = []): Promise<ThawServer> {
  const dataDir = join(bench.dir, `data-${++servers}`)
  mkdirSync(dataDir, { mode: 0o711 })
  const main = join(repository, 'packages/server/src/main.ts')
  const child = bench.start(process.execPath, [...nodeArgs, main, '--port', '0', '--data-dir', dataDir], {
    cwd: bench.dir,
    env: { ...process.env, THAW_LOG_LEVEL: 'warn', ...env },
  })
  const stdout = child.process.stdout
  if (stdout === null) throw new Error('no stdout')
  const line = await Promise.race([once(createInterface(stdout), 'line'), child.ended.then(() => null)])
  if (line === null) throw new Error(`the server ended at once: ${child.output()}`)
  const { url } = JSON.parse(String(line[0])) as { url: string }
  return {
    url,
    thaw: new Thaw({ url }),
    pid: child.pid,
    dataDir,
    child,
    invokeUrl: (name) => `${url}/v1/functions/${name}/invoke`,
  }
}

/** The kind of isolation that functions of this server get when they name none. */
export async function driverOf(server: ThawServer): Promise<string> {
  const { drivers } = await server.thaw.info()
  return drivers.find((driver) => driver.default)?.kind ?? 'none'
}
