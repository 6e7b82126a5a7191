import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import type { Ended, FromLauncher, Stream, ToLauncher } from './protocol.ts'

export interface Launch {
  program: string
  args: string[]
  /** Default: none. */
  input?: string | undefined
  /** Standard output, standard error, and further ones: both must be named. */
  streams: Stream[]
  /** In a process group of its own, all of which is killed with it. */
  group?: boolean
  /** Killed after this time. */
  timeoutMs?: number
  /** Killed when it aborts. */
  signal?: AbortSignal | undefined
}

/**
 * Starts the programs that sandboxes are made with, in a small process of its own. To start a program, the kernel copies the page
 * tables of whoever starts it, and Node.js waits until the new one runs: milliseconds in a server, and tens of them when the
 * processors are busy, in which no call is answered. One for all drivers of this process; it begins with the first program.
 */
class Launcher {
  #process: ChildProcess | undefined
  #last = 0
  readonly #pending = new Map<number, (ended: Ended) => void>()

  run({ program, args, input, streams, group = false, timeoutMs, signal }: Launch): Promise<Ended> {
    signal?.throwIfAborted()
    const process = this.#open()
    const id = ++this.#last
    return new Promise((resolve) => {
      const kill = () => this.#send(process, { id, kill: true })
      this.#pending.set(id, (ended) => {
        signal?.removeEventListener('abort', kill)
        resolve(ended)
      })
      signal?.addEventListener('abort', kill, { once: true })
      this.#hold(process)
      this.#send(process, { id, program, args, input: input ?? null, streams, group, timeoutMs: timeoutMs ?? null })
    })
  }

  #open(): ChildProcess {
    if (this.#process !== undefined) return this.#process
    // Published code is JavaScript; a URL, unlike an import, is not rewritten when it is compiled.
    const file = import.meta.url.endsWith('.ts') ? './launcher-process.ts' : './launcher-process.js'
    const child = fork(fileURLToPath(new URL(file, import.meta.url)), {
      execArgv: ['--max-semi-space-size=1'],
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    })
    this.#process = child
    child.on('message', (message) => this.#settle(child, message as FromLauncher))
    const lost = (why: string) => {
      if (this.#process !== child) return
      this.#process = undefined
      const error = { code: undefined, message: `the process that starts programs ${why}` }
      for (const id of [...this.#pending.keys()]) this.#settle(child, { id, code: null, signal: null, stdout: '', stderr: '', error })
    }
    child.once('error', (error) => lost(`failed: ${error.message}`))
    child.once('exit', () => lost('ended'))
    child.once('disconnect', () => lost('ended'))
    return child
  }

  #send(process: ChildProcess, message: ToLauncher): void {
    // What it could not be told, `lost` answers.
    if (process.connected) process.send(message, () => undefined)
  }

  #settle(process: ChildProcess, { id, ...ended }: FromLauncher): void {
    const settle = this.#pending.get(id)
    this.#pending.delete(id)
    if (this.#pending.size === 0) this.#hold(process)
    settle?.(ended)
  }

  /** The server may end unless a program is on its way. */
  #hold(process: ChildProcess): void {
    const isNeeded = this.#pending.size > 0
    if (isNeeded) process.ref()
    else process.unref()
    if (isNeeded) process.channel?.ref()
    else process.channel?.unref()
  }
}

const launcher = new Launcher()

/** Runs a program to its end. Rejects only where `signal` was aborted before. */
export function launch(what: Launch): Promise<Ended> {
  return launcher.run(what)
}
