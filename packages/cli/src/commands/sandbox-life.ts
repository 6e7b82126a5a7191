import type { Sandbox, SandboxState } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import type { Output } from '../output.ts'
import { liveStates } from './sandbox-list.ts'

interface Verb {
  name: string
  description: string
  /** What is said while it happens, and when it has. */
  doing: string
  done: string
  /** Those that --all means. */
  states: SandboxState[] | undefined
  run(sandbox: Sandbox, signal: AbortSignal): Promise<unknown>
}

const verbs: Verb[] = [
  {
    name: 'pause',
    description: 'Stop the processes of sandboxes where they are. The next call wakes a sandbox.',
    doing: 'pausing',
    done: 'paused',
    states: ['running'],
    run: (sandbox, signal) => sandbox.pause({ signal }),
  },
  {
    name: 'hibernate',
    description: 'Put the memory of sandboxes on disk and end their processes. The next call wakes a sandbox as it was.',
    doing: 'hibernating',
    done: 'hibernated',
    states: ['running', 'paused'],
    run: (sandbox, signal) => sandbox.hibernate({ signal }),
  },
  {
    name: 'resume',
    description: 'Let sandboxes go on.',
    doing: 'waking',
    done: 'resumed',
    states: ['paused', 'hibernated'],
    run: (sandbox, signal) => sandbox.resume({ signal }),
  },
  {
    name: 'stop',
    description: 'End sandboxes and keep their records.',
    doing: 'stopping',
    done: 'stopped',
    states: liveStates,
    run: (sandbox, signal) => sandbox.stop({ signal }),
  },
  {
    name: 'rm',
    description: 'End sandboxes, from whatever state, and forget them.',
    doing: 'removing',
    done: 'removed',
    states: undefined,
    run: (sandbox, signal) => sandbox.delete({ signal }),
  },
]

export function registerLife(sandbox: Command, output: Output): void {
  for (const verb of verbs) {
    sandbox
      .command(verb.name)
      .argument('[sandboxes...]', 'ids or names')
      .description(verb.description)
      .option('--all', verb.states === undefined ? 'all sandboxes, ended ones included' : `all that are ${verb.states.join(', ')}`)
      .addHelpText('after', `\nExamples:\n  thaw sandbox ${verb.name} lab\n  thaw sandbox ${verb.name} --all`)
      .action((ids: string[], { all }: { all?: boolean }, command: Command) =>
        withServer(command, output, async (context) => {
          if ((all === true) === ids.length > 0) throw new UsageError('Name sandboxes, or give --all.')
          await applyTo(context, verb, ids)
        }),
      )
  }
}

async function applyTo({ output, thaw, signal }: Context, verb: Verb, ids: string[]): Promise<void> {
  const sandboxes: (string | Sandbox)[] = ids.length > 0 ? ids : await thaw.sandboxes.list({ state: verb.states, signal }).all()
  const done: string[] = []
  let failure: unknown
  for (const each of sandboxes) {
    const name = typeof each === 'string' ? each : each.id
    try {
      await output.progress.during(`${verb.doing} ${name}`, async () => {
        await verb.run(typeof each === 'string' ? await thaw.sandboxes.get(each, { signal }) : each, signal)
      })
      done.push(name)
    } catch (error) {
      signal.throwIfAborted()
      // The others are not left out; the first failure decides the exit code.
      failure ??= error
    }
  }
  output.result({ [verb.done]: done }, () => done.map((name) => `${verb.done} ${name}`).join('\n'))
  if (failure !== undefined) throw failure
}
