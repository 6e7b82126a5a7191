import { setTimeout as pause } from 'node:timers/promises'
import { type FunctionInput, isErrorCode, type Thaw, ThawError, type VersionItem } from '@thaw/sdk'

export interface DeploymentOptions {
  /** Called with the number of the new version, before it is built. */
  onVersion?: (version: number) => void
  /** Called with each line of the build. Without it, the error of a build that failed carries the end of the log. */
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
  const log = new LogTail(options.onLog)
  const version = await builtVersion(thaw, input.name, number, log, signal)
  if (version.state === 'ready') return version
  const { code, message } = version.error ?? { code: 'internal', message: 'The build failed without saying why.' }
  throw new ThawError(isErrorCode(code) ? code : 'internal', message, {
    details: options.onLog === undefined ? { version: number, log: log.text } : { version: number },
  })
}

/** Number of the version that this deploy made. */
async function startBuild(thaw: Thaw, input: FunctionInput, signal: AbortSignal | undefined): Promise<number> {
  const item = await thaw.functions.deploy(input, { wait: false, signal })
  if (item.state === 'building') return item.version
  // An item speaks of the active version, which goes on serving while the new one is built.
  const { items } = await thaw.functions.versions(input.name, { limit: 1, signal }).page()
  return items[0]?.version ?? item.version
}

/** Follows the log until the version is built. A log may end too early: before its build begins, or when a server restarts. */
async function builtVersion(thaw: Thaw, name: string, number: number, log: LogTail, signal: AbortSignal | undefined): Promise<VersionItem> {
  for (let waitMs = firstPauseMs; ; waitMs = Math.min(waitMs * 2, longestPauseMs)) {
    log.restart()
    for await (const text of thaw.functions.buildLog(name, number, { follow: true, signal })) log.add(text)
    const version = await thaw.functions.version(name, number, { signal })
    if (version.state !== 'building') {
      log.end()
      return version
    }
    await pause(waitMs, undefined, signal === undefined ? {} : { signal })
  }
}

/** Passes each line of a log on once, however often the log is read from its start, and keeps the last ones. */
class LogTail {
  readonly #onLine: ((line: string) => void) | undefined
  readonly #tail: string[] = []
  #held = ''
  /** Characters taken so far, and how many of them the reading that runs still has to pass over. */
  #taken = 0
  #known = 0

  constructor(onLine: ((line: string) => void) | undefined) {
    this.#onLine = onLine
  }

  get text(): string {
    return this.#tail.join('\n')
  }

  restart(): void {
    this.#known = this.#taken
  }

  add(text: string): void {
    const fresh = text.slice(this.#known)
    this.#known = Math.max(0, this.#known - text.length)
    this.#taken += fresh.length
    const lines = (this.#held + fresh).split('\n')
    this.#held = lines.pop() ?? ''
    for (const line of lines) this.#take(line)
  }

  end(): void {
    if (this.#held !== '') this.#take(this.#held)
    this.#held = ''
  }

  #take(line: string): void {
    this.#onLine?.(line)
    this.#tail.push(line)
    if (this.#tail.length > logTailLines) this.#tail.shift()
  }
}
