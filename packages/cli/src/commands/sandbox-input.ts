import { driverKinds, networkModes, type Restore, type SandboxCreate, sandboxNameSchema } from '@thaw/sdk'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { wholeNumber } from '../context.ts'
import { environment } from '../deploy-input.ts'
import { UsageError } from '../errors.ts'
import { durationMs, lifetimeMs, memoryMib } from '../units.ts'

/** What a sandbox may have for itself, wherever it comes from. */
export interface OwnFlags {
  name?: string
  env?: string[]
  port?: (number | 'all')[]
  timeout?: number
  onTimeout?: 'stop' | 'pause'
  idle?: number
  metadata?: string[]
}

/** What `sandbox create` and `run` say about the sandbox that they make. */
export interface SandboxFlags extends OwnFlags {
  driver?: (typeof driverKinds)[number]
  memory?: number
  cpus?: number
  pids?: number
  disk?: number
  gpus?: number | 'all'
  network?: (typeof networkModes)[number]
  hibernate?: number
}

export function withSandboxFlags(command: Command): Command {
  return withOwnFlags(command)
    .option('--hibernate <duration>', 'put its memory on disk once it was paused for so long (default: as the server says)', longDurationMs)
    .addOption(new Option('--driver <kind>', 'default: the strongest that the server can use').choices(driverKinds))
    .option('--memory <amount>', 'MiB, or with unit: 512MiB, 2GiB (default: 512MiB)', memoryMib)
    .option('--cpus <n>', 'CPUs, such as 0.5 or 2 (default: 1)', cpuCount)
    .option('--pids <n>', 'most processes at a time (default: 512)', wholeNumber(8, 32_768))
    .option('--disk <amount>', 'size of what it may write: 512MiB, 10GiB', memoryMib)
    .option('--gpus <n>', 'NVIDIA GPUs, or all', gpuCount)
    .addOption(new Option('--network <mode>', 'what it can reach (default: egress)').choices(networkModes))
}

export function withOwnFlags(command: Command): Command {
  return command
    .option('--name <name>', 'unique; a sandbox that has it already is used as it is', sandboxName)
    .option('-e, --env <name=value>', 'environment of every command; can be repeated; without =value: the value here', collect)
    .option('-p, --port <port>', 'port that URLs lead to, or all; can be repeated', collectPorts)
    .option('--timeout <duration>', 'end it after so long: 10m, 2h, 7d; default: it lives until it is removed', longDurationMs)
    .addOption(new Option('--on-timeout <what>', 'what happens then (default: stop)').choices(['stop', 'pause']))
    .option('--idle <duration>', 'pause it after so long without a call: 5m; the next call wakes it', longDurationMs)
    .option('--metadata <key=value>', 'what to find it by; can be repeated', collect)
}

export function sandboxCreate(image: string | undefined, flags: SandboxFlags, command: string[]): SandboxCreate {
  const { driver, network, hibernate } = flags
  return given({
    ...ownOf(flags),
    image,
    driver,
    network,
    hibernate_ms: hibernate,
    resources: resourcesOf(flags),
    command: command.length === 0 ? undefined : command,
  }) as SandboxCreate
}

/** Fields that a clone may have for itself, too. */
export function ownOf({ name, env, port, timeout, onTimeout, idle, metadata }: OwnFlags): Restore {
  return given({
    name,
    on_timeout: onTimeout,
    timeout_ms: timeout,
    idle_ms: idle,
    env: env === undefined ? undefined : environment(env),
    ports: port === undefined ? undefined : portsOf(port),
    metadata: metadata === undefined ? undefined : pairs(metadata, '--metadata'),
  })
}

export function resourcesOf({ memory, cpus, pids, disk, gpus }: SandboxFlags): SandboxCreate['resources'] {
  const resources = given({ memory_mib: memory, cpus, pids, disk_mib: disk, gpus })
  return Object.keys(resources).length === 0 ? undefined : resources
}

/** `key=value` flags as an object. */
export function pairs(texts: string[], flag: string): Record<string, string> {
  return Object.fromEntries(
    texts.map((text) => {
      const equals = text.indexOf('=')
      if (equals < 1) throw new UsageError(`${flag} ${text} has no value.`, `Write ${flag} ${text || 'KEY'}=VALUE.`)
      return [text.slice(0, equals), text.slice(equals + 1)]
    }),
  )
}

export function collect(text: string, before: string[] | undefined): string[] {
  return [...(before ?? []), text]
}

/** Parser of ports that are given one by one. */
export function collectPorts(text: string, before: (number | 'all')[] | undefined): (number | 'all')[] {
  return [...(before ?? []), text === 'all' ? text : portNumber(text)]
}

export function portNumber(text: string): number {
  return wholeNumber(1, 65_535)(text)
}

export function portsOf(ports: (number | 'all')[]): number[] | 'all' {
  return ports.includes('all') ? 'all' : [...new Set(ports as number[])]
}

/** `30s` as well as `7d`. */
export function longDurationMs(text: string): number {
  return /[dw]$/i.test(text) ? lifetimeMs(text) : durationMs(text)
}

function sandboxName(text: string): string {
  if (sandboxNameSchema.safeParse(text).success) return text
  throw new InvalidArgumentError('Use 1 to 63 lower-case letters, digits and -, starting and ending with a letter or digit.')
}

function cpuCount(text: string): number {
  const value = /^\d+(?:\.\d+)?$/.test(text) ? Number(text) : Number.NaN
  if (!(value >= 0.01 && value <= 256)) throw new InvalidArgumentError('Give a number from 0.01 to 256.')
  return value
}

function gpuCount(text: string): number | 'all' {
  return text === 'all' ? text : wholeNumber(1, 64)(text)
}

/** Without what was not said. */
export function given(fields: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}
