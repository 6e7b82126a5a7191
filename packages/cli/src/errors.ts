import { type ErrorBody, type ErrorCode, ThawError } from '@thaw/sdk'
import type { Output } from './output.ts'

/** What the exit code of every command means; docs/cli.md says the same. */
export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  functionFailed: 4,
  /** 128 + SIGINT, as shells report it. */
  interrupted: 130,
} as const

/** The command was not written as its help says. */
export class UsageError extends ThawError {
  constructor(message: string, fix = 'See `thaw help`, or `thaw COMMAND --help`.') {
    super('invalid_request', message, { fix })
  }
}

/** Ctrl-C while a command waited. Nothing is reported: the person who pressed it knows. */
export class Interrupted extends Error {
  override readonly name = 'Interrupted'
}

/** The code ran and failed, rather than anything around it. */
const functionFailures: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'function_failed',
  'function_crashed',
  'out_of_memory',
  'result_too_large',
  'protocol_violation',
  'timed_out',
])

export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return exitCodes.usage
  if (error instanceof Interrupted) return exitCodes.interrupted
  if (!(error instanceof ThawError)) return exitCodes.failed
  if (error.code === 'unreachable') return exitCodes.unreachable
  return functionFailures.has(error.code) ? exitCodes.functionFailed : exitCodes.failed
}

/** One line each: what went wrong, what the code or the server said about it, how to repair it. With --json: one JSON object. */
export function reportError(output: Output, error: unknown): void {
  if (error instanceof Interrupted) return
  if (!(error instanceof ThawError)) {
    const unexpected = new ThawError('internal', error instanceof Error ? error.message : String(error), { cause: error })
    const stack = process.env.DEBUG !== undefined && error instanceof Error ? `\n${error.stack}` : ''
    reportError(output, unexpected)
    if (stack !== '') output.note(stack)
    return
  }
  if (output.json) {
    output.error(JSON.stringify({ error: bodyOf(error) }))
    return
  }
  output.error(`${output.red('error:')} ${error.message}`)
  for (const line of detailLines(error)) output.error(`  ${line}`)
  output.error(`${output.dim('fix:')} ${error.fix}`)
  if (error.requestId !== undefined) output.error(output.dim(`request: ${error.requestId}`))
}

export function bodyOf(error: ThawError): ErrorBody {
  return error.toBody(error.requestId).error
}

/** The parts of details that help a person: the failure of the code, the log of a build, the fields of a request. */
function detailLines({ details, message: shown }: ThawError): string[] {
  if (typeof details !== 'object' || details === null) return []
  const { type, message, stack, log, problems, issues, invocation_id } = details as Record<string, unknown>
  const lines: string[] = []
  if (typeof stack === 'string' && stack !== '') lines.push(...stack.trimEnd().split('\n'))
  else if (typeof message === 'string' && !shown.includes(message)) lines.push(typeof type === 'string' ? `${type}: ${message}` : message)
  if (typeof log === 'string') lines.push(...log.trimEnd().split('\n').slice(-20))
  for (const problem of [problems, issues, details].find((value) => Array.isArray(value)) ?? []) lines.push(problemLine(problem))
  if (typeof invocation_id === 'string') lines.push(`invocation: ${invocation_id}`)
  return lines
}

function problemLine(problem: unknown): string {
  if (typeof problem !== 'object' || problem === null) return String(problem)
  const { path, field, key, message, expected } = problem as Record<string, unknown>
  const where = Array.isArray(path) ? path.join('.') : (path ?? field ?? key)
  const what = message ?? expected
  return where === undefined || where === '' || what === undefined ? JSON.stringify(problem) : `${String(where)}: ${String(what)}`
}
