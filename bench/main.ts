import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { findLoadGenerator, type LoadGenerator } from './load.ts'
import { describeMachine } from './machine.ts'
import { type Row, tableOf } from './report.ts'
import { bodies } from './suites/bodies.ts'
import { forks } from './suites/forks.ts'
import { hot } from './suites/hot.ts'
import { idle } from './suites/idle.ts'
import { memory } from './suites/memory.ts'
import { neighbour } from './suites/neighbour.ts'
import { sandboxes } from './suites/sandboxes.ts'
import { sleepers } from './suites/sleepers.ts'
import { start } from './suites/start.ts'
import { repository, Workbench } from './workbench.ts'

/** Leaves time to clean up within 20 minutes, or 3. */
const limitMs = 1_160_000
const quickLimitMs = 160_000

const suites: Record<string, (bench: Workbench, generator: LoadGenerator) => Promise<Row[]>> = {
  hot,
  start,
  bodies,
  sleepers,
  idle,
  neighbour,
  sandboxes,
  forks,
  memory,
}

/** `npm run bench -- [--json] [--quick] [--only SUITE]…`: docs/performance.md says what the rows mean. */
async function main(): Promise<number> {
  const { values } = parseArgs({
    options: { json: { type: 'boolean' }, quick: { type: 'boolean' }, only: { type: 'string', multiple: true } },
  })
  const unknown = values.only?.find((name) => !(name in suites))
  if (unknown !== undefined) throw new Error(`There is no ${unknown}: choose from ${Object.keys(suites).join(', ')}.`)
  const quick = values.quick === true
  const rows: Row[] = []
  const failures: { suite: string; reason: string }[] = []
  await using bench = new Workbench({ quick, limitMs: quick ? quickLimitMs : limitMs })
  const interrupted = () => bench.stop('interrupted')
  process.on('SIGINT', interrupted).on('SIGTERM', interrupted)

  const generator = findLoadGenerator(bench)
  const machine = describeMachine(generator.name)
  for (const name of values.only ?? Object.keys(suites)) {
    try {
      bench.signal.throwIfAborted()
      rows.push(...((await suites[name]?.(bench, generator)) ?? []))
    } catch (error) {
      // The others are still worth having.
      const reason = (bench.signal.aborted ? bench.signal.reason : error) as Error
      failures.push({ suite: name, reason: reason.message })
      bench.say(`${name} failed: ${reason.stack}`)
      for (const words of await bench.stopChildren()) bench.say(words)
    }
    // Nothing of a suite is at work while the next one measures.
    await bench.stopChildren()
  }

  const leftOut = Object.fromEntries(bench.leftOut)
  const result = JSON.stringify({ machine, quick, rows, left_out: leftOut, failures }, null, 2)
  mkdirSync(join(repository, '.build'), { recursive: true })
  writeFileSync(join(repository, '.build/bench.json'), `${result}\n`)
  if (values.json === true) process.stdout.write(`${result}\n`)
  else {
    const { cpu, cores, memory_gib, kernel, node, load_generator, load_average } = machine
    process.stdout.write(
      `${cpu}, ${cores} cores, ${memory_gib} GiB, Linux ${kernel}, Node ${node}; load by ${load_generator}; load average ${load_average}\n\n`,
    )
    process.stdout.write(`${tableOf(rows)}\n`)
    for (const [peer, why] of bench.leftOut) process.stdout.write(`left out: ${peer}: ${why}\n`)
    for (const { suite, reason } of failures) process.stdout.write(`failed: ${suite}: ${reason}\n`)
  }
  return failures.length > 0 ? 1 : 0
}

main().then(
  (code) => {
    process.exitCode = code
  },
  (error: unknown) => {
    process.stderr.write(`bench: ${(error as Error).message}\n`)
    process.exitCode = 2
  },
)
