import { Client } from '../client.ts'
import { type Row, rowOf } from '../report.ts'
import { figure, interleave } from '../stats.ts'
import { startThaw } from '../thaw-server.ts'
import { startBareNode } from '../web-peers.ts'
import type { Workbench } from '../workbench.ts'

const count = 50

/** Fifty calls at once, each a second long, to fifty instances that wait: how much longer than a second it takes. */
export async function sleepers(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench)
  const bare = await startBareNode(bench)
  bench.say(`${count} one-second calls: starting the instances`)
  await server.thaw.functions.create({
    name: 'sleeper',
    runtime: 'python',
    code: { inline: 'import time\n\n\ndef handler(event, context):\n    time.sleep(1)\n' },
    scaling: { min_instances: count, max_instances: count },
  })
  await bench.until('all instances are ready', async () => (await server.thaw.functions.get('sleeper')).instances.idle === count, 120_000)
  using client = new Client()
  const together = (url: string) => async () => {
    const started = performance.now()
    await Promise.all(Array.from({ length: count }, () => client.post(url, 'null', 'application/json')))
    return (performance.now() - started) / 1000
  }
  const contenders = new Map([
    ['ours', together(server.invokeUrl('sleeper'))],
    [bare.name, together(`${bare.url}/sleep`)],
  ])
  bench.say(`${count} one-second calls at once`)
  await interleave(1, contenders, bench.signal)
  const samples = await interleave(bench.quick ? 1 : 5, contenders, bench.signal)
  return [
    rowOf({
      name: `${count} concurrent 1 s functions`,
      unit: 's',
      ours: figure(samples.get('ours') ?? []),
      peers: new Map([[bare.name, figure(samples.get(bare.name) ?? [])]]),
      goal: { atMost: 1.6, unit: 's' },
      note: `${count} warm Python instances with one call each; the bare server waits with a timer in one process`,
    }),
  ]
}
