import { readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import type { FunctionInput } from '@thaw/sdk'
import { UsageError } from './errors.ts'
import { type Guess, guessFromHandler, guessFunction } from './guess.ts'
import { checkSettings } from './settings.ts'

/** The flags of `thaw deploy`; each overrides what thaw.json says. */
export interface DeployFlags {
  name?: string
  runtime?: string
  handler?: string
  contract?: string
  memory?: number
  timeout?: number
  env?: string[]
  secret?: string[]
  image?: string
  driver?: string
  concurrency?: number
  minInstances?: number
  maxInstances?: number
  network?: string
}

export interface DeployInput {
  input: FunctionInput
  /** What was guessed and why, or null when everything was said. */
  guess: Guessed | null
}

/** The fields that were guessed; those that somebody said are not among them. */
export type Guessed = Partial<Pick<Guess, 'runtime' | 'contract' | 'handler'>> & Pick<Guess, 'reasons'>

/** Flags over thaw.json over what the folder looks like. What does not fit is refused here, and what remains by the server. */
export async function deployInput(directory: string, flags: DeployFlags): Promise<DeployInput> {
  const path = join(directory, 'thaw.json')
  const file = await readConfigFile(path)
  checkSettings(file, path, (key) => key)
  const name = flags.name ?? file.name ?? nameOf(directory)
  const said = definedOf({ ...file, ...definedOf({ runtime: flags.runtime, handler: flags.handler, contract: flags.contract }) })
  const guess = await guessFor(directory, said)
  const settings = {
    ...(guess === null ? {} : definedOf({ runtime: guess.runtime, contract: guess.contract, handler: guess.handler })),
    ...said,
    ...definedOf({
      name,
      timeout_ms: flags.timeout,
      image: flags.image,
      driver: flags.driver,
      network: flags.network,
      env: merged(file.env, environment(flags.env ?? [])),
      secrets: secretsOf(file.secrets, flags.secret),
      resources: merged(file.resources, { memory_mib: flags.memory }),
      scaling: merged(file.scaling, {
        concurrency: flags.concurrency,
        min_instances: flags.minInstances,
        max_instances: flags.maxInstances,
      }),
    }),
  }
  checkSettings(settings, 'What was asked for does not fit', flagOf)
  return { input: { ...settings, code: { dir: directory } } as unknown as FunctionInput, guess }
}

/** The flag behind a field, where it has one: what the user wrote. */
function flagOf(key: string): string {
  const [field = '', part] = key.split('.')
  if (field === 'env' && part !== undefined) return `--env ${part}`
  if (['name', 'runtime', 'handler', 'contract', 'image', 'driver', 'network'].includes(field)) return `--${field}`
  const flags: Record<string, string> = { timeout_ms: '--timeout', 'resources.memory_mib': '--memory' }
  return flags[key] ?? (field === 'scaling' && part !== undefined ? `--${part.replaceAll('_', '-')}` : key)
}

/** Guesses what was not said, within what was. With a runtime that was said, finding nothing is no failure: the server has defaults. */
async function guessFor(directory: string, said: Record<string, unknown>): Promise<Guessed | null> {
  const whole = await wholeGuess(directory, said)
  if (whole === null) return null
  const { reasons, ...fields } = whole
  const guessed = definedOf(Object.fromEntries(Object.entries(fields).filter(([key]) => said[key] === undefined)))
  return Object.keys(guessed).length === 0 ? null : { ...guessed, reasons }
}

async function wholeGuess(directory: string, said: Record<string, unknown>): Promise<Guessed | null> {
  const { runtime, contract, handler, command } = said
  if (runtime !== undefined && command !== undefined) return null
  if (runtime !== undefined && contract !== undefined && handler !== undefined) return null
  if (typeof handler === 'string' && command === undefined && contract !== 'custom') {
    return guessFromHandler(directory, handler, { runtime: textOf(runtime), contract: textOf(contract) })
  }
  const guess = typeof runtime === 'string' ? await guessFunction(directory, runtime).catch(() => null) : await guessFunction(directory)
  if (guess === null) return null
  const { main, ...rest } = guess
  // The program that runs was said.
  if (command !== undefined) return { runtime: guess.runtime, contract: 'stdio', reasons: guess.reasons }
  if (contract === undefined || contract === guess.contract) return rest
  if (contract === 'stdio' || contract === 'http') return { ...rest, contract: guess.contract, handler: main }
  return { ...rest, handler: undefined }
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined
}

async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch {
    return {}
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new UsageError(`${path} is not JSON: ${error instanceof Error ? error.message : String(error)}`, 'Repair the file.')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new UsageError(`${path} must hold one JSON object.`)
  if ('code' in value) throw new UsageError(`${path} must not hold code: the folder is the code.`, 'Remove the key code.')
  return value as Record<string, unknown>
}

/** `K=V`, or `K` to take the value of this process. */
export function environment(pairs: string[]): Record<string, string> {
  const env: Record<string, string> = {}
  for (const pair of pairs) {
    const equals = pair.indexOf('=')
    const name = equals < 0 ? pair : pair.slice(0, equals)
    const value = equals < 0 ? process.env[name] : pair.slice(equals + 1)
    if (name === '' || value === undefined)
      throw new UsageError(`--env ${pair} has no value.`, `Write --env ${name || 'NAME'}=VALUE, or set ${name || 'it'} here.`)
    env[name] = value
  }
  return env
}

/** `NAME`, `NAME=VAR` or `NAME=/run/secrets/FILE`, each in the place of what the file gives in the same variable or file. */
function secretsOf(base: unknown, flags: string[] | undefined): unknown {
  if (flags === undefined) return base
  const added = flags.map((flag) => {
    const [name = '', env = name] = flag.split(/=(.*)/s, 2)
    if (env.startsWith('/')) return { name, file: env }
    if (!/^[A-Za-z_]\w*$/.test(env))
      throw new UsageError(`--secret ${flag} names no variable.`, `Write --secret ${name || 'NAME'}=VARIABLE, in letters, digits and _.`)
    return { name, env }
  })
  const kept = Array.isArray(base)
    ? base.filter((ref) => !added.some(({ env, file }) => (env === undefined ? file === ref?.file : env === ref?.env)))
    : []
  return [...kept, ...added]
}

function nameOf(directory: string): string {
  const name = basename(resolve(directory))
    .replace(/[^A-Za-z0-9_-]+/g, '-')
    .slice(0, 63)
    .replace(/^[-_]+|[-_]+$/g, '')
  if (name === '') throw new UsageError(`The name of ${directory} is no name for a function.`, 'Give one with --name.')
  return name
}

function merged(base: unknown, over: Record<string, unknown>): unknown {
  const changes = definedOf(over)
  if (Object.keys(changes).length === 0) return base
  return typeof base === 'object' && base !== null ? { ...base, ...changes } : changes
}

function definedOf(object: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined))
}
