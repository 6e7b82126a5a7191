import { Client } from '../client.ts'
import { type Row, rowOf } from '../report.ts'
import { figure, interleave } from '../stats.ts'
import { driverOf, startThaw, type ThawServer } from '../thaw-server.ts'
import type { Workbench } from '../workbench.ts'

/** Works for 1.5 s while it is imported, as a large library does, and holds 16 MiB that are not all alike. */
const slowImport = `
import os, time
until = time.monotonic() + 1.5
held = bytearray()
while time.monotonic() < until:
    if len(held) < 16 * 1024 * 1024:
        held += os.urandom(64 * 1024)
def handler(event, context):
    return len(held)
`

/** First calls of a function that takes long to load, from its snapshot and without. */
export async function memory(bench: Workbench): Promise<Row[]> {
  const server = await startThaw(bench, { THAW_POOLS__SIZE: '0' })
  if ((await driverOf(server)) !== 'oci') {
    bench.leaveOut('starts from memory', 'containers do not work here')
    return []
  }
  const deploy = (name: string, snapshot: boolean) =>
    server.thaw.functions.create({
      name,
      runtime: 'python',
      code: { inline: slowImport },
      snapshot,
      // Gone at once: every call is the first of an instance.
      scaling: { max_instances: 1, idle_timeout_ms: 0 },
    })
  await deploy('kept', true)
  await deploy('fresh', false)
  const snapshot = async () => (await server.thaw.functions.get('kept')).snapshot
  await bench.until('the snapshot is made', async () => ['ready', 'unhealthy'].includes((await snapshot())?.state ?? ''))
  const error = (await snapshot())?.error
  if (error) {
    bench.leaveOut('starts from memory', error.message)
    return []
  }
  const rounds = bench.quick ? 3 : 10
  bench.say(`first invoke of a function with a 1.5 s import: ${rounds} rounds`)
  using client = new Client()
  const boots = new Set<string>()
  const call = (name: string, wanted: string) => async () => {
    await bench.until(`no instance of ${name} is left`, async () => isIdle(server, name))
    const answer = await client.post(server.invokeUrl(name), '', 'application/json')
    const boot = String(answer.headers['thaw-boot-method'])
    if (name === 'kept') boots.add(boot)
    else if (boot !== wanted) throw new Error(`${name} was started by ${boot}`)
    return answer.ms
  }
  const contenders = new Map([
    ['ours', call('kept', 'warm')],
    ['without', call('fresh', 'cold')],
  ])
  // Once for nothing: the files come into memory.
  for (const run of contenders.values()) await run()
  boots.clear()
  const samples = await interleave(rounds, contenders, bench.signal)
  const peers = new Map([['without', figure(samples.get('without') ?? [])]])
  return [
    rowOf({
      name: 'first invoke of a function with a 1.5 s import, from its snapshot',
      unit: 'ms',
      ours: figure(samples.get('ours') ?? []),
      peers,
      goal: { against: 'without', timesFaster: 15 },
      note: `boot methods: ${[...boots].join(', ')}; a snapshot of ${Math.round(((await snapshot())?.size_bytes ?? 0) / 1024 / 1024)} MiB`,
      missed:
        [...boots].join() === 'warm' ? undefined : `not all calls were answered from the snapshot: ${(await snapshot())?.error?.message}`,
    }),
  ]
}

async function isIdle(server: ThawServer, name: string): Promise<boolean> {
  const { starting, idle, busy } = (await server.thaw.functions.get(name)).instances
  return starting + idle + busy === 0
}
