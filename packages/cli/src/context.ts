import { functionNameSchema, Thaw } from '@thaw/sdk'
import { type Command, InvalidArgumentError } from 'commander'
import { Interrupted } from './errors.ts'
import type { Output } from './output.ts'

export interface GlobalOptions {
  json?: boolean
  url?: string
}

/** What a command that talks to a server needs. */
export interface Context {
  output: Output
  thaw: Thaw
  /** Aborted by Ctrl-C and SIGTERM. */
  signal: AbortSignal
}

/**
 * Runs a command that talks to a server. The first Ctrl-C aborts what it waits for, so that a running invocation is
 * cancelled; the second ends the process, as without us.
 */
export async function withServer(command: Command, output: Output, run: (context: Context) => Promise<void>): Promise<void> {
  const { url } = command.optsWithGlobals<GlobalOptions>()
  const abort = new AbortController()
  const interrupt = () => abort.abort(new Interrupted())
  const signals = ['SIGINT', 'SIGTERM'] as const
  for (const signal of signals) process.once(signal, interrupt)
  try {
    const thaw = new Thaw({ url })
    output.about.url = thaw.url
    await run({ output, thaw, signal: abort.signal })
  } finally {
    for (const signal of signals) process.off(signal, interrupt)
  }
}

/** ` --url …` when it was given to this command, for commands that are told to type next. */
export function urlFlag(command: Command): string {
  const { url } = command.optsWithGlobals<GlobalOptions>()
  for (let at: Command | null = command; at !== null; at = at.parent) {
    if (at.getOptionValueSource('url') === 'cli') return ` --url ${url}`
  }
  return ''
}

/** Parser of arguments and options that are names of functions. */
export function functionName(text: string): string {
  const parsed = functionNameSchema.safeParse(text)
  if (parsed.success) return text
  throw new InvalidArgumentError(`${capitalised(parsed.error.issues[0]?.message ?? 'this is no name of a function')}.`)
}

function capitalised(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1)
}

/** Parser of options that are whole numbers. */
export function wholeNumber(min: number, max = Number.MAX_SAFE_INTEGER): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : Number.NaN
    if (!(value >= min && value <= max)) {
      throw new InvalidArgumentError(
        max === Number.MAX_SAFE_INTEGER ? `Give a whole number from ${min}.` : `Give a whole number from ${min} to ${max}.`,
      )
    }
    return value
  }
}
