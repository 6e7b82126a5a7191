import { readdirSync, readFileSync } from 'node:fs'

/** What identifies a process beyond the reuse of its number: the number and when it started, in clock ticks since boot. */
export interface ProcessIdentity {
  pid: number
  startTicks: number
}

interface Stat {
  state: string
  startTicks: number
}

/** Fields of /proc/PID/stat (proc(5)); the name in parentheses may itself hold spaces and parentheses. */
function readStat(pid: number): Stat | null {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return { state: fields[0] ?? 'X', startTicks: Number(fields[19]) }
  } catch {
    return null
  }
}

export function identify(pid: number): ProcessIdentity | null {
  const stat = readStat(pid)
  return stat === null ? null : { pid, startTicks: stat.startTicks }
}

/** False for a process that ended, also while it is still a zombie. */
export function isAlive(identity: ProcessIdentity): boolean {
  const stat = readStat(identity.pid)
  return stat !== null && stat.startTicks === identity.startTicks && stat.state !== 'Z' && stat.state !== 'X'
}

/** R, S, D, T, Z …, as in proc(5); X when it is gone. */
export function stateOf(pid: number): string {
  return readStat(pid)?.state ?? 'X'
}

/** Sends a signal to exactly this process; false when it is gone. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals): boolean {
  if (!isAlive(identity)) return false
  try {
    process.kill(identity.pid, signal)
    return true
  } catch {
    return false
  }
}

/** Numbers of all processes of this machine for which `matches` holds; it must cope with processes that vanish. */
export function findProcesses(matches: (pid: number) => boolean): number[] {
  const found: number[] = []
  for (const name of readdirSync('/proc')) {
    const pid = Number(name)
    if (Number.isInteger(pid) && pid !== process.pid && matches(pid)) found.push(pid)
  }
  return found
}

/** The real user id of a process, or null when it is gone. */
export function uidOf(pid: number): number | null {
  try {
    const match = /^Uid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))
    return match ? Number(match[1]) : null
  } catch {
    return null
  }
}

/** Waits, up to `timeoutMs`, until a condition holds that the kernel offers no event for. False when it never did. */
export async function waitUntil(condition: () => boolean, timeoutMs: number): Promise<boolean> {
  const end = performance.now() + timeoutMs
  let pause = 1
  while (!condition()) {
    if (performance.now() > end) return false
    await new Promise((resolve) => setTimeout(resolve, pause))
    pause = Math.min(pause * 2, 50)
  }
  return true
}

const watchMs = 200
const watched = new Map<ProcessIdentity, (() => void)[]>()
let watcher: NodeJS.Timeout | undefined

/**
 * Resolves when a process has ended that is not our child, so that nobody tells us. One timer looks after all of them; it
 * does not keep the server alive.
 */
export function whenEnded(identity: ProcessIdentity): Promise<void> {
  return new Promise((resolve) => {
    const waiting = watched.get(identity)
    if (waiting === undefined) watched.set(identity, [resolve])
    else waiting.push(resolve)
    watcher ??= setInterval(() => {
      for (const [process, resolves] of watched) {
        if (isAlive(process)) continue
        watched.delete(process)
        for (const done of resolves) done()
      }
      if (watched.size > 0) return
      clearInterval(watcher)
      watcher = undefined
    }, watchMs).unref()
  })
}
