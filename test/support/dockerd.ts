import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { runCommand } from '../../packages/server/src/drivers/command.ts'
import { eventually } from './eventually.ts'

export interface TestDockerd extends AsyncDisposable {
  /** unix:///…, for docker.host. */
  readonly host: string
  /** Where it keeps everything. */
  readonly dir: string
  readonly pid: number
  /** SIGTERM, the wait for its end, and a start on the same data. */
  restart(): Promise<void>
  /** SIGTERM, and the wait for its end; what it kept stays. */
  stop(): Promise<void>
  start(): Promise<void>
}

/** Why tests with a Docker engine cannot run here, or null. In CI nothing may be missing: there it throws. */
export function dockerdMissing(): string | null {
  const path = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin']
  const missing = ['dockerd'].filter((program) => !path.some((folder) => existsSync(join(folder, program))))
  if (process.getuid?.() !== 0) missing.push('root')
  if (missing.length === 0) return null
  if (process.env.CI) throw new Error(`CI must have every engine. Missing for docker: ${missing.join(', ')}`)
  return `${missing.join(', ')} missing`
}

/**
 * A Docker engine of the test's own: socket, data, containerd and control groups are apart from those of any other engine on
 * this machine, it makes no default bridge, and it leaves the packet filter alone. Dispose of it; containers that are left
 * end with it.
 *
 * @param folder Where it keeps everything; its socket is docker.sock in it, whose path may have 108 bytes. Default: a new one.
 */
export async function startDockerd(folder?: string): Promise<TestDockerd> {
  const dir = folder ?? mkdtempSync(join(tmpdir(), 'thaw-dockerd-'))
  mkdirSync(dir, { recursive: true })
  const socket = join(dir, 'docker.sock')
  writeFileSync(join(dir, 'daemon.json'), '{}')
  const group = `/thaw-dockerd-${randomBytes(6).toString('hex')}`
  let child: ChildProcess | undefined
  let said = ''

  const start = async () => {
    said = ''
    const started = spawn(
      'dockerd',
      [
        `--host=unix://${socket}`,
        `--data-root=${join(dir, 'data')}`,
        `--exec-root=${join(dir, 'exec')}`,
        `--pidfile=${join(dir, 'pid')}`,
        `--config-file=${join(dir, 'daemon.json')}`,
        '--bridge=none',
        '--iptables=false',
        '--userland-proxy=false',
        `--cgroup-parent=${group}`,
        '--exec-opt=native.cgroupdriver=cgroupfs',
        '--log-level=warn',
      ],
      { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, PATH: `${process.env.PATH}:/usr/sbin:/sbin` } },
    )
    child = started
    started.stderr?.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-8192)
    })
    let failure: Error | undefined
    started.once('error', (error) => {
      failure = error
    })
    const up = await eventually(async () => {
      if (failure !== undefined || started.exitCode !== null) throw failure ?? new Error(`dockerd ended: ${said}`)
      return answers(socket)
    }, 60_000)
    if (!up) throw new Error(`dockerd does not answer: ${said}`)
  }
  const stop = async () => {
    const running = child
    child = undefined
    if (running === undefined || running.exitCode !== null || running.signalCode !== null) return
    const ended = once(running, 'close')
    running.kill('SIGTERM')
    await ended
  }
  const dispose = async () => {
    await stop()
    const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
      .split('\n')
      .map((line) => line.split(' ')[4] ?? '')
      .filter((path) => path.startsWith(`${dir}/`))
    for (const path of mounts.reverse()) await runCommand('umount', ['--lazy', path]).catch(() => undefined)
    rmSync(dir, { recursive: true, force: true })
    removeGroups(group)
  }
  try {
    await start()
  } catch (error) {
    await dispose()
    throw error
  }
  return {
    host: `unix://${socket}`,
    dir,
    get pid() {
      return child?.pid ?? 0
    },
    start,
    stop,
    restart: async () => {
      await stop()
      await start()
    },
    [Symbol.asyncDispose]: dispose,
  }
}

function answers(socket: string): Promise<boolean> {
  return new Promise((resolve) => {
    request({ socketPath: socket, path: '/_ping', agent: false }, (response) => {
      response.resume()
      resolve(response.statusCode === 200)
    })
      .once('error', () => resolve(false))
      .end()
  })
}

/** On a v1 host every controller has a tree of its own. */
function removeGroups(group: string): void {
  const root = '/sys/fs/cgroup'
  for (const tree of ['', ...readdirSync(root)]) {
    const path = join(root, tree, group)
    if (!existsSync(path)) continue
    for (const name of readdirSync(path, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .reverse())
      rmdirSync(join(name.parentPath, name.name))
    rmdirSync(path)
  }
}
