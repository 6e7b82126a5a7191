import { CommanderError } from 'commander'
import { exitCodeOf, exitCodes, reportError, UsageError } from './errors.ts'
import { Output } from './output.ts'
import { createProgram } from './program.ts'
import { withSeparator } from './trailing.ts'

/** Runs the command that `args` names and sets the exit code of the process. The only file that may end the process. */
export async function main(args: string[]): Promise<void> {
  const line = withSeparator(createProgram(new Output({ json: false }), args), args)
  const own = line.includes('--') ? line.slice(0, line.indexOf('--')) : line
  // Errors of usage come before any option is known to be there.
  const json = own.includes('--json')
  const output = new Output({ json })
  endQuietlyWhenNobodyReads()
  try {
    await createProgram(output, own).parseAsync(line, { from: 'user' })
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
      if (error.exitCode !== 0 && json) reportError(output, new UsageError(error.message.replace(/^error: /, '')))
      return
    }
    process.exitCode = exitCodeOf(error)
    reportError(output, error)
  }
}

/** `thaw ls | head -1` closes our output early, which is no failure. */
function endQuietlyWhenNobodyReads(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') process.exit(exitCodes.ok)
    throw error
  })
}
