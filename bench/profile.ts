import { mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Client } from './client.ts'
import { eventJson, workSource } from './functions.ts'
import { findLoadGenerator } from './load.ts'
import { noPools } from './pools.ts'
import { median } from './stats.ts'
import { deployWork } from './suites/hot.ts'
import { startThaw } from './thaw-server.ts'
import { repository, Workbench } from './workbench.ts'

const json = 'application/json'

interface CpuProfile {
  nodes: { id: number; callFrame: { functionName: string; url: string; lineNumber: number } }[]
  samples: number[]
  timeDeltas: number[]
}

/** `node bench/profile.ts`: where the time of a hot call and of a cold start goes. For people; docs/performance.md quotes it. */
async function main(): Promise<void> {
  await using bench = new Workbench({ quick: false, limitMs: 120_000 })
  process.once('SIGINT', () => bench.stop('interrupted'))
  await hotPath(bench)
  await coldStart(bench)
}

/** The server's own processor time per call, by what the code on top of the stack belongs to. */
async function hotPath(bench: Workbench): Promise<void> {
  const generator = findLoadGenerator(bench)
  const dir = join(bench.dir, 'profile')
  mkdirSync(dir)
  const server = await startThaw(bench, noPools, ['--cpu-prof', '--cpu-prof-interval', '200', '--cpu-prof-dir', dir])
  const url = await deployWork(server, 'profiled', 'node')
  const load = { url, contentType: json, body: eventJson, clients: 32 }
  await generator.run({ ...load, seconds: 2 })
  const instance = instancePid(server.dataDir)
  const before = { server: cpuSeconds(server.pid), instance: cpuSeconds(instance) }
  const seconds = 8
  const { requestsPerSecond } = await generator.run({ ...load, seconds })
  const requests = requestsPerSecond * seconds
  console.log(`hot path, 32 clients, profiled: ${requestsPerSecond.toFixed(0)} requests/s`)
  for (const [who, pid] of [
    ['server', server.pid],
    ['instance', instance],
  ] as const) {
    const after = cpuSeconds(pid)
    const perCall = (kind: 'user' | 'system') => (((after[kind] - before[who][kind]) / requests) * 1e6).toFixed(1)
    console.log(`  ${who.padEnd(10)} ${perCall('user')} µs user, ${perCall('system')} µs system per request`)
  }
  await server.child.stop()

  const file = readdirSync(dir).find((name) => name.endsWith('.cpuprofile'))
  if (file === undefined) throw new Error('the server wrote no profile')
  const profile = JSON.parse(readFileSync(join(dir, file), 'utf8')) as CpuProfile
  const categories = new Map<string, number>()
  const functions = new Map<string, number>()
  const nodes = new Map(profile.nodes.map((node) => [node.id, node.callFrame]))
  let busy = 0
  profile.samples.forEach((id, index) => {
    const frame = nodes.get(id)
    const us = profile.timeDeltas[index] ?? 0
    if (frame === undefined || frame.functionName === '(idle)') return
    busy += us
    const category = categoryOf(frame)
    categories.set(category, (categories.get(category) ?? 0) + us)
    const name = `${frame.functionName || '(anonymous)'} ${frame.url.replace(`file://${repository}`, '')}:${frame.lineNumber + 1}`
    functions.set(name, (functions.get(name) ?? 0) + us)
  })
  print('by part, share of the busy time', categories, busy, 30)
  print('by function', functions, busy, 30)
}

function categoryOf({ functionName, url }: { functionName: string; url: string }): string {
  if (url === '') return functionName.startsWith('(') ? functionName : 'native functions'
  if (url.startsWith('node:'))
    return /http/.test(url) ? 'node: http' : /stream|net|wrap/.test(url) ? 'node: sockets and streams' : 'node: other'
  const modules = /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(url)
  if (modules !== null && !url.includes('/packages/')) return `npm: ${modules[1]}`
  return url
    .replace(`file://${repository}`, '')
    .replace(/\/src\//, '/')
    .split('/')
    .slice(1, 4)
    .join('/')
}

function print(title: string, values: ReadonlyMap<string, number>, total: number, limit: number): void {
  console.log(`\n${title}`)
  for (const [name, us] of [...values].sort((a, b) => b[1] - a[1]).slice(0, limit))
    console.log(`  ${((us / total) * 100).toFixed(1).padStart(5)} %  ${name}`)
}

/** User and system time of a process (proc_pid_stat(5), fields 14 and 15, in hundredths of a second). */
function cpuSeconds(pid: number): { user: number; system: number } {
  const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return { user: Number(fields[11]) / 100, system: Number(fields[12]) / 100 }
}

/** The first process of the newest sandbox of a server. */
function instancePid(dataDir: string): number {
  return Number(readFileSync(join(newestSandbox(dataDir), 'pid'), 'latin1'))
}

function newestSandbox(dataDir: string): string {
  const folder = join(dataDir, 'oci/sandboxes')
  const name = readdirSync(folder).sort().at(-1)
  if (name === undefined) throw new Error('no sandbox is alive')
  return join(folder, name)
}

/** The spans of a cold start, from when the files of each step appeared in the sandbox's folder; their clock ticks every 4 ms. */
async function coldStart(bench: Workbench): Promise<void> {
  const server = await startThaw(bench, noPools)
  using client = new Client()
  for (const language of ['python', 'node'] as const) {
    const spans = new Map<string, number[]>()
    for (let round = 0; round < 16; round++) {
      const name = `cold-${language}-${round}`
      await server.thaw.functions.create({ name, runtime: language, code: { inline: workSource(language, name) } })
      const sent = performance.timeOrigin + performance.now()
      const answer = await client.post(server.invokeUrl(name), eventJson, json)
      const sandbox = newestSandbox(server.dataDir)
      const at = (file: string, kind: 'birthtimeMs' | 'mtimeMs' = 'mtimeMs') => statSync(join(sandbox, file))[kind]
      const steps: [string, number][] = [
        ['scheduler; network namespace, link, addresses', at('resolv.conf', 'birthtimeMs')],
        ['configuration', at('config.json')],
        ['runc: namespaces, mounts, groups', at('pid')],
        ['interpreter until it listens, runc ends', at('run/runtime.sock', 'birthtimeMs')],
        ['connect, load, first call, answer', sent + answer.ms],
      ]
      let last = sent
      for (const [step, time] of steps) {
        if (round > 0) spans.set(step, [...(spans.get(step) ?? []), time - last])
        last = time
      }
      if (round > 0) spans.set('all', [...(spans.get('all') ?? []), answer.ms])
      await server.thaw.functions.delete(name)
    }
    console.log(`\ncold start, ${language}, median of 15`)
    for (const [step, times] of spans) console.log(`  ${median(times).toFixed(1).padStart(6)} ms  ${step}`)
  }
}

await main()
