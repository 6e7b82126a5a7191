import { ThawError } from '@thaw/protocol'
import type { ProcessStart } from '../../agent/agent.ts'
import { NotUnderstood } from '../../agent/connect.ts'
import { type ProcessEvent, processEventSchema, understand } from '../../agent/messages.ts'
import type { Lease } from './live-sandbox.ts'

export interface FollowOptions {
  user?: string | undefined
  /** Gives the process up; it runs on. */
  signal?: AbortSignal | undefined
  /** For the agent, beside its own. */
  headers?: Record<string, string>
}

/** A process that runs. `offset`: bytes of its output that the caller has already; default: what comes from now on. */
export interface Attachment {
  /** main: the service that was started with the sandbox. */
  pid: number | 'main'
  offset?: Partial<Record<Channel, number>>
}

/** How long a sandbox may stand still, as for a snapshot, before whoever waits for it is told. */
const stillMs = 120_000
const firstPauseMs = 5
const longestPauseMs = 200

type Channel = 'stdout' | 'stderr' | 'pty'

/**
 * Starts a process, or attaches to one, and tells all that happens to it until it ends. The stream to the agent breaks off when
 * the sandbox is snapshotted: then it is taken up again where it was, and nothing is lost. Leaving the iteration leaves the
 * process running.
 */
export async function* followProcess(
  lease: Lease,
  what: ProcessStart | Attachment,
  options: FollowOptions = {},
): AsyncGenerator<ProcessEvent> {
  const received: Record<Channel, number> = { stdout: 0, stderr: 0, pty: 0 }
  let pid: number | undefined
  let told = false
  let stream = open(lease, what, options)
  let brokenSince: number | undefined
  let pauseMs = firstPauseMs
  for (;;) {
    try {
      for await (const message of stream) {
        brokenSince = undefined
        pauseMs = firstPauseMs
        const { start, data, end } = message.event ?? {}
        if (start === undefined && pid === undefined && (data ?? end) !== undefined)
          throw new NotUnderstood('The agent of the sandbox told of a process before it named it.')
        if (start !== undefined) {
          pid = start.pid
          // Of a process that was joined: what it printed before is not counted.
          if (!told) for (const name of channels) received[name] = start.offset?.[name] ?? 0
          if (told) continue
          told = true
        }
        if (data !== undefined) for (const name of channels) received[name] += decodedBytes(data[name])
        yield message
        if (end !== undefined) return
      }
      return
    } catch (error) {
      brokenSince ??= performance.now()
      const { sandbox } = lease
      const again =
        pid !== undefined &&
        error instanceof ThawError &&
        error.code === 'sandbox_unavailable' &&
        !(error instanceof NotUnderstood) &&
        sandbox.row.ended_at === null &&
        options.signal?.aborted !== true &&
        performance.now() - brokenSince < stillMs
      if (!again) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, pauseMs))
    pauseMs = Math.min(pauseMs * 2, longestPauseMs)
    stream = open(lease, { pid: pid as number, offset: received }, options)
  }
}

const channels = ['stdout', 'stderr', 'pty'] as const

async function* open(lease: Lease, what: ProcessStart | Attachment, options: FollowOptions): AsyncGenerator<ProcessEvent> {
  if ('pid' in what) {
    const { pid, offset } = what
    // The agent starts the service of a sandbox under this tag.
    const process = pid === 'main' ? { tag: pid } : { pid }
    const message = { process, ...(offset === undefined ? {} : { offset }) }
    yield* events(lease.agent.stream('process.Process/Connect', message, options))
  } else yield* events(lease.agent.stream('process.Process/Start', what, options))
}

async function* events(messages: AsyncIterable<object>): AsyncGenerator<ProcessEvent> {
  for await (const message of messages) yield understand(processEventSchema, message)
}

/** Length of what base64 text stands for. */
function decodedBytes(text: string | undefined): number {
  if (text === undefined) return 0
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0
  return (text.length / 4) * 3 - padding
}
