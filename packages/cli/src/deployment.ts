import { setTimeout as pause } from 'node:timers/promises'
import { type FunctionInput, isErrorCode, type Thaw, ThawError, type VersionItem } from '@thaw/sdk'

export interface DeploymentOptions {
  /** Called with the number of the new version, before it is built. */
  onVersion?: (version: number) => void
  /** Called with each line of the build. */
  onLog?: (line: string) => void
  signal?: AbortSignal | undefined
}

const logTailLines = 20
const firstPauseMs = 20
const longestPauseMs = 1000

/** Deploys, passes the build log on and resolves with the version when it is ready. Throws what made the build fail. */
export async function deployAndFollow(thaw: Thaw, input: FunctionInput, options: DeploymentOptions = {}): Promise<VersionItem> {
  const { signal } = options
  const number = await startBuild(thaw, input, signal)
  options.onVersion?.(number)
  const log = await followLog(thaw, input.name, number, options)
  const version = await builtVersion(thaw, input.name, number, signal)
  if (version.state === 'ready') return version
  const { code, message } = version.error ?? { code: 'internal', message: 'The build failed without saying why.' }
  throw new ThawError(isErrorCode(code) ? code : 'internal', message, { details: { version: number, log: log.join('\n') } })
}

/** Number of the version that this deploy made. */
async function startBuild(thaw: Thaw, input: FunctionInput, signal: AbortSignal | undefined): Promise<number> {
  const item = await thaw.functions.deploy(input, { wait: false, signal })
  if (item.state === 'building') return item.version
  // An item speaks of the active version, which goes on serving while the new one is built.
  const { items } = await thaw.functions.versions(input.name, { limit: 1, signal }).page()
  return items[0]?.version ?? item.version
}

/** Follows the log to its end and gives back its last lines. */
async function followLog(thaw: Thaw, name: string, version: number, options: DeploymentOptions): Promise<string[]> {
  const tail: string[] = []
  const take = (line: string) => {
    options.onLog?.(line)
    tail.push(line)
    if (tail.length > logTailLines) tail.shift()
  }
  let held = ''
  for await (const text of thaw.functions.buildLog(name, version, { follow: true, signal: options.signal })) {
    const lines = (held + text).split('\n')
    held = lines.pop() ?? ''
    for (const line of lines) take(line)
  }
  if (held !== '') take(held)
  return tail
}

/** The log may end a moment before the state changes. */
async function builtVersion(thaw: Thaw, name: string, number: number, signal: AbortSignal | undefined): Promise<VersionItem> {
  for (let waitMs = firstPauseMs; ; waitMs = Math.min(waitMs * 2, longestPauseMs)) {
    const version = await thaw.functions.version(name, number, { signal })
    if (version.state !== 'building') return version
    await pause(waitMs, undefined, signal === undefined ? {} : { signal })
  }
}
