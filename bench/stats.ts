/** The value below which the given share (0 to 1) of the samples lies, by the nearest rank; NaN without samples. */
export function percentile(samples: readonly number[], share: number): number {
  const sorted = [...samples].sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))] ?? Number.NaN
}

export function median(samples: readonly number[]): number {
  const sorted = [...samples].sort((a, b) => a - b)
  const middle = sorted.length >> 1
  if (sorted.length % 2 === 1) return sorted[middle] ?? Number.NaN
  return ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2
}

/** What a row says of one contender. */
export interface Figure {
  median: number
  p99: number
}

export function figure(samples: readonly number[]): Figure {
  return { median: median(samples), p99: percentile(samples, 0.99) }
}

/**
 * Runs contenders in turn, round by round, so that whatever else the machine does falls on all of them alike. Each round
 * begins with another one: nobody always runs behind the same neighbour.
 */
export async function interleave<Sample>(
  rounds: number,
  contenders: ReadonlyMap<string, (round: number) => Promise<Sample>>,
  signal: AbortSignal,
): Promise<Map<string, Sample[]>> {
  const names = [...contenders.keys()]
  const samples = new Map<string, Sample[]>(names.map((name) => [name, []]))
  for (let round = 0; round < rounds; round++) {
    for (let turn = 0; turn < names.length; turn++) {
      signal.throwIfAborted()
      const name = names[(round + turn) % names.length] as string
      const run = contenders.get(name)
      if (run !== undefined) samples.get(name)?.push(await run(round))
    }
  }
  return samples
}
