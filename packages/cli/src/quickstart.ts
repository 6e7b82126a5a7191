import { isDeepStrictEqual } from 'node:util'
import { type Thaw, ThawError } from '@thaw/sdk'
import { deployAndFollow } from './deployment.ts'
import { bodyOf, namedFix } from './errors.ts'
import { milliseconds, type Output, table } from './output.ts'
import { type Call, call, inputOf, type QuickstartFunction, quickstartFunctions } from './quickstart-functions.ts'

interface Row {
  definition: QuickstartFunction
  driver: string
  calls: Call[]
  right: boolean
  error: ThawError | null
}

/** Deploys the examples, calls each twice and checks the answers. Resolves with whether all were right. */
export async function runQuickstart(thaw: Thaw, output: Output, signal: AbortSignal): Promise<boolean> {
  output.note(`deploying ${quickstartFunctions.length} examples; the first time on a machine this prepares images and compiles`)
  const drivers = await Promise.allSettled(quickstartFunctions.map((definition) => deployExample(thaw, definition, output, signal)))
  signal.throwIfAborted()
  const rows: Row[] = []
  // One after the other, so that the times are those of one caller.
  for (const [index, definition] of quickstartFunctions.entries()) {
    const driver = drivers[index]
    rows.push(
      driver?.status === 'fulfilled'
        ? await check(thaw, definition, driver.value, signal)
        : { definition, driver: '-', calls: [], right: false, error: asThawError(driver?.reason) },
    )
  }
  const right = rows.every((row) => row.right)
  output.result({ url: thaw.url, ok: right, functions: rows.map(rowJson) }, () => resultText(rows))
  return right
}

/** Resolves with the driver of the version. */
async function deployExample(thaw: Thaw, definition: QuickstartFunction, output: Output, signal: AbortSignal): Promise<string> {
  const shown = output.json ? {} : { onLog: (line: string) => output.note(`  ${definition.name}: ${line}`) }
  return (await deployAndFollow(thaw, await inputOf(definition), { ...shown, signal })).driver
}

async function check(thaw: Thaw, definition: QuickstartFunction, driver: string, signal: AbortSignal): Promise<Row> {
  const calls: Call[] = []
  try {
    for (let number = 0; number < 2; number++) calls.push(await call(thaw, definition, signal))
  } catch (error) {
    signal.throwIfAborted()
    return { definition, driver, calls, right: false, error: asThawError(error) }
  }
  const right = calls.every(({ answer }) => isDeepStrictEqual(answer, definition.expected))
  return { definition, driver, calls, right, error: null }
}

function asThawError(error: unknown): ThawError {
  if (error instanceof ThawError) return error
  return new ThawError('internal', error instanceof Error ? error.message : String(error), { cause: error })
}

function rowJson({ definition, driver, calls, right, error }: Row): object {
  const { name, runtime } = definition
  return { name, runtime, driver, right, calls, error: error === null ? null : bodyOf(error) }
}

function resultText(rows: Row[]): string {
  const overview = table(
    ['FUNCTION', 'RUNTIME', 'DRIVER', 'ANSWER', 'BOOT', '1ST CALL', '2ND CALL'],
    rows.map((row) => [
      row.definition.name,
      row.definition.runtime,
      row.driver,
      answerText(row),
      row.calls.map((each) => each.boot_method ?? '?').join(', ') || '-',
      ...[row.calls[0], row.calls[1]].map((each) => (each === undefined ? '-' : milliseconds(each.duration_ms))),
    ]),
  )
  return [overview, ...rows.filter((row) => !row.right).map(explanation)].join('\n\n')
}

const longestAnswer = 56

function answerText({ definition, calls, right, error }: Row): string {
  if (error !== null) return `failed: ${error.code}`
  const answer = calls.at(-1)?.answer
  const text =
    definition.streams && Array.isArray(answer) ? `${answer.length} lines, last ${JSON.stringify(answer.at(-1))}` : JSON.stringify(answer)
  return `${right ? '' : 'WRONG '}${text.length > longestAnswer ? `${text.slice(0, longestAnswer - 1)}…` : text}`
}

function explanation({ definition, calls, error }: Row): string {
  if (error === null) {
    const wrong = calls.map(({ answer }) => answer).find((answer) => !isDeepStrictEqual(answer, definition.expected))
    return `${definition.name} answered ${JSON.stringify(wrong)}\n  expected: ${JSON.stringify(definition.expected)}`
  }
  return `${definition.name}: ${error.message}\n  fix: ${namedFix(error.fix, { about: { function: definition.name } })}`
}
