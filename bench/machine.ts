import { cpus, loadavg, release, totalmem } from 'node:os'

export interface Machine {
  cpu: string
  cores: number
  memory_gib: number
  kernel: string
  node: string
  load_generator: string
  /** Load average of the last minute when the run began: on a shared machine it says how far to trust the figures. */
  load_average: number
  date: string
}

export function describeMachine(loadGenerator: string): Machine {
  const all = cpus()
  return {
    cpu: all[0]?.model ?? 'unknown',
    cores: all.length,
    memory_gib: Math.round(totalmem() / 1024 ** 3),
    kernel: release(),
    node: process.version,
    load_generator: loadGenerator,
    load_average: Number((loadavg()[0] ?? 0).toFixed(2)),
    date: new Date().toISOString(),
  }
}
