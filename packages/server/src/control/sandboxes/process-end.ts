import { constants } from 'node:os'
import type { ProcessEvent } from '../../agent/messages.ts'

type AgentEnd = NonNullable<NonNullable<ProcessEvent['event']>['end']>

/** Texts that the agent has for signals: those of Go's syscall package on Linux. */
const signalTexts: Record<string, keyof typeof constants.signals> = {
  hangup: 'SIGHUP',
  interrupt: 'SIGINT',
  quit: 'SIGQUIT',
  'illegal instruction': 'SIGILL',
  'trace/breakpoint trap': 'SIGTRAP',
  aborted: 'SIGABRT',
  'bus error': 'SIGBUS',
  'floating point exception': 'SIGFPE',
  killed: 'SIGKILL',
  'user defined signal 1': 'SIGUSR1',
  'segmentation fault': 'SIGSEGV',
  'user defined signal 2': 'SIGUSR2',
  'broken pipe': 'SIGPIPE',
  'alarm clock': 'SIGALRM',
  terminated: 'SIGTERM',
  'bad system call': 'SIGSYS',
}

export interface ProcessEnd {
  /** 128 + n for signal n, as shells have it. */
  exit_code: number
  signal: string | null
}

/** How a process ended, from the words of the agent: `signal: killed`. */
export function processEnd({ exitCode = 0, exited, status }: AgentEnd): ProcessEnd {
  const text = exited === true ? undefined : /^signal: (.*?)(?: \(core dumped\))?$/.exec(status ?? '')?.[1]
  if (text === undefined) return { exit_code: exitCode, signal: null }
  const name = signalTexts[text]
  return name === undefined ? { exit_code: 128, signal: text } : { exit_code: 128 + constants.signals[name], signal: name }
}
