import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { findProcesses } from '../../packages/server/src/drivers/processes.ts'

/**
 * Everything on this machine that carries a mark of the sandboxes below a data directory. All empty: nothing was left. A
 * server that runs keeps two network namespaces ready, which belong to no sandbox.
 */
export function residueOf(
  dataDir: string,
  server: 'runs' | 'stopped' = 'runs',
): {
  processes: string[]
  mounts: string[]
  cgroups: string[]
  namespaces: string[]
  folders: string[]
} {
  const list = (path: string) => (existsSync(path) ? readdirSync(path) : [])
  const read = (path: string) => {
    try {
      return readFileSync(path, 'latin1')
    } catch {
      return ''
    }
  }
  const tag = createHash('sha256').update(dataDir).digest('hex')
  const groups = [join('/sys/fs/cgroup/memory/thaw', tag.slice(0, 12)), join('/sys/fs/cgroup/thaw', tag.slice(0, 12))]
  return {
    // Whatever runs in a sandbox has a folder of the data directory in its mounts or on its command line.
    processes: findProcesses((pid) => `${read(`/proc/${pid}/cmdline`)}${read(`/proc/${pid}/mountinfo`)}`.includes(dataDir)).map(
      (pid) => `${pid} ${read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ')}`,
    ),
    mounts: read('/proc/self/mountinfo')
      .split('\n')
      .filter((line) => line.includes(dataDir)),
    cgroups: groups.flatMap(list).filter((name) => name.startsWith('sbx-')),
    namespaces: list('/run/netns')
      .filter((name) => name.startsWith(`thaw-${tag.slice(0, 6)}-`))
      .slice(server === 'runs' ? 2 : 0),
    folders: [...list(join(dataDir, 'oci', 'sandboxes')), ...list(join(dataDir, 'process'))],
  }
}

export const nothing = { processes: [], mounts: [], cgroups: [], namespaces: [], folders: [] }
