import { writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { findProgram, type Workbench } from './workbench.ts'

export interface Load {
  url: string
  contentType: string
  body: string
  clients: number
  seconds: number
}

export interface LoadResult {
  requestsPerSecond: number
  p50Ms: number
  p99Ms: number
}

export interface LoadGenerator {
  name: string
  run(load: Load): Promise<LoadResult>
}

/** wrk where it is installed: it takes least of the processor, which it shares with what it measures. Else autocannon. */
export function findLoadGenerator(bench: Workbench): LoadGenerator {
  const wrk = findProgram('wrk')
  return wrk === null ? autocannon(bench) : wrkGenerator(bench, wrk)
}

function wrkGenerator(bench: Workbench, program: string): LoadGenerator {
  const script = fileURLToPath(new URL('wrk.lua', import.meta.url))
  return {
    name: 'wrk, 1 thread',
    async run({ url, contentType, body, clients, seconds }) {
      const file = join(bench.dir, 'body')
      writeFileSync(file, body)
      const text = await bench.run(program, [
        '-t1',
        `-c${clients}`,
        `-d${seconds}s`,
        '--timeout',
        '10s',
        '-s',
        script,
        url,
        '--',
        contentType,
        file,
      ])
      const result = JSON.parse(/^result (.*)$/m.exec(text)?.[1] ?? '{}') as Record<string, number>
      const { requests = 0, duration_us = 0, errors = 0, p50_us = 0, p99_us = 0 } = result
      if (errors > 0 || requests === 0) throw new Error(`${url}: ${errors} of ${requests} requests failed`)
      return { requestsPerSecond: requests / (duration_us / 1e6), p50Ms: p50_us / 1000, p99Ms: p99_us / 1000 }
    },
  }
}

interface AutocannonResult {
  requests: { average: number; total: number }
  latency: { p50: number; p99: number }
  errors: number
  non2xx: number
}

function autocannon(bench: Workbench): LoadGenerator {
  const main = createRequire(import.meta.url).resolve('autocannon')
  return {
    name: 'autocannon',
    async run({ url, contentType, body, clients, seconds }) {
      const args = [
        '--json',
        '-m',
        'POST',
        '-c',
        String(clients),
        '-d',
        String(seconds),
        '-H',
        `content-type=${contentType}`,
        '-b',
        body,
        url,
      ]
      const result = JSON.parse(await bench.run(process.execPath, [main, ...args])) as AutocannonResult
      const failed = result.errors + result.non2xx
      if (failed > 0 || result.requests.total === 0) throw new Error(`${url}: ${failed} of ${result.requests.total} requests failed`)
      return { requestsPerSecond: result.requests.average, p50Ms: result.latency.p50, p99Ms: result.latency.p99 }
    },
  }
}
