import { functionConfigSchema, functionNameSchema } from '@thaw/sdk'
import { UsageError } from './errors.ts'
import { nearestKey } from './nearest.ts'

/** What thaw.json may hold: the body of a deploy without its code, each key optional. */
const settingsSchema = functionConfigSchema.partial().extend({ name: functionNameSchema.optional() })

const groups = functionConfigSchema.pick({ resources: true, scaling: true, retry: true }).parse({})
const knownKeys = [
  ...Object.keys(settingsSchema.shape),
  ...Object.entries(groups).flatMap(([group, values]) => Object.keys(values).map((key) => `${group}.${key}`)),
]

/** A part of what the schema of zod says. */
interface Issue {
  readonly code?: string | undefined
  readonly path: readonly PropertyKey[]
  readonly message: string
}

/**
 * Refuses settings that do not fit, before anything is sent. `nameOf` says what the user calls a field, and its first
 * argument is the dotted key; `where` is what holds them.
 */
export function checkSettings(settings: Record<string, unknown>, where: string, nameOf: (key: string) => string): void {
  const parsed = settingsSchema.safeParse(settings)
  if (parsed.success) return
  const problems = parsed.error.issues.flatMap((issue) => problemsOf(issue, nameOf))
  const [only, ...others] = problems
  const message =
    others.length === 0 && only !== undefined ? `${where}: ${only}` : `${where}:\n${problems.map((text) => `  ${text}`).join('\n')}`
  throw new UsageError(message, 'Repair what is named; docs/functions.md and `thaw deploy --help` have what fits.')
}

function problemsOf(issue: Issue, nameOf: (key: string) => string): string[] {
  const key = issue.path.map(String).join('.')
  if (issue.code === 'unrecognized_keys') {
    const { keys } = issue as Issue & { keys: readonly string[] }
    return keys.map((name) => {
      const full = key === '' ? name : `${key}.${name}`
      const nearest = nearestKey(full, knownKeys)
      return `there is no key ${full}${nearest === null ? `; there are ${knownKeys.join(', ')}.` : `; did you mean ${nearest}?`}`
    })
  }
  // What is wrong with a name in a record is told one level further down.
  const rules = issue.code === 'invalid_key' ? ((issue as Issue & { issues?: readonly Issue[] }).issues ?? []) : []
  const what = rules.length === 0 ? issue.message : rules.map((rule) => rule.message).join(', ')
  return [`${nameOf(key)}: ${what}.`]
}
