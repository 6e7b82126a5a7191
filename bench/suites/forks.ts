import { existsSync, mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { type Sandbox, ThawError } from '@thaw/sdk'
import { type DockerEngine, dockerEngine } from '../engines.ts'
import { runtimeRoot } from '../images.ts'
import { type Row, rowOf } from '../report.ts'
import { type Figure, figure, interleave } from '../stats.ts'
import { driverOf, startThaw, type ThawServer } from '../thaw-server.ts'
import { findProgram, memoryOf, type Workbench } from '../workbench.ts'

/** Where bootstrap puts CRIU. */
const ownCriu = '/opt/thaw/criu/bin/criu'

/** A process that holds 64 MiB which are not all alike, and counts. */
const holder = `
import os, time
held = bytearray(os.urandom(1024 * 1024) * 64)
count = 0
while True:
    count += 1
    with open('/root/count.new', 'w') as file: file.write(str(count))
    os.rename('/root/count.new', '/root/count')
    time.sleep(0.05)
`

/** Forks, snapshots and sleep of what lives, beside what one would do by hand. */
export async function forks(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench, { THAW_LIMITS__MAX_INSTANCES: '260', THAW_POOLS__SIZE: '0' })
  if ((await driverOf(server)) !== 'oci') {
    bench.leaveOut('forks', 'containers do not work here')
    return []
  }
  const parent = await alive(bench, server)
  try {
    await parent.fork(1, { kind: 'memory' }).then(({ children }) => Promise.all(children.map((child) => child.delete())))
  } catch (error) {
    if (!(error instanceof ThawError) || error.code !== 'snapshot_unsupported') throw error
    bench.leaveOut('forks', error.message)
    return []
  }
  const rows = [...(await oneChild(bench, parent)), await manyChildren(bench, parent), ...(await keep(bench, server, parent))]
  await parent.delete()
  rows.push(...(await asleep(bench, server)))
  return rows
}

async function alive(bench: Workbench, server: ThawServer): Promise<Sandbox> {
  const sandbox = await server.thaw.sandboxes.create({ image: 'python', network: 'none' })
  await sandbox.files.write('/root/holder.py', holder)
  await sandbox.exec('setsid python3 /root/holder.py </dev/null >/dev/null 2>&1 &')
  await bench.until('the process in the sandbox counts', async () => (await count(sandbox)) > 3)
  return sandbox
}

async function count(sandbox: Sandbox): Promise<number> {
  return Number((await sandbox.exec(['cat', '/root/count'])).stdout)
}

/** A fork until its child has answered a command, beside the same by the tools of others. */
async function oneChild(bench: Workbench, parent: Sandbox): Promise<Row[]> {
  const frozen: number[] = []
  const ours = async () => {
    const started = performance.now()
    const { children, frozen_ms } = await parent.fork(1)
    const child = children[0] as Sandbox
    if (!((await count(child)) > 0)) throw new Error('the child does not count')
    const ms = performance.now() - started
    frozen.push(frozen_ms)
    await child.delete()
    return ms
  }
  const contenders = new Map<string, () => Promise<number>>([['ours', ours]])
  const criu = await criuByHand(bench)
  if (criu !== null) contenders.set('criu dump + restore', criu)
  const docker = await dockerByHand(bench)
  if (docker !== null) contenders.set('docker commit + run', docker)
  for (const run of contenders.values()) await run()
  frozen.length = 0
  bench.say(`forks: one child of a living 64 MiB sandbox, against ${[...contenders.keys()].slice(1).join(', ') || 'nobody'}`)
  const samples = await interleave(bench.quick ? 4 : 15, contenders, bench.signal)
  const peers = new Map([...samples].map(([who, all]): [string, Figure] => [who, figure(all)]))
  const own = peers.get('ours') as Figure
  peers.delete('ours')
  return [
    rowOf({
      name: 'fork of a live 64 MiB sandbox: one child answers',
      unit: 'ms',
      ours: own,
      peers,
      goal: { atMost: 200, unit: 'ms' },
      note: 'docker keeps files only, and starts the process anew; criu: one process without a container',
    }),
    rowOf({ name: 'the parent of a fork stands still', unit: 'ms', ours: figure(frozen), goal: { atMost: 100, unit: 'ms' } }),
  ]
}

async function manyChildren(bench: Workbench, parent: Sandbox): Promise<Row> {
  const wanted = bench.quick ? 5 : 20
  const samples: number[] = []
  bench.say(`forks: ${wanted} children`)
  for (let round = 0; round < (bench.quick ? 1 : 4); round++) {
    bench.signal.throwIfAborted()
    const started = performance.now()
    const { children } = await parent.fork(wanted)
    const counts = await Promise.all(children.map(count))
    if (counts.some((value) => !(value > 0))) throw new Error('a child does not count')
    samples.push(performance.now() - started)
    await Promise.all(children.map((child) => child.delete()))
  }
  return rowOf({
    name: `fork of a live 64 MiB sandbox: ${wanted} children answer`,
    unit: 'ms',
    ours: figure(samples),
    goal: { atMost: (2000 * wanted) / 20, unit: 'ms' },
  })
}

async function keep(bench: Workbench, server: ThawServer, parent: Sandbox): Promise<Row[]> {
  const rounds = bench.quick ? 2 : 8
  const taken: number[] = []
  const restored: number[] = []
  bench.say('forks: snapshots and restores')
  for (let round = 0; round < rounds; round++) {
    bench.signal.throwIfAborted()
    let started = performance.now()
    const snapshot = await parent.snapshot({ kind: 'memory' })
    taken.push(performance.now() - started)
    for (let again = 0; again < 2; again++) {
      started = performance.now()
      const sandbox = await server.thaw.snapshots.restore(snapshot.id)
      await count(sandbox)
      // The first one reads all files once more, to compare them with their checksums.
      if (again === 1) restored.push(performance.now() - started)
      await sandbox.delete()
    }
    await server.thaw.snapshots.delete(snapshot.id)
  }
  return [
    rowOf({ name: 'snapshot of a live 64 MiB sandbox, on disk', unit: 'ms', ours: figure(taken) }),
    rowOf({ name: 'restore of a 64 MiB snapshot: the sandbox answers', unit: 'ms', ours: figure(restored) }),
  ]
}

/** Many that sleep on disk: what they cost, and how they wake. */
async function asleep(bench: Workbench, server: ThawServer): Promise<Row[]> {
  const wanted = bench.quick ? 10 : 500
  bench.say(`forks: ${wanted} sandboxes sleep`)
  const before = memoryOf(server.pid, 'VmRSS')
  const all: Sandbox[] = []
  let begun = 0
  const lay = async () => {
    while (begun++ < wanted) {
      bench.signal.throwIfAborted()
      const sandbox = await server.thaw.sandboxes.create({ image: 'python', network: 'none', resources: { memory_mib: 64 } })
      await sandbox.exec('(i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.1; done) </dev/null >/dev/null 2>&1 &')
      await sandbox.hibernate()
      all.push(sandbox)
      if (all.length % 100 === 0) bench.say(`forks: ${all.length} asleep`)
    }
  }
  await Promise.all([lay(), lay()])
  const grown = memoryOf(server.pid, 'VmRSS') - before
  const woken: number[] = []
  for (const sandbox of all) {
    bench.signal.throwIfAborted()
    const started = performance.now()
    if (!((await count(sandbox)) > 0)) throw new Error('it woke without its counter')
    woken.push(performance.now() - started)
    await sandbox.delete()
  }
  return [
    rowOf({
      name: `memory of the server for ${wanted} hibernated sandboxes`,
      unit: 'MiB',
      ours: Math.max(0, grown),
      goal: { atMost: 50, unit: 'MiB' },
      note: 'garbage that is not collected yet included',
    }),
    rowOf({ name: 'a hibernated sandbox wakes and answers', unit: 'ms', ours: figure(woken), goal: { atMost: 500, unit: 'ms' } }),
  ]
}

/** One process, dumped while it runs on and restored once, each by one command. */
async function criuByHand(bench: Workbench): Promise<(() => Promise<number>) | null> {
  const criu = findProgram('criu') ?? (existsSync(ownCriu) ? ownCriu : null)
  if (criu === null || process.getuid?.() !== 0) {
    bench.leaveOut('criu dump + restore', 'CRIU is not installed')
    return null
  }
  const dir = join(bench.dir, 'criu')
  mkdirSync(dir, { recursive: true })
  const program = `import os, time\nheld = bytearray(os.urandom(1024 * 1024) * 64)\nwhile True: time.sleep(0.01)`
  const subject = bench.start('python3', ['-c', program], { stdio: 'ignore' })
  let runs = 0
  const run = async () => {
    const images = join(dir, String(++runs))
    mkdirSync(images)
    const started = performance.now()
    await bench.run(criu, ['dump', '--tree', String(subject.pid), '--images-dir', images, '--leave-running'])
    // A process of the same number cannot live twice: the copy gets a pid namespace of its own.
    const pidFile = join(images, 'pid')
    const restore = ['restore', '--images-dir', images, '--restore-detached', '--pidfile', pidFile]
    await bench.run('unshare', ['--pid', '--fork', '--kill-child', '--mount-proc', criu, ...restore])
    const ms = performance.now() - started
    rmSync(images, { recursive: true })
    return ms
  }
  try {
    await bench.until('the process holds its memory', () => memoryOf(subject.pid, 'VmRSS') > 64)
    await run()
    return run
  } catch (error) {
    bench.signal.throwIfAborted()
    bench.leaveOut('criu dump + restore', (error as Error).message.slice(-300))
    return null
  }
}

async function dockerByHand(bench: Workbench): Promise<(() => Promise<number>) | null> {
  const root = runtimeRoot('python')
  const docker: DockerEngine | null = root === null ? null : await dockerEngine(bench, new Map([['python', root]]))
  if (docker === null) return null
  const start = (image: string, name: string) =>
    docker.call(['run', '--detach', '--name', name, '--network', 'none', image, 'python3', '-c', holder])
  await start('bench-python', 'parent')
  let runs = 0
  return async () => {
    const name = `child-${++runs}`
    const started = performance.now()
    await docker.call(['commit', 'parent', name])
    await start(name, name)
    await bench.until('the child counts', async () => Number(await docker.call(['exec', name, 'cat', '/root/count'])) > 0)
    const ms = performance.now() - started
    await docker.call(['rm', '--force', name])
    await docker.call(['rmi', name])
    return ms
  }
}
