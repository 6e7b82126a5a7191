import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { type ChildServer, startChildServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

/** A day of traffic in little time: SOAK_SECONDS=300 for the long form. */
const seconds = Number(process.env.SOAK_SECONDS ?? 30)
const skip = await whyNoDriver('oci')

const source = `
import os, sys, time, subprocess
kept = []
def handler(event, context):
    kind = (event or {}).get("kind")
    if kind == "fail": raise ValueError("as asked")
    if kind == "slow": time.sleep(60)
    if kind == "exit": os._exit(1)
    if kind == "memory": kept.append(b"x" * (256 << 20))
    if kind == "daemon": subprocess.Popen(["sleep", "600"], start_new_session=True)
    if kind == "files": open("/tmp/%d" % time.monotonic_ns(), "w").write("x" * 10000)
    if kind == "talk": print("line\\n" * 100)
    if kind == "large": return "x" * (2 << 20)
    return {"ok": True}
`
const kinds = ['fail', 'slow', 'exit', 'memory', 'daemon', 'files', 'talk', 'large', ...Array.from({ length: 24 }, () => 'plain')]

interface Sample {
  rssMib: number
  descriptors: number
  sockets: number
}

function sample(pid: number): Sample {
  const rss = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))
  const unix = readFileSync('/proc/net/unix', 'latin1').split('\n').length
  return { rssMib: Number(rss?.[1] ?? 0) / 1024, descriptors: readdirSync(`/proc/${pid}/fd`).length, sockets: unix }
}

const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number

/** A generator of our own, so that a run that failed can be had again. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

async function traffic(server: ChildServer, lane: number, end: number, samples: Sample[]): Promise<number> {
  const pick = random(lane + 1)
  const { functions } = server.thaw
  const quiet = { signal: AbortSignal.timeout(seconds * 1000 + 60_000) }
  let operations = 0
  for (let round = 0; performance.now() < end; round++) {
    const name = `soak-${lane}-${round % 5}`
    const config = {
      runtime: 'python' as const,
      code: { inline: `${source}\n# ${pick(3)}` },
      timeout_ms: 500,
      resources: { memory_mib: 64 },
      network: pick(4) === 0 ? ('egress' as const) : ('none' as const),
      scaling: { max_instances: 3, idle_timeout_ms: pick(2) * 1000 },
    }
    await functions.deploy({ name, ...config })
    for (let i = 0; i < 12; i++) {
      const kind = kinds[pick(kinds.length)] as string
      // One in ten callers loses patience.
      const signal = pick(10) === 0 ? AbortSignal.timeout(1 + pick(40)) : quiet.signal
      const outcome = await functions.invoke(name, { kind }, { signal }).then(
        () => 'ok',
        (error: { code?: unknown; name?: string }) => (typeof error.code === 'string' ? error.code : (error.name ?? 'unknown')),
      )
      expect([
        'ok',
        'function_failed',
        'timed_out',
        'function_crashed',
        'out_of_memory',
        'TimeoutError',
        'AbortError',
        'cancelled',
      ]).toContain(outcome)
      operations++
    }
    if (pick(3) === 0) await functions.delete(name)
    if (lane === 0) samples.push(sample(server.process.pid as number))
  }
  return operations
}

test.skipIf(skip !== null)(
  `${seconds} s of deploys, calls, failures, time-outs and deletions leave nothing and grow nothing`,
  async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    await using server = await startChildServer(dataDir, { driver: 'oci' })
    const samples: Sample[] = []
    const end = performance.now() + seconds * 1000
    const operations = await Promise.all([0, 1, 2].map((lane) => traffic(server, lane, end, samples)))
    expect(Math.min(...operations)).toBeGreaterThan(20)

    for await (const item of server.thaw.functions.list()) await server.thaw.functions.delete(item.name)
    expect(await eventually(() => residueOf(dataDir).folders.length === 0, 20_000)).toBe(true)
    expect({ ...residueOf(dataDir), processes: [] }).toEqual(nothing)
    expect(residueOf(dataDir).processes).toEqual([expect.stringContaining('main.ts')])

    // The first third warms up: caches, the pool, the compiler of the server's code.
    const third = Math.floor(samples.length / 3)
    const early = samples.slice(third, 2 * third)
    const late = samples.slice(2 * third)
    const grown = (of: (one: Sample) => number) => median(late.map(of)) - median(early.map(of))
    console.log(
      `${operations.reduce((sum, one) => sum + one, 0)} calls; grown: ${JSON.stringify({ rssMib: Math.round(grown((one) => one.rssMib)), descriptors: grown((one) => one.descriptors) })}`,
    )
    expect(grown((one) => one.descriptors)).toBeLessThan(20)
    expect(grown((one) => one.rssMib)).toBeLessThan(seconds < 120 ? 100 : 40)
  },
  seconds * 1000 + 120_000,
)
