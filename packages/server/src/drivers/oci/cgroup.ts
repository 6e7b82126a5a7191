import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { type Resources, ThawError } from '@thaw/protocol'
import { waitUntil } from '../processes.ts'

/**
 * Control groups of this host. On a v2 host there is one tree; on a v1 or hybrid host every controller has a tree of
 * its own below the root, and a group is a folder in each of them.
 */
export interface Cgroups {
  readonly version: 1 | 2
  /** Bytes that the group holds now, or null when it is gone. */
  memoryBytes(path: string): number | null
  /** How often the kernel killed a process of the group for want of memory. */
  oomKills(path: string): number
  /** Process ids in the group. */
  processes(path: string): number[]
  /** Processor time that the group has used, in milliseconds, or null when it is gone. */
  cpuMs(path: string): number | null
  /** Stops all processes of the group, or lets them go on. Resolves when it holds for every one. */
  freeze(path: string, frozen: boolean): Promise<void>
  frozen(path: string): boolean
  /** The folder that holds the switch to do that with, and what a shell writes where to let them go on. */
  freezer(path: string): { folder: string; file: string; thawed: string }
  /** Names of the groups right below `path`. */
  children(path: string): string[]
  /** Sets the limits of the group. Throws when it holds more than it is to have. */
  limit(path: string, resources: Resources): void
  /** Makes a group without limits; what is above it, too. */
  create(path: string): void
  /** Gives a group another name below the same parent. Not in version 2, whose groups keep their names. */
  rename?(from: string, to: string): void
  /** Files to which a process writes 0 to move into the group. */
  entrances(path: string): string[]
  /** Removes the group, which must have no processes, and what is below it. */
  remove(path: string): void
  /** Whether memory and swap can be limited together. */
  readonly swapLimit: boolean
  /** Controllers that containers need and that this host does not offer. */
  readonly missing: string[]
}

const needed = ['memory', 'pids', 'cpu']
const mib = 1024 * 1024
/** What OCI runtimes let containers use, in the words of the v1 controller; the mknod of `c *:* m` needs a capability that none has. */
const allowedDevices = [
  'c *:* m', 'b *:* m', 'c 1:3 rwm', 'c 1:5 rwm', 'c 1:7 rwm', 'c 1:8 rwm', 'c 1:9 rwm', 'c 5:0 rwm', 'c 5:2 rwm', 'c 136:* rwm',
] // biome-ignore format: one glance
/**
 * Microseconds in which a group may run for its quota. On several processors a group uses its quota up early and fast, and
 * whoever shares them waits for that long: the shorter, the less. The kernel gives no quota below a millisecond.
 */
const shortPeriod = 20_000
const longPeriod = 100_000
const leastQuota = 1000

/** How much of which period a group may run, in microseconds. */
export function cpuBandwidth(cpus: number): { quota: number; period: number } {
  const period = cpus * shortPeriod >= leastQuota ? shortPeriod : longPeriod
  return { quota: Math.max(leastQuota, Math.round(cpus * period)), period }
}

function readNumbers(path: string): number[] {
  try {
    return readFileSync(path, 'latin1').split('\n').filter(Boolean).map(Number)
  } catch {
    return []
  }
}

/** The text of a file, without the space around it; THAWED where there is none. */
function readText(path: string): string {
  try {
    return readFileSync(path, 'latin1').trim()
  } catch {
    return 'THAWED'
  }
}

async function settled(path: string, condition: () => boolean): Promise<void> {
  if (!(await waitUntil(condition, 10_000)))
    throw new ThawError('driver_failed', `The processes of ${path} cannot be stopped or continued.`)
}

function readNumber(path: string): number | null {
  return readNumbers(path)[0] ?? null
}

/** The value of `key` in a flat keyed file such as memory.events, 0 without it. */
function readKey(path: string, key: string): number {
  try {
    const line = readFileSync(path, 'latin1')
      .split('\n')
      .find((text) => text.startsWith(`${key} `))
    return line === undefined ? 0 : Number(line.slice(key.length + 1))
  } catch {
    return 0
  }
}

function subfolders(path: string): string[] {
  try {
    return readdirSync(path, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  } catch {
    return []
  }
}

/** Groups go away from the leaves; one that is gone already is what we want. */
function removeTree(path: string): void {
  for (const child of subfolders(path)) removeTree(join(path, child))
  try {
    rmdirSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
}

/** Ends all processes of a group. False: some did not end in time. */
export function endGroup(cgroups: Cgroups, path: string): Promise<boolean> {
  return waitUntil(() => {
    const pids = cgroups.processes(path)
    for (const pid of pids) killQuietly(pid)
    return pids.length === 0
  }, 10_000)
}

export function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Gone already.
  }
}

/** `root` is where cgroups are mounted; another one than the default is for tests. */
export function openCgroups(root = '/sys/fs/cgroup'): Cgroups {
  return existsSync(join(root, 'cgroup.controllers')) ? v2(root) : v1(root)
}

function v2(root: string): Cgroups {
  const controllers = readFileSync(join(root, 'cgroup.controllers'), 'latin1').trim().split(/\s+/)
  return {
    version: 2,
    memoryBytes: (path) => readNumber(join(root, path, 'memory.current')),
    oomKills: (path) => readKey(join(root, path, 'memory.events'), 'oom_kill'),
    processes: (path) => readNumbers(join(root, path, 'cgroup.procs')),
    cpuMs: (path) => (existsSync(join(root, path)) ? Math.round(readKey(join(root, path, 'cpu.stat'), 'usage_usec') / 1000) : null),
    freeze: async (path, frozen) => {
      writeFileSync(join(root, path, 'cgroup.freeze'), frozen ? '1' : '0')
      await settled(path, () => readKey(join(root, path, 'cgroup.events'), 'frozen') === (frozen ? 1 : 0))
    },
    freezer: (path) => ({ folder: join(root, path), file: join(root, path, 'cgroup.freeze'), thawed: '0' }),
    frozen: (path) => readKey(join(root, path, 'cgroup.events'), 'frozen') === 1,
    children: (path) => subfolders(join(root, path)),
    limit: (path, { memory_mib, pids, cpus }) => {
      const write = (file: string, value: string) => writeFileSync(join(root, path, file), value)
      write('memory.max', String(memory_mib * mib))
      write('memory.swap.max', '0')
      write('pids.max', String(pids))
      const { quota, period } = cpuBandwidth(cpus)
      write('cpu.max', `${quota} ${period}`)
    },
    create: (path) => {
      const parents: string[] = []
      for (let parent = dirname(path); parent.length > 1; parent = dirname(parent)) parents.unshift(parent)
      for (const parent of ['', ...parents]) {
        mkdirSync(join(root, parent), { recursive: true })
        const control = join(root, parent, 'cgroup.subtree_control')
        const enabled = readFileSync(control, 'latin1').trim().split(/\s+/)
        for (const name of needed) if (!enabled.includes(name) && controllers.includes(name)) writeFileSync(control, `+${name}`)
      }
      mkdirSync(join(root, path))
    },
    entrances: (path) => [join(root, path, 'cgroup.procs')],
    remove: (path) => removeTree(join(root, path)),
    swapLimit: true,
    missing: needed.filter((name) => !controllers.includes(name)),
  }
}

function v1(root: string): Cgroups {
  const trees = subfolders(root)
  const memory = join(root, 'memory')
  // Not cpuset: a group of it takes nobody in before its processors and memory nodes are listed, and nothing is limited by it.
  // What limits, counts or stops; each costs the kernel a millisecond to enter. Memory first: who is in any of them is in that
  // one, where `processes` looks.
  const joined = ['memory', 'pids', 'cpu', 'cpuacct', 'cpu,cpuacct', 'freezer', 'devices'].filter((tree) => trees.includes(tree))
  return {
    version: 1,
    memoryBytes: (path) => readNumber(join(memory, path, 'memory.usage_in_bytes')),
    oomKills: (path) => readKey(join(memory, path, 'memory.oom_control'), 'oom_kill'),
    processes: (path) => readNumbers(join(memory, path, 'cgroup.procs')),
    cpuMs: (path) => {
      const nanoseconds = readNumber(join(root, 'cpuacct', path, 'cpuacct.usage'))
      return nanoseconds === null ? null : Math.round(nanoseconds / 1e6)
    },
    freeze: async (path, frozen) => {
      const file = join(root, 'freezer', path, 'freezer.state')
      const wanted = frozen ? 'FROZEN' : 'THAWED'
      // The kernel may stay at FREEZING when a process was forked meanwhile: it is asked again.
      await settled(path, () => {
        writeFileSync(file, wanted)
        return readFileSync(file, 'latin1').trim() === wanted
      })
    },
    freezer: (path) => ({ folder: join(root, 'freezer', path), file: join(root, 'freezer', path, 'freezer.state'), thawed: 'THAWED' }),
    frozen: (path) => readText(join(root, 'freezer', path, 'freezer.state')) !== 'THAWED',
    children: (path) => [...new Set(trees.flatMap((tree) => subfolders(join(root, tree, path))))],
    limit: (path, { memory_mib, pids, cpus }) => {
      const file = join(memory, path, 'memory.limit_in_bytes')
      const withSwap = join(memory, path, 'memory.memsw.limit_in_bytes')
      const bytes = memory_mib * mib
      // Memory may never be limited above memory and swap together, so the order depends on the direction.
      const grows = bytes > (readNumber(file) ?? 0)
      const files = existsSync(withSwap) ? [withSwap, file] : [file]
      for (const target of grows ? files : files.reverse()) writeFileSync(target, String(bytes))
      writeFileSync(join(root, 'pids', path, 'pids.max'), String(pids))
      const { quota, period } = cpuBandwidth(cpus)
      writeFileSync(join(root, 'cpu', path, 'cpu.cfs_period_us'), String(period))
      writeFileSync(join(root, 'cpu', path, 'cpu.cfs_quota_us'), String(quota))
    },
    create: (path) => {
      for (const tree of joined) mkdirSync(join(root, tree, path), { recursive: true })
      if (!joined.includes('devices')) return
      writeFileSync(join(root, 'devices', path, 'devices.deny'), 'a')
      for (const rule of allowedDevices) writeFileSync(join(root, 'devices', path, 'devices.allow'), rule)
    },
    rename: (from, to) => {
      for (const tree of joined) renameSync(join(root, tree, from), join(root, tree, to))
    },
    entrances: (path) => joined.map((tree) => join(root, tree, path, 'cgroup.procs')),
    remove: (path) => {
      for (const tree of trees) removeTree(join(root, tree, path))
    },
    swapLimit: existsSync(join(memory, 'memory.memsw.limit_in_bytes')),
    missing: needed.filter((name) => !trees.includes(name)),
  }
}
