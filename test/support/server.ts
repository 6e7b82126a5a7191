import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { DriverKind } from '@thaw/protocol'
import { Thaw } from '@thaw/sdk'
import { probeDrivers, runServer } from '@thaw/server'
import { onTestFailed, onTestFinished } from 'vitest'
import { tempDir } from './temp.ts'

export interface TestServer extends AsyncDisposable {
  url: string
  thaw: Thaw
  dataDir: string
}

/** A server in this process, on a free port, with a folder of its own. */
export async function startServer(flags: Record<string, unknown> = {}): Promise<TestServer> {
  const dir = tempDir()
  const dataDir = join(dir.path, 'data')
  const server = await runServer({ flags: { port: 0, data_dir: dataDir, log_level: 'silent', ...flags } })
  const end = async () => {
    await deleteSandboxes(server.url)
    await server.close()
    dir[Symbol.dispose]()
  }
  let ended: Promise<void> | undefined
  return {
    url: server.url,
    thaw: new Thaw({ url: server.url }),
    dataDir,
    [Symbol.asyncDispose]: () => {
      ended ??= end()
      return ended
    },
  }
}

/** Sandboxes outlive their server, and are not to outlive their test. */
async function deleteSandboxes(url: string): Promise<void> {
  const { items } = (await (await fetch(`${url}/v1/sandboxes?limit=1000`)).json()) as { items?: { id: string }[] }
  await Promise.all((items ?? []).map(({ id }) => fetch(`${url}/v1/sandboxes/${id}`, { method: 'DELETE' })))
}

export interface ChildServer extends AsyncDisposable {
  url: string
  thaw: Thaw
  process: ChildProcess
  /** kill -9, and the wait until it is gone. */
  kill(): Promise<void>
}

/** A server in a process of its own, for tests that kill it. */
export async function startChildServer(
  dataDir: string,
  options: {
    driver?: DriverKind
    env?: Record<string, string>
    /** suite: several tests share it, and whoever starts it ends it. */
    scope?: 'test' | 'suite'
  } = {},
): Promise<ChildServer> {
  const main = new URL('../../packages/server/src/main.ts', import.meta.url).pathname
  const args = [main, '--port', '0', '--data-dir', dataDir, ...(options.driver === undefined ? [] : ['--driver', options.driver])]
  const child = spawn(process.execPath, args, {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, THAW_LOG_LEVEL: 'warn', ...options.env },
  })
  let log = ''
  const isShared = options.scope === 'suite'
  // Shown when the test fails: the server may have said why.
  if (!isShared) onTestFailed(() => console.error(log))
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    log = (log + text).slice(-10_000)
  })
  const exited = once(child, 'exit')
  const line = await Promise.race([once(createInterface(child.stdout), 'line'), exited.then(() => null)])
  if (line === null) throw new Error(`the server ended at once:\n${log}`)
  const { url } = JSON.parse(String(line[0])) as { url: string }
  const end = async (signal: NodeJS.Signals) => {
    if (child.exitCode === null && child.signalCode === null) child.kill(signal)
    await exited
  }
  // Also where a test fails before it comes to its end.
  if (!isShared) onTestFinished(() => end('SIGTERM'))
  return { url, thaw: new Thaw({ url }), process: child, kill: () => end('SIGKILL'), [Symbol.asyncDispose]: () => end('SIGTERM') }
}

/** Why tests with this driver cannot run here, or null; in CI it throws instead. */
export async function whyNoDriver(kind: DriverKind): Promise<string | null> {
  const found = (await probeDrivers()).find((driver) => driver.kind === kind)
  if (found?.probe.usable === true) return null
  const reason = found?.probe.missing.map((item) => `${item.what}: ${item.fix}`).join(', ') ?? 'no such driver'
  if (process.env.CI) throw new Error(`CI must have every engine. ${kind}: ${reason}`)
  console.warn(`tests with the driver ${kind} are skipped: ${reason}`)
  return reason
}
