import { Client } from '../client.ts'
import { checkAnswer, eventJson, type Language, workSource } from '../functions.ts'
import type { LoadGenerator, LoadResult } from '../load.ts'
import { type Row, rowOf } from '../report.ts'
import { type Figure, interleave, median } from '../stats.ts'
import { driverOf, startThaw, type ThawServer } from '../thaw-server.ts'
import { startBareNode, startBarePython, startFunctionsFramework, startGoProxy, startWatchdog, type WebPeer } from '../web-peers.ts'
import { findProgram, type Workbench } from '../workbench.ts'

const json = 'application/json'

/** One process serves all clients, on every side, and none has a limit below the machine's own processors. */
export async function deployWork(server: ThawServer, name: string, language: Language): Promise<string> {
  await server.thaw.functions.create({
    name,
    runtime: language,
    code: { inline: workSource(language) },
    resources: { cpus: 2 },
    scaling: { concurrency: 64, max_instances: 1 },
  })
  return server.invokeUrl(name)
}

/** Throughput of calls to an instance that is there, against servers that have no platform around them. */
export async function hot(bench: Workbench, generator: LoadGenerator): Promise<Row[]> {
  const server = await startThaw(bench)
  const driver = await driverOf(server)
  const bare = await startBareNode(bench)
  const peers = [bare, await startFunctionsFramework(bench), (await startWatchdog(bench)) ?? (await startGoProxy(bench))].filter(
    (peer) => peer !== null,
  )
  const urls = new Map([
    ['ours', await deployWork(server, 'hot-node', 'node')],
    ...peers.map((peer): [string, string] => [peer.name, `${peer.url}/work`]),
  ])
  const rows = await measure(bench, generator, 'hot invoke, Node', urls, bench.quick ? [1, 8] : [1, 8, 32], driver)

  const python = findProgram('python3')
  if (python === null) bench.leaveOut('bare http.server', 'python3 is not installed')
  const barePython = python === null ? null : await startBarePython(bench, python)
  const pythonUrls = new Map([
    ['ours', await deployWork(server, 'hot-python', 'python')],
    ...[barePython, bare].filter((peer): peer is WebPeer => peer !== null).map((peer): [string, string] => [peer.name, `${peer.url}/work`]),
  ])
  rows.push(...(await measure(bench, generator, 'hot invoke, Python', pythonUrls, [8], driver)))
  return rows
}

async function measure(
  bench: Workbench,
  generator: LoadGenerator,
  name: string,
  urls: ReadonlyMap<string, string>,
  clientCounts: readonly number[],
  driver: string,
): Promise<Row[]> {
  const seconds = bench.quick ? 1 : 2
  using client = new Client()
  for (const [who, url] of urls) checkAnswer(who, (await client.post(url, eventJson, json)).body)
  const load = (url: string, clients: number, forSeconds: number) =>
    generator.run({ url, contentType: json, body: eventJson, clients, seconds: forSeconds })
  bench.say(`${name}: warm-up`)
  for (const url of urls.values()) await load(url, 8, bench.quick ? 1 : 3)

  const rows: Row[] = []
  for (const clients of clientCounts) {
    bench.say(`${name}: ${clients} clients, against ${[...urls.keys()].slice(1).join(', ')}`)
    const contenders = new Map([...urls].map(([who, url]): [string, () => Promise<LoadResult>] => [who, () => load(url, clients, seconds)]))
    const results = await interleave(bench.quick ? 1 : 5, contenders, bench.signal)
    rows.push(...rowsOf(name, clients, results, driver))
  }
  return rows
}

function rowsOf(name: string, clients: number, results: ReadonlyMap<string, LoadResult[]>, driver: string): Row[] {
  const rates = new Map([...results].map(([who, all]): [string, number] => [who, median(all.map((one) => one.requestsPerSecond))]))
  const latencies = new Map(
    [...results].map(([who, all]): [string, Figure] => [
      who,
      { median: median(all.map((one) => one.p50Ms)), p99: median(all.map((one) => one.p99Ms)) },
    ]),
  )
  const split = <Value>(values: Map<string, Value>) => {
    const peers = new Map(values)
    peers.delete('ours')
    return { ours: values.get('ours') as Value, peers }
  }
  const rate = split(rates)
  const latency = split(latencies)
  const label = `${name}, ${clients} client${clients === 1 ? '' : 's'}`
  const node = name.endsWith('Node')
  const rows = [
    rowOf({
      name: label,
      unit: 'requests/s',
      ...rate,
      ...(node ? { goal: { against: 'bare node:http', atLeast: 0.5 } } : {}),
      note: `driver ${driver}, one instance with concurrency 64 and 2 cpus; the peers are processes without isolation or limits`,
    }),
  ]
  if (node) {
    const watchdog = rate.peers.get('of-watchdog') ?? rate.peers.get('Go proxy')
    const measured = rate.peers.has('of-watchdog') ? 'of-watchdog' : 'Go proxy'
    rows.push(
      rowOf({
        name: `${label}, watchdog`,
        unit: 'requests/s',
        ours: rate.ours,
        peers: watchdog === undefined ? new Map() : new Map([[measured, watchdog]]),
        goal: { against: measured, atLeast: 2 },
        note:
          measured === 'of-watchdog'
            ? undefined
            : 'the Go proxy does less than of-watchdog, which is not installed: the true ratio is higher',
      }),
    )
  }
  rows.push(
    rowOf({
      name: `${label}, latency`,
      unit: 'ms',
      ...latency,
      ...(node && clients === 1 ? { goal: { against: 'bare node:http', atMost: 3 } } : {}),
    }),
  )
  return rows
}
