import { readFile } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import type { FunctionInput } from '@thaw/sdk'
import { UsageError } from './errors.ts'
import { type Guess, guessFunction } from './guess.ts'

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
  guess: Guess | null
}

/** Flags over thaw.json over what the folder looks like. The server validates the result. */
export async function deployInput(directory: string, flags: DeployFlags): Promise<DeployInput> {
  const file = await readConfigFile(join(directory, 'thaw.json'))
  const said = definedOf({ ...file, ...definedOf({ runtime: flags.runtime, handler: flags.handler, contract: flags.contract }) })
  const guess =
    said.runtime === undefined || (said.handler === undefined && said.command === undefined) ? await guessFor(directory, said) : null
  const input = {
    ...(guess === null ? {} : definedOf({ runtime: guess.runtime, contract: guess.contract, handler: guess.handler })),
    ...said,
    ...definedOf({
      name: flags.name ?? file.name ?? nameOf(directory),
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
    code: { dir: directory },
  }
  // The server has the schema, and its answer names each field that does not fit.
  return { input: input as unknown as FunctionInput, guess }
}

/** Guesses what was not said, within what was. With a runtime that was said, finding nothing is no failure: the server has defaults. */
async function guessFor(directory: string, said: Record<string, unknown>): Promise<Guess | null> {
  const guess =
    typeof said.runtime === 'string' ? await guessFunction(directory, said.runtime).catch(() => null) : await guessFunction(directory)
  if (guess === null || said.contract === undefined || said.contract === guess.contract) return guess
  if (said.contract === 'stdio') return { ...guess, contract: 'stdio', handler: guess.main }
  return { ...guess, contract: 'handler', handler: undefined }
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
function environment(pairs: string[]): Record<string, string> {
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

/** `NAME` or `NAME=VAR`, each in the place of what the file gives in the same variable. */
function secretsOf(base: unknown, flags: string[] | undefined): unknown {
  if (flags === undefined) return base
  const added = flags.map((flag) => {
    const [name = '', env = name] = flag.split(/=(.*)/s, 2)
    if (!/^[A-Za-z_]\w*$/.test(env))
      throw new UsageError(`--secret ${flag} names no variable.`, `Write --secret ${name || 'NAME'}=VARIABLE, in letters, digits and _.`)
    return { name, env }
  })
  const kept = Array.isArray(base) ? base.filter((ref) => !added.some(({ env }) => env === ref?.env)) : []
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
