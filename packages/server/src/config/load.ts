import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { defaultConfig, thisMachine } from './defaults.ts'
import { type Config, configLeaves, configSchema, type Leaf } from './schema.ts'
import { type ConfigEntry, type Origin, redactValue } from './show.ts'
import { nearestKey } from './suggest.ts'

export interface LoadOptions {
  /** Dotted keys (`limits.queue_length`) or nested objects; undefined values are passed over. `config_file` names the file. */
  flags?: Record<string, unknown>
  env?: NodeJS.ProcessEnv
  /** Relative paths start here, and `thaw.config.json` is looked for here. */
  cwd?: string
}

export interface LoadedConfig {
  /** Frozen, down to its leaves. */
  config: Config
  entries: ConfigEntry[]
}

/** A value, where it came from, and what the user calls it there. */
interface Setting {
  value: unknown
  origin: Origin
  source: string
}

/** Variables that begin with THAW_ and mean something else: to the client, the installer, or the choice of the file. */
const reservedVariables = new Set(['THAW_URL', 'THAW_API_KEY', 'THAW_NO_INSTALL', 'THAW_CONFIG'])

const pathKeys = ['data_dir', 'images_dir', 'builds.ca_file', 'registries.auth_file', 'docker.cert_dir']

/**
 * Reads the configuration: defaults < file < environment (`THAW_LIMITS__QUEUE_LENGTH`) < flags. `builds.env` is merged
 * name by name; every other key is replaced. Throws `config_invalid`, naming the key, its origin and what is expected.
 */
export function loadConfig(options: LoadOptions = {}): LoadedConfig {
  const env = options.env ?? process.env
  const cwd = options.cwd ?? process.cwd()
  const { config_file: fileFlag, ...flags } = options.flags ?? {}

  const settings = new Map<string, Setting>()
  const add = (layer: Map<string, Setting>) => {
    for (const [key, setting] of layer) settings.set(key, setting)
  }
  add(fromObject({ ...defaultConfig(env, thisMachine(env)) }, 'default', () => 'the defaults'))
  add(fromFile(fileFlag, env, cwd))
  add(fromEnvironment(env))
  add(fromObject(flags, 'flag', (key) => `the flag ${key}`))

  for (const key of pathKeys) {
    const setting = settings.get(key)
    if (typeof setting?.value === 'string' && setting.value !== '') setting.value = resolve(cwd, setting.value)
  }
  const config = validate(settings)
  return { config: deepFreeze(config), entries: entriesOf(config, settings) }
}

function fromFile(flag: unknown, env: NodeJS.ProcessEnv, cwd: string): Map<string, Setting> {
  const named = flag ?? (env.THAW_CONFIG || undefined)
  if (named !== undefined && (typeof named !== 'string' || named === '')) {
    throw new ThawError('config_invalid', 'The flag config_file must be a path.')
  }
  const path = resolve(cwd, named ?? 'thaw.config.json')
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (cause) {
    if (named === undefined && (cause as NodeJS.ErrnoException).code === 'ENOENT') return new Map()
    throw new ThawError('config_invalid', `The configuration file ${path} cannot be read: ${messageOf(cause)}`, { cause })
  }
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new ThawError('config_invalid', `The configuration file ${path} is not JSON: ${messageOf(cause)}`, { cause })
  }
  if (!isPlainObject(value)) throw new ThawError('config_invalid', `The configuration file ${path} must hold one JSON object.`)
  return fromObject(value, 'file', () => path)
}

function fromEnvironment(env: NodeJS.ProcessEnv): Map<string, Setting> {
  const layer = new Map<string, Setting>()
  for (const [variable, text] of Object.entries(env)) {
    if (!variable.startsWith('THAW_') || reservedVariables.has(variable) || text === undefined) continue
    const source = `the environment variable ${variable}`
    const parts = variable.slice('THAW_'.length).split('__')
    // Names in builds.env are the user's own: their case matters, and they may hold two underscores.
    if (parts.length > 2 && parts[0]?.toLowerCase() === 'builds' && parts[1]?.toLowerCase() === 'env') {
      put(layer, `builds.env.${parts.slice(2).join('__')}`, { value: text, origin: 'environment', source })
      continue
    }
    const key = parts.join('.').toLowerCase()
    if (!configLeaves.has(key)) throw unknownKey(key, source, (known) => `THAW_${known.replaceAll('.', '__').toUpperCase()}`)
    put(layer, key, { value: text, origin: 'environment', source })
  }
  return layer
}

/** Nested objects and dotted keys, mixed as they come, as settings of leaves. */
function fromObject(object: Record<string, unknown>, origin: Origin, source: (key: string) => string): Map<string, Setting> {
  const layer = new Map<string, Setting>()
  const walk = (node: Record<string, unknown>, prefix: string) => {
    for (const [name, value] of Object.entries(node)) {
      if (value === undefined) continue
      const key = `${prefix}${name}`
      if (configLeaves.has(key) || key.startsWith('builds.env.')) put(layer, key, { value, origin, source: source(key) })
      else if (isGroup(key) && isPlainObject(value)) walk(value, `${key}.`)
      else if (isGroup(key)) throw new ThawError('config_invalid', `${key} (from ${source(key)}) must be an object of keys.`)
      else throw unknownKey(key, source(key), (known) => known)
    }
  }
  walk(object, '')
  return layer
}

/** Adds a setting: text becomes what its leaf holds, and `builds.env` is taken apart into its names. */
function put(layer: Map<string, Setting>, key: string, setting: Setting): void {
  // The schema drops this name without a word; nothing that was asked for may be passed over silently.
  if (key === 'builds.env.__proto__') throw new ThawError('config_invalid', `${key} (from ${setting.source}) is not a name of a variable.`)
  const leaf = configLeaves.get(key)
  const typed = setting.origin === 'environment' || setting.origin === 'flag'
  const value = leaf !== undefined && typed && typeof setting.value === 'string' ? fromText(leaf, setting.value) : setting.value
  if (leaf?.kind !== 'names') {
    layer.set(key, { ...setting, value })
    return
  }
  if (!isPlainObject(value)) throw new ThawError('config_invalid', `${key} (from ${setting.source}) must be ${leaf.meta.expected}.`)
  for (const [name, part] of Object.entries(value)) put(layer, `${key}.${name}`, { ...setting, value: part })
}

/** What cannot be read as the leaf's kind stays text, and is then refused by the schema under its own name. */
function fromText(leaf: Leaf, text: string): unknown {
  switch (leaf.kind) {
    case 'number':
      return /^-?\d+$/.test(text.trim()) ? Number(text) : text
    case 'boolean':
      return text === 'true' ? true : text === 'false' ? false : text
    case 'nullable_number':
      return text === '' ? null : fromText({ ...leaf, kind: 'number' }, text)
    case 'nullable':
      return text === '' ? null : text
    case 'list':
      return text
        .split(',')
        .map((part) => part.trim())
        .filter((part) => part !== '')
    case 'names':
      try {
        return JSON.parse(text)
      } catch {
        return text
      }
    case 'text':
      return text
  }
}

function validate(settings: Map<string, Setting>): Config {
  const raw: Record<string, unknown> = {}
  for (const [key, setting] of settings) assign(raw, pathOf(key), setting.value)
  const builds = raw.builds as Record<string, unknown>
  builds.env ??= {}
  const result = configSchema.safeParse(raw)
  if (result.success) return result.data

  const problems = result.error.issues.map((issue) => {
    const key = issue.path.map(String).join('.')
    const leafKey = key.startsWith('builds.env') ? 'builds.env' : issue.path.slice(0, 2).map(String).join('.')
    const leaf = configLeaves.get(leafKey) ?? configLeaves.get(String(issue.path[0]))
    const setting = settings.get(key) ?? settings.get(leaf?.key ?? '')
    const expected = leaf?.meta.expected || issue.message
    // Values in builds.env may be secret; the name says enough.
    const shown = leafKey === 'builds.env' ? '' : `, not ${JSON.stringify(redactValue(key, setting?.value))?.slice(0, 100)}`
    return { key, origin: setting?.origin, expected, text: `${key} (from ${setting?.source}) must be ${expected}${shown}` }
  })
  throw new ThawError('config_invalid', `The configuration is not valid: ${problems.map((problem) => problem.text).join('; ')}.`, {
    details: { problems: problems.map(({ key, origin, expected }) => ({ key, origin, expected })) },
  })
}

function entriesOf(config: Config, settings: Map<string, Setting>): ConfigEntry[] {
  return [...configLeaves.keys()].flatMap((key): ConfigEntry[] => {
    const names = key === 'builds.env' ? Object.keys(config.builds.env).map((name) => `${key}.${name}`) : []
    const keys = names.length > 0 ? names : [key]
    return keys.map((shown) => ({
      key: shown,
      value: redactValue(shown, valueAt(config, pathOf(shown))),
      origin: settings.get(shown)?.origin ?? 'default',
    }))
  })
}

function unknownKey(key: string, source: string, spell: (known: string) => string): ThawError {
  const nearest = nearestKey(key, configLeaves.keys())
  const suggestion = nearest === null ? '' : `; did you mean ${spell(nearest)}?`
  const group = isGroup(key) ? ' by itself, only a group of keys' : ''
  return new ThawError('config_invalid', `There is no configuration key ${key}${group} (from ${source})${suggestion || '.'}`, {
    details: { key, ...(nearest === null ? {} : { nearest }) },
  })
}

function isGroup(key: string): boolean {
  return [...configLeaves.keys()].some((known) => known.startsWith(`${key}.`))
}

/** `builds.env.NAME` has exactly three parts, whatever NAME holds. */
function pathOf(key: string): string[] {
  return key.startsWith('builds.env.') ? ['builds', 'env', key.slice('builds.env.'.length)] : key.split('.')
}

function assign(target: Record<string, unknown>, path: string[], value: unknown): void {
  let node = target
  for (const name of path.slice(0, -1)) {
    if (!isPlainObject(node[name])) node[name] = {}
    node = node[name] as Record<string, unknown>
  }
  node[path.at(-1) ?? ''] = value
}

function valueAt(node: unknown, path: string[]): unknown {
  return path.reduce<unknown>((value, name) => (isPlainObject(value) ? value[name] : undefined), node)
}

function isPlainObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function deepFreeze<Value>(value: Value): Value {
  if (typeof value === 'object' && value !== null) {
    Object.freeze(value)
    for (const part of Object.values(value)) deepFreeze(part)
  }
  return value
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
