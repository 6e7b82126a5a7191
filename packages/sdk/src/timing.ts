/** Milliseconds of each stage of an invocation, as in the record of an invocation. */
export interface Timing {
  queue_ms: number
  boot_ms: number
  init_ms: number
  run_ms: number
}

/** Reads `Server-Timing: queue;dur=0.1, boot;dur=3, …`; null when a stage is missing. */
export function parseTiming(header: string | null): Timing | null {
  if (header === null) return null
  const durations = new Map<string, number>()
  for (const part of header.split(',')) {
    const [name, ...parameters] = part.split(';').map((text) => text.trim())
    const duration = parameters.find((parameter) => parameter.startsWith('dur='))
    if (name !== undefined && duration !== undefined) durations.set(name, Number(duration.slice('dur='.length)))
  }
  const [queue, boot, init, run] = ['queue', 'boot', 'init', 'run'].map((name) => durations.get(name))
  if (queue === undefined || boot === undefined || init === undefined || run === undefined) return null
  return { queue_ms: queue, boot_ms: boot, init_ms: init, run_ms: run }
}
