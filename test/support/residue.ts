import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { findProcesses } from '../../packages/server/src/drivers/processes.ts'

/**
 * Everything on this machine that carries a mark of the sandboxes below a data directory. All empty: nothing was left. A
 * server that runs keeps two network namespaces and two disks ready, which belong to no sandbox, and the volume of the disks.
 */
export function residueOf(
  dataDir: string,
  server: 'runs' | 'stopped' = 'runs',
): {
  processes: string[]
  mounts: string[]
  loops: string[]
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
  const volume = join(dataDir, 'oci', 'volume')
  const spare = (found: string[]) => found.slice(server === 'runs' ? 3 : 0)
  const mountsOf = (pid: number | 'self') => {
    const lines = read(`/proc/${pid}/mountinfo`)
      .split('\n')
      .filter((line) => line.includes(dataDir))
    // Every process of the host has those.
    const ofVolume = (line: string) => `${line.split(' ')[4]}/`.startsWith(`${volume}/`)
    return { volume: lines.filter(ofVolume), others: lines.filter((line) => !ofVolume(line)) }
  }
  return {
    // Whatever runs in a sandbox has a folder of the data directory in its mounts or on its command line.
    processes: findProcesses((pid) => read(`/proc/${pid}/cmdline`).includes(dataDir) || mountsOf(pid).others.length > 0).map(
      (pid) => `${pid} ${read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ')}`,
    ),
    mounts: [...mountsOf('self').others, ...spare(mountsOf('self').volume)],
    loops: spare(
      list('/sys/block')
        .map((device) => read(join('/sys/block', device, 'loop', 'backing_file')))
        .filter((backing) => backing.startsWith(dataDir)),
    ),
    // A server that runs also keeps some where it restores sandboxes to.
    cgroups: groups.flatMap(list).filter((name) => name.startsWith('sbx-') || (server === 'stopped' && name.startsWith('stage-'))),
    namespaces: list('/run/netns')
      .filter((name) => name.startsWith(`thaw-${tag.slice(0, 6)}-`))
      .slice(server === 'runs' ? 2 : 0),
    folders: [...list(join(dataDir, 'oci', 'sandboxes')), ...list(join(dataDir, 'process'))],
  }
}

export const nothing = { processes: [], mounts: [], loops: [], cgroups: [], namespaces: [], folders: [] }
