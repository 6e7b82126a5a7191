import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Client } from '../client.ts'
import { checkAnswer, eventJson, workSource } from '../functions.ts'
import { type Row, rowOf } from '../report.ts'
import { interleave, median, percentile } from '../stats.ts'
import { driverOf, startThaw } from '../thaw-server.ts'
import { programsDir, type Workbench } from '../workbench.ts'

const json = 'application/json'
const bombs = ['cpu', 'processes', 'memory', 'disk', 'files'] as const

/** The p99 of calls to a function, one after the other, while another one misbehaves, against the p99 of quiet moments. */
export async function neighbour(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench)
  const driver = await driverOf(server)
  await server.thaw.functions.create({ name: 'neighbour', runtime: 'node', code: { inline: workSource('node') } })
  await server.thaw.functions.create({
    name: 'bomb',
    runtime: 'python',
    code: { inline: readFileSync(join(programsDir, 'bombs.py'), 'utf8') },
    timeout_ms: 3000,
    scaling: { max_instances: 1 },
  })
  using client = new Client()
  const url = server.invokeUrl('neighbour')
  checkAnswer('ours', (await client.post(url, eventJson, json)).body)

  const calls = async (forMs: number) => {
    const times: number[] = []
    for (const end = performance.now() + forMs; performance.now() < end; ) {
      bench.signal.throwIfAborted()
      times.push((await client.post(url, eventJson, json)).ms)
    }
    return percentile(times, 0.99)
  }
  const phaseMs = bench.quick ? 1000 : 2500
  const beside = async (bomb: string) => {
    let isOver = false
    let exploded = 0
    // Fails as a rule: killed, ended, out of time.
    const explode = async () => {
      while (!isOver) {
        await client.post(server.invokeUrl('bomb'), JSON.stringify(bomb), json).catch(() => undefined)
        exploded++
      }
    }
    const exploding = explode()
    const p99 = await calls(phaseMs)
    isOver = true
    await exploding
    if (exploded === 0) throw new Error(`the ${bomb} bomb did not go off`)
    return p99
  }
  const contenders = new Map<string, () => Promise<number>>([
    ['quiet', () => calls(phaseMs)],
    ...bombs.map((bomb): [string, () => Promise<number>] => [bomb, () => beside(bomb)]),
  ])
  await calls(phaseMs)
  bench.say(`a neighbour's p99: quiet, and beside bombs of ${bombs.join(', ')}`)
  const samples = await interleave(bench.quick ? 1 : 3, contenders, bench.signal)
  const p99 = (name: string) => median(samples.get(name) ?? [])
  return bombs.map((bomb) =>
    rowOf({
      name: `neighbour of a ${bomb} bomb, p99`,
      unit: 'ms',
      ours: p99(bomb),
      peers: new Map([['quiet', p99('quiet')]]),
      goal: { against: 'quiet', atMost: 2 },
      note: `driver ${driver}; one client calls a Node function while one instance of another function misbehaves within its limits`,
    }),
  )
}
