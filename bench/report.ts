import type { Figure } from './stats.ts'

/** What DESIGN promises of a row: a bound for our own figure, or for its ratio to one peer. */
export type Goal =
  | { atMost: number; unit: string }
  | { atLeast: number; unit: string }
  | { against: string; atLeast: number }
  | { against: string; atMost: number }
  /** How many times less time we take. */
  | { against: string; timesFaster: number }

export interface Row {
  name: string
  unit: string
  ours: number
  ours_p99: number | null
  peers: Record<string, number>
  peers_p99: Record<string, number>
  /** ours ÷ peer, or peer ÷ ours where the goal says "faster"; null without that peer. */
  ratio: number | null
  goal: string | null
  /** null: there is no goal, or its peer is missing. */
  goal_met: boolean | null
  note: string | null
}

export interface Measured {
  name: string
  unit: string
  ours: Figure | number
  peers?: ReadonlyMap<string, Figure | number>
  goal?: Goal
  note?: string | undefined
  /** Why the goal is missed whatever the figure says: what was to be measured did not come about. */
  missed?: string | undefined
}

/** Makes a row: the ratio is that of the printed medians. */
export function rowOf({ name, unit, ours, peers = new Map(), goal, note, missed }: Measured): Row {
  const value = medianOf(ours)
  const judged = goal === undefined ? { ratio: firstRatio(value, peers), text: null, met: null } : judge(value, peers, goal)
  return {
    name,
    unit,
    ours: rounded(value),
    ours_p99: typeof ours === 'number' ? null : rounded(ours.p99),
    peers: Object.fromEntries([...peers].map(([peer, figure]) => [peer, rounded(medianOf(figure))])),
    peers_p99: Object.fromEntries(
      [...peers].flatMap(([peer, figure]) => (typeof figure === 'number' ? [] : [[peer, rounded(figure.p99)]])),
    ),
    ratio: judged.ratio === null ? null : rounded(judged.ratio),
    goal: judged.text,
    goal_met: missed === undefined ? judged.met : false,
    note: [missed, note].filter((text) => text !== undefined).join('; ') || null,
  }
}

function judge(
  ours: number,
  peers: ReadonlyMap<string, Figure | number>,
  goal: Goal,
): { ratio: number | null; text: string; met: boolean | null } {
  if (!('against' in goal)) {
    const ratio = firstRatio(ours, peers)
    if ('atMost' in goal) return { ratio, text: `≤ ${goal.atMost} ${goal.unit}`, met: ours <= goal.atMost }
    return { ratio, text: `≥ ${goal.atLeast} ${goal.unit}`, met: ours >= goal.atLeast }
  }
  const peer = peers.get(goal.against)
  const ratioOf = (make: (other: number) => number) => (peer === undefined ? null : make(medianOf(peer)))
  if ('timesFaster' in goal) {
    const ratio = ratioOf((other) => other / ours)
    return { ratio, text: `≥ ${goal.timesFaster}× faster than ${goal.against}`, met: ratio === null ? null : ratio >= goal.timesFaster }
  }
  const ratio = ratioOf((other) => ours / other)
  if ('atMost' in goal) return { ratio, text: `≤ ${goal.atMost}× ${goal.against}`, met: ratio === null ? null : ratio <= goal.atMost }
  return { ratio, text: `≥ ${goal.atLeast}× ${goal.against}`, met: ratio === null ? null : ratio >= goal.atLeast }
}

function firstRatio(ours: number, peers: ReadonlyMap<string, Figure | number>): number | null {
  const first = peers.values().next().value
  return first === undefined ? null : ours / medianOf(first)
}

function medianOf(value: Figure | number): number {
  return typeof value === 'number' ? value : value.median
}

/** Three digits, or all of a large whole number. */
function rounded(value: number): number {
  return Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3))
}

/** An aligned table for people. */
export function tableOf(rows: readonly Row[]): string {
  const header = ['name', 'ours (p99)', 'peers (p99)', 'ratio', 'goal', 'met']
  const lines = rows.map((row) => [
    row.name,
    `${cell(row.ours, row.ours_p99)} ${row.unit}`,
    Object.entries(row.peers)
      .map(([peer, value]) => `${peer} ${cell(value, row.peers_p99[peer] ?? null)}`)
      .join(', ') || '-',
    row.ratio === null ? '-' : `${row.ratio}`,
    row.goal ?? '-',
    row.goal_met === null ? '-' : row.goal_met ? 'yes' : 'NO',
  ])
  const widths = header.map((title, column) => Math.max(title.length, ...lines.map((line) => (line[column] ?? '').length)))
  const format = (line: readonly string[]) =>
    line
      .map((text, column) => text.padEnd(widths[column] ?? 0))
      .join('  ')
      .trimEnd()
  const notes = rows.flatMap((row) => (row.note === null ? [] : [`${row.name}: ${row.note}`]))
  return [
    format(header),
    format(widths.map((width) => '-'.repeat(width))),
    ...lines.map(format),
    ...(notes.length > 0 ? ['', ...notes] : []),
  ].join('\n')
}

function cell(value: number, p99: number | null): string {
  return p99 === null ? `${value}` : `${value} (${p99})`
}
