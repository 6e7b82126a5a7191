import type { Command } from 'commander'

/** How many arguments come before the command that a sandbox is to run, by the command of ours. */
const ownArguments = new WeakMap<Command, number>()

/** What follows the first `count` arguments is a command line of its own, options and all: `thaw run python python3 -V`. */
export function takesCommandLine(command: Command, count: number): Command {
  ownArguments.set(command, count)
  return command
}

/**
 * Puts `--` in front of the command line that belongs to a sandbox, so that its options are not taken for ours. People rarely
 * type it. An option of ours may also come between: `thaw sandbox exec ID --env A=b env`.
 */
export function withSeparator(program: Command, args: readonly string[]): string[] {
  let at: Command = program
  let own = Number.POSITIVE_INFINITY
  let seen = 0
  for (let index = 0; index < args.length; index++) {
    const word = args[index] as string
    if (word === '--') break
    if (word.startsWith('-') && word !== '-') {
      if (takesNext(at, word)) index++
      continue
    }
    const next =
      own === Number.POSITIVE_INFINITY ? at.commands.find((child) => child.name() === word || child.aliases().includes(word)) : undefined
    if (next !== undefined) {
      at = next
      own = ownArguments.get(at) ?? Number.POSITIVE_INFINITY
    } else if (seen++ >= own) return [...args.slice(0, index), '--', ...args.slice(index)]
  }
  return [...args]
}

/** Whether the value of an option is the next word. */
function takesNext(command: Command, word: string): boolean {
  if (word.includes('=')) return false
  for (let at: Command | null = command; at !== null; at = at.parent) {
    const option = at.options.find(({ long, short }) => word === long || word === short)
    if (option !== undefined) return option.required
  }
  return false
}
