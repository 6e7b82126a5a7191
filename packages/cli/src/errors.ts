import { type ErrorBody, type ErrorCode, ThawError } from '@thaw/sdk'
import { type Output, printable } from './output.ts'
import { asTyped } from './own-name.ts'

/** What the exit code of every command means; docs/cli.md says the same. */
export const exitCodes = {
  ok: 0,
  failed: 1,
  usage: 2,
  unreachable: 3,
  functionFailed: 4,
  /** As shells have it. */
  commandNotFound: 127,
  /** 128 + SIGINT, as shells report it. */
  interrupted: 130,
} as const

/** The command was not written as its help says. */
export class UsageError extends ThawError {
  constructor(message: string, fix = 'See `thaw COMMAND --help`.') {
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
  if (error.code === 'command_not_found') return exitCodes.commandNotFound
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
    output.error(JSON.stringify({ error: { ...bodyOf(error), fix: namedFix(error.fix, output) } }))
    return
  }
  const lines = detailLines(error)
  output.error(`${output.red('error:')} ${printable(asTyped(error.message))}`)
  for (const line of lines) output.error(`  ${printable(line)}`)
  output.error(`${output.dim('fix:')} ${pointedFix(namedFix(error.fix, output), error, lines.length > 0)}`)
  if (error.requestId !== undefined) output.error(output.dim(`request: ${error.requestId}`))
}

export function bodyOf(error: ThawError): ErrorBody {
  return error.toBody(error.requestId).error
}

/** A fix with the function, the command and the address that this is about, and commands as they are typed here. */
export function namedFix(fix: string, { about }: Pick<Output, 'about'>): string {
  const command = about.command === undefined || about.command === '' ? 'thaw help' : `thaw ${about.command} --help`
  return asTyped(
    fix
      .replaceAll('thaw COMMAND --help', command)
      .replace(/`[^`]*\bNAME\b[^`]*`/g, (quoted) => quoted.replace(/\bNAME\b/, about.function ?? 'NAME'))
      .replace(/(^| )\/docs\b/g, `$1${about.url ?? ''}/docs`),
  )
}

/** Over HTTP a fix points at the details of the error; here they stand above it. */
function pointedFix(fix: string, { details }: ThawError, shown: boolean): string {
  const { stack, log } = (details ?? {}) as Record<string, unknown>
  const other = shown ? 'the lines above' : 'the message above'
  return fix
    .replaceAll('details.stack', stack ? 'the stack above' : other)
    .replaceAll('details.log', log || !shown ? 'the log above' : other)
    .replace(/\bdetails\b/g, other)
}

/** The parts of details that help a person: the failure of the code, the log of a build, the fields of a request. */
function detailLines({ details, message: shown }: ThawError): string[] {
  if (typeof details !== 'object' || details === null) return []
  const { type, message, stack, log, stderr, output, body, problems, issues, invocation_id } = details as Record<string, unknown>
  const lines: string[] = []
  if (typeof stack === 'string' && stack !== '') lines.push(...stack.trimEnd().split('\n'))
  else if (typeof message === 'string' && !shown.includes(message)) lines.push(typeof type === 'string' ? `${type}: ${message}` : message)
  for (const text of [log, stderr, output, body])
    if (typeof text === 'string' && text !== '') lines.push(...text.trimEnd().split('\n').slice(-20))
  for (const problem of [problems, issues, details].find((value) => Array.isArray(value)) ?? []) lines.push(...problemLines(problem, shown))
  if (typeof invocation_id === 'string') lines.push(`invocation: ${invocation_id}`)
  return lines
}

/** One problem of several; none when the message has said it already. */
function problemLines(problem: unknown, shown: string): string[] {
  if (typeof problem !== 'object' || problem === null) return [String(problem)]
  const { path, field, key, message, expected } = problem as Record<string, unknown>
  const where = keyOf(path ?? field ?? key)
  const what = String(message ?? expected ?? '')
  if (what === '') return [JSON.stringify(problem)]
  if (shown.includes(what) && shown.includes(where)) return []
  return [where === '' ? what : `${where}: ${what}`]
}

/** A place in a body, always as `resources.memory_mib`: servers also write it as a pointer or as its parts. */
function keyOf(path: unknown): string {
  if (Array.isArray(path)) return path.join('.')
  return path === undefined ? '' : String(path).replace(/^\//, '').replaceAll('/', '.')
}
