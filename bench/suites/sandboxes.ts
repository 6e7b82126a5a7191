import type { Sandbox } from '@thaw/sdk'
import { dockerEngine } from '../engines.ts'
import { runtimeRoot } from '../images.ts'
import { type Row, rowOf } from '../report.ts'
import { type Figure, figure, interleave } from '../stats.ts'
import { driverOf, startThaw, type ThawServer } from '../thaw-server.ts'
import { memoryOf, type Workbench } from '../workbench.ts'

const fileMib = 100

/** Sandboxes as people work in them: commands, keys, files, many at once. */
export async function sandboxes(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench, { THAW_LIMITS__MAX_INSTANCES: '260', THAW_LIMITS__MAX_PAYLOAD_BYTES: String(2 ** 30) })
  const driver = await driverOf(server)
  const sandbox = await server.thaw.sandboxes.create({ image: driver === 'process' ? 'host' : 'python' })
  const rows = [
    await exec(bench, sandbox, driver),
    await echo(bench, sandbox),
    ...(await files(bench, server, sandbox)),
    await pooled(bench, server),
  ]
  await sandbox.delete()
  rows.push(await cycles(bench, server), await crowd(bench, server))
  return rows
}

async function exec(bench: Workbench, sandbox: Sandbox, driver: string): Promise<Row> {
  const root = runtimeRoot('python')
  const docker = root === null ? null : await dockerEngine(bench, new Map([['python', root]]))
  await docker?.call(['run', '--detach', '--name', 'peer', '--network', 'none', 'bench-python', 'sleep', '600'])
  const contenders = new Map<string, () => Promise<number>>([['ours', () => timed(() => sandbox.exec(['true']))]])
  if (docker !== null) contenders.set('docker exec', () => timed(() => docker.call(['exec', 'peer', 'true'])))
  for (const run of contenders.values()) await run()
  bench.say('sandboxes: commands, one after the other')
  const samples = await interleave(bench.quick ? 10 : 60, contenders, bench.signal)
  await docker?.call(['rm', '--force', 'peer'])
  const { ours, peers } = split(samples)
  return rowOf({
    name: 'exec in a sandbox, round trip',
    unit: 'ms',
    ours,
    peers,
    goal: { atMost: 10, unit: 'ms' },
    note: `driver ${driver}; ["true"], through the HTTP API`,
  })
}

/** From a key to its echo by the line discipline of the terminal. */
async function echo(bench: Workbench, sandbox: Sandbox): Promise<Row> {
  let heard: (() => void) | undefined
  const terminal = await sandbox.terminal({ command: ['cat'], onData: () => heard?.() })
  const samples: number[] = []
  bench.say('sandboxes: keys in a terminal')
  for (let key = 0; key < (bench.quick ? 30 : 300); key++) {
    bench.signal.throwIfAborted()
    const echoed = new Promise<void>((resolve) => {
      heard = resolve
    })
    const started = performance.now()
    await terminal.write('x')
    await echoed
    samples.push(performance.now() - started)
  }
  await terminal.kill()
  return rowOf({ name: 'terminal: a key and its echo', unit: 'ms', ours: figure(samples), goal: { atMost: 5, unit: 'ms' } })
}

async function files(bench: Workbench, server: ThawServer, sandbox: Sandbox): Promise<Row[]> {
  const body = new Uint8Array(fileMib * 1024 * 1024).fill(7)
  const url = `${server.url}/v1/sandboxes/${sandbox.id}/files?path=/root/large`
  const upload = async () => {
    const answer = await fetch(url, { method: 'PUT', body })
    if (!answer.ok) throw new Error(await answer.text())
    await answer.arrayBuffer()
  }
  const download = async () => {
    const answer = await fetch(url)
    let bytes = 0
    for await (const piece of answer.body as ReadableStream<Uint8Array>) bytes += piece.length
    if (bytes !== body.length) throw new Error(`${bytes} bytes came`)
  }
  bench.say(`sandboxes: a file of ${fileMib} MiB, up and down`)
  await upload()
  await download()
  const rounds = bench.quick ? 3 : 10
  const megabytes = (ms: number) => body.length / 1e6 / (ms / 1000)
  const samples = await interleave(
    rounds,
    new Map([
      ['upload', () => timed(upload)],
      ['download', () => timed(download)],
    ]),
    bench.signal,
  )
  const goal = { atLeast: 300, unit: 'MB/s' }
  return ['upload', 'download'].map((name) =>
    rowOf({
      name: `file ${name}, ${fileMib} MiB`,
      unit: 'MB/s',
      ours: figure((samples.get(name) ?? []).map(megabytes)),
      goal,
      note: 'client on the same processors',
    }),
  )
}

async function pooled(bench: Workbench, server: ThawServer): Promise<Row> {
  const samples: number[] = []
  let cold = 0
  bench.say('sandboxes: created from the pool')
  for (let round = 0; round < (bench.quick ? 5 : 30); round++) {
    bench.signal.throwIfAborted()
    await bench.until('the pool has a sandbox', async () => (await readyInPool(server)) > 0)
    let made: Sandbox | undefined
    const ms = await timed(async () => {
      made = await server.thaw.sandboxes.create({ image: 'python' })
    })
    if (made?.item.boot_method === 'pooled') samples.push(ms)
    else cold++
    await made?.delete()
  }
  return rowOf({
    name: 'create a sandbox, from the pool',
    unit: 'ms',
    ours: figure(samples),
    goal: { atMost: 20, unit: 'ms' },
    note: cold === 0 ? undefined : `${cold} came from no pool and are not counted`,
  })
}

async function readyInPool(server: ThawServer): Promise<number> {
  const { items } = (await (await fetch(`${server.url}/v1/pools`)).json()) as { items: { runtime: string; image: string; ready: number }[] }
  return items.find((pool) => pool.runtime === 'agent' && pool.image === 'python')?.ready ?? 0
}

/** Create, exec, delete, over and over. */
async function cycles(bench: Workbench, server: ThawServer): Promise<Row> {
  const count = bench.quick ? 32 : 1000
  const concurrency = 16
  bench.say(`sandboxes: ${count} lives, ${concurrency} at a time`)
  let begun = 0
  const failures: string[] = []
  const started = performance.now()
  const worker = async () => {
    while (begun++ < count && !bench.signal.aborted) {
      try {
        await using sandbox = await server.thaw.sandboxes.create({ image: 'python', resources: { memory_mib: 64 } })
        const { stdout } = await sandbox.exec('echo alive')
        if (stdout !== 'alive\n') failures.push(`it printed ${JSON.stringify(stdout)}`)
      } catch (error) {
        failures.push((error as Error).message)
      }
    }
  }
  await Promise.all(Array.from({ length: concurrency }, worker))
  bench.signal.throwIfAborted()
  const seconds = (performance.now() - started) / 1000
  return rowOf({
    name: `${count} times create, exec and delete, ${concurrency} at a time: failures`,
    unit: 'failures',
    ours: failures.length,
    goal: { atMost: 0, unit: 'failures' },
    note: `${(count / seconds).toFixed(1)} lives a second${failures.length === 0 ? '' : `; first failure: ${failures[0]}`}`,
  })
}

async function crowd(bench: Workbench, server: ThawServer): Promise<Row> {
  const count = bench.quick ? 16 : 200
  bench.say(`sandboxes: ${count} alive at once`)
  const before = memoryOf(server.pid, 'VmRSS')
  const started = performance.now()
  const all: Sandbox[] = []
  const worker = async () => {
    while (all.length < count && !bench.signal.aborted) {
      all.push(await server.thaw.sandboxes.create({ image: 'python', resources: { memory_mib: 64 } }))
    }
  }
  await Promise.all(Array.from({ length: 4 }, worker))
  const seconds = (performance.now() - started) / 1000
  let alive = 0
  for (const sandbox of all) if ((await sandbox.exec('echo $THAW_SANDBOX_ID')).stdout.trim() === sandbox.id) alive++
  const after = memoryOf(server.pid, 'VmRSS')
  await Promise.all(all.map((sandbox) => sandbox.delete()))
  return rowOf({
    name: `${count} sandboxes alive at once: those that answer`,
    unit: 'sandboxes',
    ours: alive,
    goal: { atLeast: count, unit: 'sandboxes' },
    note: `made in ${seconds.toFixed(1)} s; the server grew by ${(after - before).toFixed(0)} MiB`,
  })
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}

function split(samples: Map<string, number[]>): { ours: Figure; peers: Map<string, Figure> } {
  const peers = new Map([...samples].map(([who, all]): [string, Figure] => [who, figure(all)]))
  const ours = peers.get('ours') as Figure
  peers.delete('ours')
  return { ours, peers }
}
