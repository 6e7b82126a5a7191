import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import type { Ended, FromLauncher, Stream, ToLauncher } from './protocol.ts'

// A process of its own, see launcher.ts. It ends with its server; what it started goes on.

const maxKeptBytes = 64 * 1024
const running = new Map<number, { child: ChildProcess; group: boolean }>()

process.on('message', (message: ToLauncher) => {
  if ('kill' in message) kill(message.id)
  else if ('program' in message) start(message)
  else running.get(message.id)?.child.stdin?.end(message.input)
})
process.on('disconnect', () => process.exit())
// A terminal and a service manager send these to the whole group. The server decides what ends when.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => undefined)

function start({ id, program, args, input, streams, group, timeoutMs }: Extract<ToLauncher, { program: string }>): void {
  const result: Ended = { code: null, signal: null, stdout: '', stderr: '', error: null }
  const opened: number[] = []
  let answered = false
  const answer = () => {
    if (answered) return
    answered = true
    clearTimeout(timer)
    running.delete(id)
    process.send?.({ id, ...result } satisfies FromLauncher)
  }
  const fail = ({ code, message }: NodeJS.ErrnoException) => {
    result.error = { code, message }
    answer()
  }
  const timer = timeoutMs === null ? undefined : setTimeout(() => kill(id), timeoutMs)
  try {
    const child = spawn(program, args, {
      stdio: [input === null ? 'ignore' : 'pipe', ...streams.map((stream) => open(stream, opened))],
      detached: group,
    })
    running.set(id, { child, group })
    child.once('error', fail)
    child.once('close', (code, signal) => {
      Object.assign(result, { code, signal })
      answer()
    })
    for (const name of ['stdout', 'stderr'] as const) {
      child[name]?.setEncoding('utf8').on('data', (text: string) => {
        result[name] = (result[name] + text).slice(-maxKeptBytes)
      })
    }
    child.stdin?.on('error', () => undefined)
    if (typeof input === 'string') child.stdin?.end(input)
  } catch (error) {
    fail(error as NodeJS.ErrnoException)
  } finally {
    for (const fd of opened) closeSync(fd)
  }
}

/** A file of the server is opened anew through /proc, which works for pipes as well. */
function open(stream: Stream, opened: number[]): 'ignore' | 'pipe' | number {
  if (typeof stream === 'string') return stream === 'keep' ? 'pipe' : 'ignore'
  const fd = openSync(`/proc/${process.ppid}/fd/${stream}`, constants.O_WRONLY | constants.O_APPEND)
  opened.push(fd)
  return fd
}

function kill(id: number): void {
  const { child, group } = running.get(id) ?? {}
  if (child?.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  try {
    process.kill(group ? -child.pid : child.pid, 'SIGKILL')
  } catch {
    // Ended at this moment.
  }
}
