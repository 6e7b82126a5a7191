import { InvalidArgumentError } from 'commander'

const durationUnitsMs: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
const longUnitsMs: Record<string, number> = { m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 }
const memoryUnitsMib: Record<string, number> = { '': 1, mib: 1, m: 1, gib: 1024, g: 1024 }

/** `500ms`, `30s`, `5m` or `1h` as milliseconds. A number alone is refused: who writes 5 may mean seconds. */
export function durationMs(text: string): number {
  if (/^\d+(?:\.\d+)?$/.test(text)) throw new InvalidArgumentError(`Say in which unit: ${text}s, ${text}ms or ${text}m.`)
  return withUnit(text, durationUnitsMs, 'Give a duration such as 500ms, 30s or 5m.')
}

/** `30m`, `12h`, `90d` or `4w` as milliseconds. */
export function lifetimeMs(text: string): number {
  return withUnit(text, longUnitsMs, 'Give a time such as 12h, 90d or 4w.')
}

/** `256`, `256MiB` or `1GiB` as MiB. */
export function memoryMib(text: string): number {
  return withUnit(text, memoryUnitsMib, 'Give an amount of memory such as 256, 256MiB or 1GiB.')
}

function withUnit(text: string, units: Record<string, number>, help: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text)
  const factor = units[match?.[2]?.toLowerCase() ?? '']
  const value = Number(match?.[1]) * (factor ?? Number.NaN)
  if (!(value >= 1)) throw new InvalidArgumentError(help)
  return Math.round(value)
}
