import { randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { Client } from '../client.ts'
import { type Row, rowOf } from '../report.ts'
import { figure, interleave, median } from '../stats.ts'
import { startThaw, type ThawServer } from '../thaw-server.ts'
import { startBareNode, startNginx } from '../web-peers.ts'
import { memoryOf, type Workbench } from '../workbench.ts'

const bytesType = 'application/octet-stream'
const mib = 1024 * 1024
const uploadMib = 100

/** Large bodies: an echo there and back, and an upload with what it costs the server in memory. */
export async function bodies(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench)
  const bare = await startBareNode(bench)
  const nginx = await startNginx(bench, bare.url)
  for (const [name, code] of [
    ['echo', 'export const handler = (event) => event'],
    ['size', 'export const handler = (event) => event.length'],
  ] as const) {
    const scaling = { max_instances: 1 }
    await server.thaw.functions.create({ name, runtime: 'node', code: { inline: code }, resources: { memory_mib: 1024, cpus: 2 }, scaling })
  }
  const targets = (name: string) =>
    new Map([
      ['ours', server.invokeUrl(name)],
      [bare.name, `${bare.url}/${name}`],
      ...(nginx === null ? [] : [[`${nginx.name} + bare`, `${nginx.url}/${name}`] as [string, string]]),
    ])
  const rows = [await echo(bench, targets('echo')), ...(await upload(bench, server, targets('size')))]
  return rows
}

async function echo(bench: Workbench, urls: ReadonlyMap<string, string>): Promise<Row> {
  const rounds = bench.quick ? 20 : 100
  bench.say(`1 MiB echo: ${rounds} rounds, against ${[...urls.keys()].slice(1).join(', ')}`)
  const body = randomBytes(mib)
  using client = new Client()
  const contenders = new Map(
    [...urls].map(([who, url]): [string, () => Promise<number>] => [
      who,
      async () => {
        const answer = await client.post(url, body, bytesType)
        if (!answer.body.equals(body)) throw new Error(`${who} did not give the same bytes back`)
        return answer.ms
      },
    ]),
  )
  await interleave(5, contenders, bench.signal)
  const samples = await interleave(rounds, contenders, bench.signal)
  const peers = new Map([...samples].map(([who, all]) => [who, figure(all)]))
  const ours = peers.get('ours') ?? figure([])
  peers.delete('ours')
  return rowOf({
    name: '1 MiB echo',
    unit: 'ms',
    ours,
    peers,
    goal: { atMost: 10, unit: 'ms' },
    note: 'one client; times include sending and comparing in one client process',
  })
}

async function upload(bench: Workbench, server: ThawServer, urls: ReadonlyMap<string, string>): Promise<Row[]> {
  const rounds = bench.quick ? 3 : 8
  bench.say(`${uploadMib} MiB upload: ${rounds} rounds, against ${[...urls.keys()].slice(1).join(', ')}`)
  const body = randomBytes(uploadMib * mib)
  using client = new Client()
  const send = async (who: string, url: string) => {
    const answer = await client.post(url, body, bytesType)
    if (Number(answer.body.toString()) !== body.length) throw new Error(`${who} says that it got ${answer.body.toString()} bytes`)
    return uploadMib / (answer.ms / 1000)
  }
  // A small call first: the instance is there, and what the server loads once is loaded.
  await client.post(server.invokeUrl('size'), 'x', bytesType)
  const before = memoryOf(server.pid, 'VmRSS')
  const growths: number[] = []
  const contenders = new Map(
    [...urls].map(([who, url]): [string, () => Promise<number>] => [
      who,
      async () => {
        if (who !== 'ours') return send(who, url)
        forgetPeak(server.pid)
        const rate = await send(who, url)
        growths.push(memoryOf(server.pid, 'VmHWM') - before)
        return rate
      },
    ]),
  )
  const samples = await interleave(rounds, contenders, bench.signal)
  const after = memoryOf(server.pid, 'VmRSS')
  const rates = new Map([...samples].map(([who, all]) => [who, median(all)]))
  const ours = rates.get('ours') ?? Number.NaN
  rates.delete('ours')
  return [
    rowOf({
      name: `${uploadMib} MiB upload`,
      unit: 'MB/s',
      ours: ours * (mib / 1e6),
      peers: new Map([...rates].map(([who, rate]) => [who, rate * (mib / 1e6)])),
      goal: { atLeast: 500, unit: 'MB/s' },
    }),
    rowOf({
      name: `${uploadMib} MiB upload, growth of the server's memory at its peak`,
      unit: 'MiB',
      ours: Math.max(...growths),
      goal: { atMost: 64, unit: 'MiB' },
      note: `resident before ${before.toFixed(0)} MiB, after ${after.toFixed(0)} MiB; growth per upload ${growths.map((growth) => growth.toFixed(0)).join(', ')} MiB`,
    }),
  ]
}

/** Sets the peak of a process back to what it holds now (proc(5), clear_refs). */
function forgetPeak(pid: number): void {
  const file = `/proc/${pid}/clear_refs`
  try {
    readFileSync(`/proc/${pid}/status`)
    writeFileSync(file, '5')
  } catch {
    // Without the right to do so the peak is that of all uploads so far, which is what the row asks for at most.
  }
}
