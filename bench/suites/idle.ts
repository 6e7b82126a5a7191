import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { noPools } from '../pools.ts'
import { type Row, rowOf } from '../report.ts'
import { driverOf, startThaw } from '../thaw-server.ts'
import { memoryOf, type Workbench } from '../workbench.ts'

const instancesPerFunction = 10
const patienceMs = 30_000

/** What instances cost that wait for work, and what is left when they have gone. */
export async function idle(bench: Workbench): Promise<Row[]> {
  const count = bench.quick ? 30 : 300
  const server = await startThaw(bench, {
    // What waits in a pool belongs to no function.
    ...noPools,
    THAW_LIMITS__MAX_INSTANCES: String(count + 10),
    THAW_LIMITS__MEMORY_MIB: String((count + 10) * 128),
    THAW_LIMITS__START_TIMEOUT_MS: '120000',
  })
  const driver = await driverOf(server)
  if (driver !== 'oci') bench.say(`idle: the driver is ${driver}, whose instances have no groups: the row counts nothing`)
  const names = Array.from({ length: count / instancesPerFunction }, (_, index) => `idle-${index}`)
  const code = { inline: 'def handler(event, context):\n    return event\n' }
  bench.say(`idle: starting ${count} Python instances`)
  const started = performance.now()
  // Function after function, so that the machine is not asked for all of them in one moment.
  let missed: string | undefined
  const deployed: string[] = []
  for (const name of names) {
    const scaling = { min_instances: instancesPerFunction, max_instances: instancesPerFunction }
    const ready = async () => (await server.thaw.functions.get(name)).instances.idle === instancesPerFunction
    try {
      await server.thaw.functions.create({ name, runtime: 'python', code, scaling })
      deployed.push(name)
      await bench.until(`the instances of ${name} are ready`, ready, patienceMs)
    } catch (error) {
      bench.signal.throwIfAborted()
      const why = [...server.child.output().matchAll(/It printed: ([^"\\]+)/g)].at(-1)?.[1]
      missed = `only some could be started: ${why ?? (error as Error).message}`
      bench.say(`idle: ${missed}`)
      break
    }
  }
  const seconds = (performance.now() - started) / 1000
  const groups = groupsOf(server.dataDir)
  const alive = processesIn(groups)
  const memory = sum(groups.map(memoryIn)) / 1024 ** 2
  const serverMib = memoryOf(server.pid, 'VmRSS')

  bench.say(`idle: scaling ${count} instances to zero`)
  const zero = { min_instances: 0, max_instances: instancesPerFunction, idle_timeout_ms: 500 }
  // Where the host takes no more, a deploy's trial instance needs a place too.
  if (missed !== undefined) for (const name of deployed.splice(-2)) await server.thaw.functions.delete(name)
  for (const name of deployed) await server.thaw.functions.update(name, { runtime: 'python', code, scaling: zero })
  // One call brings each back, so that what ends now ends because it was idle.
  for (const name of deployed) await server.thaw.functions.invoke(name, 1)
  const left = () => processesIn(groupsOf(server.dataDir))
  await bench.until('all instances have gone', () => left() === 0, 60_000).catch(() => bench.signal.throwIfAborted())
  return [
    rowOf({
      name: `${count} idle Python instances, server included`,
      unit: 'GiB',
      ours: (memory + serverMib) / 1024,
      goal: { atMost: (4 * count) / 300, unit: 'GiB' },
      missed,
      note: `driver ${driver}; ${alive} processes in ${groups.length} groups with ${memory.toFixed(0)} MiB (${(memory / groups.length).toFixed(1)} each), server ${serverMib.toFixed(0)} MiB; started at ${(groups.length / seconds).toFixed(1)} a second, deploys included`,
    }),
    rowOf({ name: 'processes of idle functions, scaled to zero', unit: 'processes', ours: left(), goal: { atMost: 0, unit: 'processes' } }),
  ]
}

/** The control groups of a server's sandboxes: of the one tree of v2, or of the memory tree of v1. */
function groupsOf(dataDir: string): string[] {
  const tag = createHash('sha256').update(dataDir).digest('hex').slice(0, 12)
  const base = [join('/sys/fs/cgroup/memory/thaw', tag), join('/sys/fs/cgroup/thaw', tag)].find((folder) => existsSync(folder))
  if (base === undefined) return []
  return readdirSync(base, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(base, entry.name))
}

function processesIn(groups: readonly string[]): number {
  return sum(groups.map((group) => read(join(group, 'cgroup.procs')).split('\n').filter(Boolean).length))
}

function memoryIn(group: string): number {
  return Number(read(join(group, 'memory.usage_in_bytes')) || read(join(group, 'memory.current')))
}

/** A group may go while we look. */
function read(path: string): string {
  try {
    return readFileSync(path, 'latin1').trim()
  } catch {
    return ''
  }
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}
