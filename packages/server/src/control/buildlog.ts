import { EventEmitter } from 'node:events'
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'

const maxBytes = 4 * 1024 * 1024
const tailLines = 60

/** The log of one build: kept in a file, bounded, and followed by those who wait for it. */
export class BuildLog {
  readonly #path: string
  readonly #fd: number
  readonly #lines: string[] = []
  readonly #events = new EventEmitter()
  #bytes = 0
  #closed = false

  constructor(path: string) {
    this.#path = path
    this.#fd = openSync(path, 'w', 0o600)
    this.#events.setMaxListeners(0)
  }

  line(text: string): void {
    if (this.#closed || this.#bytes > maxBytes) return
    const line = `${text}\n`
    this.#bytes += Buffer.byteLength(line)
    writeSync(this.#fd, this.#bytes > maxBytes ? '… (the log is too long, the rest is left out)\n' : line)
    this.#lines.push(text)
    if (this.#lines.length > tailLines) this.#lines.shift()
    this.#events.emit('line', line)
  }

  /** The last lines, for error details. */
  tail(): string {
    return this.#lines.join('\n')
  }

  /** What is there already, then each line as it comes; `onEnd` when the build is over. Returns how to stop. */
  follow(onText: (text: string) => void, onEnd: () => void): () => void {
    const soFar = readFileSync(this.#path, 'utf8')
    if (soFar !== '') onText(soFar)
    if (this.#closed) {
      onEnd()
      return () => {}
    }
    this.#events.on('line', onText).once('end', onEnd)
    return () => {
      this.#events.off('line', onText).off('end', onEnd)
    }
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    closeSync(this.#fd)
    this.#events.emit('end')
  }
}

/** The build logs of a server: one file for each version, for as long as the version exists. */
export class BuildLogs {
  readonly #dir: string
  readonly #open = new Map<string, BuildLog>()

  constructor(dataDir: string) {
    this.#dir = join(dataDir, 'build-logs')
    mkdirSync(this.#dir, { recursive: true, mode: 0o700 })
  }

  open(versionId: string): BuildLog {
    const log = new BuildLog(this.#path(versionId))
    this.#open.set(versionId, log)
    return log
  }

  close(versionId: string): void {
    this.#open.get(versionId)?.close()
    this.#open.delete(versionId)
  }

  /** The log of a build that is running, or undefined. */
  running(versionId: string): BuildLog | undefined {
    return this.#open.get(versionId)
  }

  read(versionId: string): string {
    return existsSync(this.#path(versionId)) ? readFileSync(this.#path(versionId), 'utf8') : ''
  }

  remove(versionId: string): void {
    this.close(versionId)
    rmSync(this.#path(versionId), { force: true })
  }

  #path(versionId: string): string {
    return join(this.#dir, `${versionId}.log`)
  }
}
