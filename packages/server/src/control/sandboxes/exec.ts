import { type ExecRequestParsed, type ExecResult, ThawError } from '@thaw/protocol'
import type { AgentClient, ProcessStart } from '../../agent/agent.ts'
import type { ProcessEvent } from '../../agent/messages.ts'
import { CommandOutput } from './command-output.ts'
import { followProcess } from './follow.ts'
import type { Lease } from './live-sandbox.ts'
import { processEnd } from './process-end.ts'
import { argvOf } from './sandbox-starter.ts'

const stdinPieceBytes = 1024 * 1024
/** How long the end of a process that was killed is waited for. */
const killedMs = 5000

/** Who waits for a command to end. */
export interface CommandCaller {
  /** Aborted: the command is killed, nobody wants its result. */
  signal?: AbortSignal | undefined
  /** Resolves when the result has been taken. Default: as soon as it is there. */
  answered?: Promise<void> | undefined
}

/** Runs a command to its end. That it fails is a result; `timed_out` says that it was killed because its time was over. */
export async function runCommand(
  lease: Lease,
  request: ExecRequestParsed,
  { signal, answered = Promise.resolve() }: CommandCaller = {},
): Promise<ExecResult> {
  const started = performance.now()
  const [cmd, ...args] = argvOf(request.command) as [string, ...string[]]
  const stdin = request.stdin === undefined ? null : Buffer.from(request.stdin, request.encoding)
  const start: ProcessStart = {
    process: { cmd, args, envs: request.env, ...(request.cwd === undefined ? {} : { cwd: request.cwd }) },
    stdin: stdin !== null,
  }
  const output = new CommandOutput()
  const over = new AbortController()
  let pid: number | undefined
  let timedOut = false
  const kill = () => {
    if (pid !== undefined) void killProcess(lease.agent, pid).catch(() => undefined)
    // What does not even die is left alone: its stream is given up.
    setTimeout(() => over.abort(new ThawError('sandbox_unavailable', 'The process does not end.')), killedMs).unref()
  }
  const timer = setTimeout(() => {
    timedOut = true
    kill()
  }, request.timeout_ms)
  signal?.addEventListener('abort', kill, { once: true })
  try {
    const events = followProcess(lease, start, { user: request.user, signal: over.signal })
    let end: NonNullable<ProcessEvent['event']>['end']
    for await (const { event } of events) {
      if (event?.start !== undefined) {
        pid = event.start.pid
        lease.sandbox.events.started(pid, [cmd, ...args])
        if (timedOut || signal?.aborted === true) kill()
        if (stdin !== null) feed(lease.agent, pid, stdin).catch(() => undefined)
      }
      if (event?.data !== undefined) output.add(event.data)
      if (event?.end !== undefined) end = event.end
    }
    const ended = processEnd(end ?? {})
    if (pid !== undefined) lease.sandbox.events.ended(pid, ended)
    if (signal?.aborted === true) throw new ThawError('cancelled')
    return {
      stdout: output.take('stdout', request.encoding),
      stderr: output.take('stderr', request.encoding),
      exit_code: timedOut ? null : ended.exit_code,
      signal: timedOut ? 'SIGKILL' : ended.signal,
      timed_out: timedOut,
      duration_ms: Math.round((performance.now() - started) * 1000) / 1000,
      truncated: output.truncated,
      encoding: request.encoding,
    }
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', kill)
    void answered.then(() => output.release())
  }
}

/** Ends a process and all that it started in its group. */
export async function killProcess(agent: AgentClient, pid: number, name = 'SIGNAL_SIGKILL'): Promise<void> {
  await agent.unary('process.Process/SendSignal', { process: { pid }, signal: name, group: true })
}

async function feed(agent: AgentClient, pid: number, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; at += stdinPieceBytes) {
    const piece = bytes.subarray(at, at + stdinPieceBytes)
    await agent.unary('process.Process/SendInput', { process: { pid }, input: { stdin: piece.toString('base64') } })
  }
  await agent.unary('process.Process/CloseStdin', { process: { pid } })
}
