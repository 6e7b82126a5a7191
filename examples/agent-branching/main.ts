/**
 * Eight ways on from one living process: `node examples/agent-branching/main.ts`, with a server running (`thaw up`).
 * The process is started once. Its forks have its memory, its open file and its half-written workspace; each takes another
 * plan, the best one is kept, the others are dropped.
 */
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type Sandbox, Thaw } from '@thaw/sdk'

const plans = ['short turns', 'long turns', 'moves', 'both'].flatMap((plan) => [1, 2].map((seed) => ({ plan, seed, steps: 150_000 })))

export interface Branch {
  sandbox: Sandbox
  plan: string
  seed: number
  /** Of the round trip that it found. */
  length: number
}

export interface Result {
  parent: Sandbox
  /** Of the round trip at which all began. */
  start: number
  frozen_ms: number
  /** The best first; all but that one are gone. */
  branches: Branch[]
}

const ask =
  'import sys, urllib.request as r; print(r.urlopen(r.Request("http://127.0.0.1:7000", *[s.encode() for s in sys.argv[1:]])).read().decode())'

/** Asks the process in a sandbox; with a body it is told to go on. */
export async function askWorker<Answer>(sandbox: Sandbox, body?: object): Promise<Answer> {
  const { stdout, stderr, exit_code } = await sandbox.exec(['python3', '-c', ask, ...(body === undefined ? [] : [JSON.stringify(body)])])
  if (exit_code !== 0) throw new Error(stderr)
  return JSON.parse(stdout) as Answer
}

export async function branchOut(thaw: Thaw, onProgress: (line: string) => void = () => {}): Promise<Result> {
  const parent = await thaw.sandboxes.create({ image: 'python', network: 'none', metadata: { example: 'agent-branching' } })
  await parent.files.write('/root/worker.py', await readFile(new URL('worker.py', import.meta.url)))
  await parent.exec('setsid python3 /root/worker.py </dev/null >/root/worker.log 2>&1 &')
  onProgress(`${parent.id}: the process loads its state`)
  const { length: start } = await ready(parent)
  onProgress(`${parent.id}: half-way, at ${start.toFixed(3)}`)
  const { children, frozen_ms } = await parent.fork(plans.length)
  onProgress(`forked ${children.length} ways; the parent stood still for ${frozen_ms.toFixed(0)} ms`)
  const branches = await Promise.all(
    children.map(async (sandbox, index) => {
      const plan = plans[index] as (typeof plans)[number]
      const { length } = await askWorker<{ length: number }>(sandbox, plan)
      onProgress(`${sandbox.id}: ${plan.plan} (${plan.seed}) → ${length.toFixed(3)}`)
      return { sandbox, plan: plan.plan, seed: plan.seed, length }
    }),
  )
  branches.sort((a, b) => a.length - b.length)
  await Promise.all(branches.slice(1).map(({ sandbox }) => sandbox.delete()))
  onProgress(`kept ${branches[0]?.sandbox.id}: ${branches[0]?.plan} (${branches[0]?.seed})`)
  return { parent, start, frozen_ms, branches }
}

/** The process listens once it has loaded its state. */
async function ready(sandbox: Sandbox): Promise<{ length: number }> {
  for (let tries = 0; ; tries++) {
    try {
      return await askWorker<{ length: number }>(sandbox)
    } catch (error) {
      if (tries === 200)
        throw new Error(`The process did not come up: ${await sandbox.files.readText('/root/worker.log')}`, { cause: error })
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const thaw = new Thaw()
  const { parent, branches } = await branchOut(thaw, (line) => console.log(line))
  const best = branches[0] as Branch
  console.log(`\nThe report of the best branch, ${best.sandbox.id}:`)
  console.log(await best.sandbox.files.readText('/root/workspace/report.txt'))
  await Promise.all([parent.delete(), best.sandbox.delete()])
}
