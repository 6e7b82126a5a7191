import { setTimeout as pause } from 'node:timers/promises'
import { type FunctionInput, type FunctionItem, type Thaw, ThawError, type VersionItem } from '@thaw/sdk'

export interface DeploymentOptions {
  /** Called with the number of the new version, before it is built. */
  onVersion?: (version: number) => void
  /** Called with each line of the build. Without it, the error of a build that failed carries the end of the log. */
  onLog?: (line: string) => void
  signal?: AbortSignal | undefined
}

const logTailLines = 20
const firstPauseMs = 10
const longestPauseMs = 100
/** How long the end of a log may take to arrive after the deploy has ended. */
const graceMs = 2000

/**
 * Deploys, passes the build log on while the build runs, and resolves with the function when its version is ready. A
 * build that fails leaves nothing behind: the server removes its version, and a function that had no other.
 */
export async function deployAndFollow(thaw: Thaw, input: FunctionInput, options: DeploymentOptions = {}): Promise<FunctionItem> {
  const { signal } = options
  const log = new LogTail(options.onLog)
  const newest = await newestVersion(thaw, input.name, signal)
  const ended = new AbortController()
  const late = new AbortController()
  let timer: NodeJS.Timeout | undefined
  const deploy = thaw.functions.deploy(input, { signal }).finally(() => {
    ended.abort()
    timer = setTimeout(() => late.abort(), graceMs)
  })
  const signals = signal === undefined ? [late.signal] : [late.signal, signal]
  const builds = new Builds(thaw, input.name, newest?.version ?? 0, log, { ...options, signal: AbortSignal.any(signals) })
  // What the log would have said is lost with it; whether the deploy worked is not.
  const following = builds.follow(ended.signal).catch(() => undefined)
  try {
    const item = await deploy
    await following
    await builds.read(item.version).catch(() => undefined)
    return item
  } catch (error) {
    await following
    throw error instanceof ThawError ? withLog(error, log.text, options.onLog !== undefined) : error
  } finally {
    clearTimeout(timer)
    log.end()
  }
}

/** The builds of a function since a version, and their logs. */
class Builds {
  readonly #thaw: Thaw
  readonly #name: string
  readonly #log: LogTail
  readonly #options: DeploymentOptions
  #last: number

  constructor(thaw: Thaw, name: string, last: number, log: LogTail, options: DeploymentOptions) {
    this.#thaw = thaw
    this.#name = name
    this.#last = last
    this.#log = log
    this.#options = options
  }

  /** Looks for the next version and follows its log, until `ended`. The number is known only when the version is there. */
  async follow(ended: AbortSignal): Promise<void> {
    for (let waitMs = firstPauseMs; !ended.aborted; waitMs = Math.min(waitMs * 2, longestPauseMs)) {
      await pause(waitMs, undefined, { signal: ended }).catch(() => undefined)
      const version = await newestVersion(this.#thaw, this.#name, this.#options.signal)
      if (version === null || version.version <= this.#last) continue
      this.#begin(version.version)
      while (!(await this.#readWhole(version.version, true)) && !ended.aborted) await pause(firstPauseMs)
    }
  }

  /** Passes on the log of a version that was built before anybody saw it. */
  async read(version: number): Promise<void> {
    if (version <= this.#last) return
    this.#begin(version)
    await this.#readWhole(version, false)
  }

  #begin(version: number): void {
    this.#last = version
    this.#log.begin()
    this.#options.onVersion?.(version)
  }

  /** Answers false when the log ended before its build: the version waits for its turn. */
  async #readWhole(number: number, follow: boolean): Promise<boolean> {
    const { signal } = this.#options
    this.#log.restart()
    for await (const text of this.#thaw.functions.buildLog(this.#name, number, { follow, signal })) this.#log.add(text)
    return (await this.#thaw.functions.version(this.#name, number, { signal })).state !== 'building'
  }
}

async function newestVersion(thaw: Thaw, name: string, signal: AbortSignal | undefined): Promise<VersionItem | null> {
  try {
    const { items } = await thaw.functions.versions(name, { limit: 1, signal }).page()
    return items[0] ?? null
  } catch (error) {
    if (error instanceof ThawError && error.code === 'function_not_found') return null
    throw error
  }
}

/** An error carries the end of the log unless that was shown already. */
function withLog(error: ThawError, log: string, shown: boolean): ThawError {
  if (log === '') return error
  const { log: _log, ...rest } = (error.details ?? {}) as Record<string, unknown>
  const result = new ThawError(error.code, error.message, { fix: error.fix, details: shown ? rest : { ...rest, log }, cause: error })
  result.requestId = error.requestId
  return result
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

  /** Another log comes. */
  begin(): void {
    this.end()
    this.#taken = 0
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
