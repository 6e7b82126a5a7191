import { readFileSync } from 'node:fs'

/**
 * A mark names a process beyond the reuse of its number: `<pid>.<start>`, with the time of its start in clock ticks
 * since boot (field 22 of /proc/PID/stat, proc(5)).
 */
export function ownMark(): string {
  own ??= `${process.pid}.${startOf(process.pid) ?? '0'}`
  return own
}
let own: string | undefined

/** Whether the process of a mark still runs. */
export function isAliveMark(mark: string): boolean {
  const [pid, start] = mark.split('.')
  return pid !== undefined && start !== undefined && /^\d+$/.test(pid) && startOf(Number(pid)) === start
}

function startOf(pid: number): string | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    // The name, in parentheses, may itself hold spaces and parentheses.
    return text.slice(text.lastIndexOf(')') + 2).split(' ')[19] ?? null
  } catch {
    return null
  }
}
