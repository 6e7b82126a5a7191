import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { NetworkMode } from '@thaw/protocol'
import { type Answer, Client } from '../client.ts'
import { bwrapEngine, dockerEngine, type Engine, runcEngine } from '../engines.ts'
import { checkAnswer, eventJson, type Language, workSource } from '../functions.ts'
import { runtimeRoot } from '../images.ts'
import { hasPool, noPools, poolIsFull } from '../pools.ts'
import { type Goal, type Row, rowOf } from '../report.ts'
import { type Figure, figure, interleave, median } from '../stats.ts'
import { driverOf, startThaw, type ThawServer } from '../thaw-server.ts'
import type { Workbench } from '../workbench.ts'

interface FirstInvoke {
  ms: number
  boot: string
  /** Stages in milliseconds, as the answer tells them. */
  stages: Record<string, number>
}

let functions = 0

/** Deploys a function that nobody has called, and times its first call. Deploying is not part of it. */
async function firstInvoke(
  server: ThawServer,
  client: Client,
  language: Language,
  network: NetworkMode,
  beforeCall: () => Promise<void>,
): Promise<FirstInvoke> {
  const name = `first-${++functions}`
  await server.thaw.functions.create({ name, runtime: language, network, code: { inline: workSource(language, name) } })
  await beforeCall()
  const answer = await client.post(server.invokeUrl(name), eventJson, 'application/json')
  checkAnswer('ours', answer.body)
  const boot = String(answer.headers['thaw-boot-method'])
  await server.thaw.functions.delete(name)
  return { ms: answer.ms, boot, stages: stagesOf(answer) }
}

function stagesOf(answer: Answer): Record<string, number> {
  const header = String(answer.headers['server-timing'] ?? '')
  return Object.fromEntries([...header.matchAll(/(\w+);dur=([\d.]+)/g)].map((match) => [match[1] ?? '', Number(match[2])]))
}

/** First calls of new functions, from the pool and without one, against engines that start the same code once. */
export async function start(bench: Workbench): Promise<Row[]> {
  const languages: Language[] = bench.quick ? ['python'] : ['python', 'node']
  const cold = await startThaw(bench, noPools)
  const driver = await driverOf(cold)
  using client = new Client()
  // The server makes an image available with the first function that needs it.
  for (const language of languages) {
    bench.say(`first invoke: getting the ${language} image ready`)
    await firstInvoke(cold, client, language, 'none', async () => undefined)
  }
  const roots = rootsOf(languages)
  const [runc, bwrap, docker] = [await runcEngine(bench, roots), bwrapEngine(bench, roots), await dockerEngine(bench, roots)]
  const light = [runc, bwrap].filter((engine) => engine !== null)

  const rows: Row[] = []
  for (const language of languages) {
    for (const [network, how] of [
      ['none', 'no network'],
      ['egress', 'with network'],
    ] as const) {
      if (bench.quick && network === 'egress') continue
      const options = { language, engines: light, driver, goals: [{ against: 'runc run', atMost: 1.5 }] }
      const ours = () => firstInvoke(cold, client, language, network, async () => undefined)
      rows.push(...(await measure(bench, `first invoke, cold, ${labels[language]}, ${how}`, options, ours)))
    }
  }
  await cold.child.stop()

  const pooled = await startThaw(bench)
  for (const language of languages) {
    // The pool of a language begins with its first function.
    const name = `pool-${language}`
    await pooled.thaw.functions.create({ name, runtime: language, code: { inline: workSource(language) } })
    const filled = (await hasPool(pooled, language)) ? () => poolIsFull(bench, pooled, language) : async () => undefined
    const options = { language, engines: docker === null ? [] : [docker], driver, goals: pooledGoals }
    const ours = () => firstInvoke(pooled, client, language, 'egress', filled)
    rows.push(...(await measure(bench, `first invoke, default settings, ${labels[language]}`, options, ours)))
  }
  return rows
}

const labels = { python: 'Python', node: 'Node' } as const

const pooledGoals: Goal[] = [
  { atMost: 10, unit: 'ms' },
  { against: 'docker run', timesFaster: 20 },
]

/** Where the peers find the interpreters that we use. */
function rootsOf(languages: readonly Language[]): Map<Language, string> {
  const roots = new Map<Language, string>()
  for (const language of languages) {
    const root = runtimeRoot(language)
    if (root === null) throw new Error(`the ${language} image is not on this machine`)
    roots.set(language, root)
  }
  return roots
}

async function measure(
  bench: Workbench,
  name: string,
  { language, engines, driver, goals }: { language: Language; engines: readonly Engine[]; driver: string; goals: readonly Goal[] },
  ours: () => Promise<FirstInvoke>,
): Promise<Row[]> {
  const rounds = bench.quick ? 4 : 15
  bench.say(`${name}: ${rounds} functions, against ${engines.map((engine) => engine.name).join(', ') || 'nobody'}`)
  const codeDir = join(bench.dir, `code-${++functions}`)
  mkdirSync(codeDir)
  writeFileSync(join(codeDir, language === 'python' ? 'main.py' : 'main.mjs'), workSource(language))
  const boots: FirstInvoke[] = []
  const contenders = new Map<string, () => Promise<number>>([
    [
      'ours',
      async () => {
        const first = await ours()
        boots.push(first)
        return first.ms
      },
    ],
    ...engines.map((engine): [string, () => Promise<number>] => [engine.name, () => engine.run(language, codeDir)]),
  ])
  // Once for nothing: the files of the interpreter come into memory.
  for (const run of contenders.values()) await run()
  boots.length = 0
  const samples = await interleave(rounds, contenders, bench.signal)
  const peers = new Map([...samples].map(([who, all]): [string, Figure] => [who, figure(all)]))
  const own = peers.get('ours') as Figure
  peers.delete('ours')
  const methods = [...new Set(boots.map((first) => first.boot))].map(
    (method) => `${boots.filter((first) => first.boot === method).length} ${method}`,
  )
  const stages = ['queue', 'boot', 'init', 'run'].map(
    (stage) => `${stage} ${median(boots.map((first) => first.stages[stage] ?? 0)).toFixed(1)}`,
  )
  const note = `driver ${driver}; boot methods: ${methods.join(', ')}; stages in ms: ${stages.join(', ')}`
  // A name says what happened, not what was meant to.
  const title = name.replace('default settings', boots.every((first) => first.boot === 'pooled') ? 'pooled' : 'default settings')
  return goals.map((goal, index) =>
    rowOf({ name: index === 0 ? title : `${title}, vs docker`, unit: 'ms', ours: own, peers, goal, ...(index === 0 ? { note } : {}) }),
  )
}
