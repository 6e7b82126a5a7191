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

/** A program that waits for its input. The server may end meanwhile, which ends the input. */
export interface Waiting {
  /** Gives it its input, and resolves when it has ended. It is killed when `signal` aborts. */
  go(input: string, signal: AbortSignal): Promise<Ended>
  /** Resolves when it has ended. */
  ended: Promise<Ended>
  kill(): void
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
  /** Those of the pending ones that nobody needs yet. */
  readonly #waiting = new Set<number>()

  run({ input, signal, ...what }: Launch): Promise<Ended> {
    signal?.throwIfAborted()
    const started = this.#start({ ...what, input: input ?? null })
    return signal === undefined ? started.ended : killedBy(signal, started)
  }

  wait(what: Omit<Launch, 'input' | 'signal'>): Waiting {
    const { process, id, ended, kill } = this.#start({ ...what, input: { later: true } })
    this.#waiting.add(id)
    this.#hold(process)
    const go = (input: string, signal: AbortSignal) => {
      this.#waiting.delete(id)
      this.#hold(process)
      this.#send(process, { id, input })
      return killedBy(signal, { ended, kill })
    }
    return { go, ended, kill }
  }

  #start({
    program,
    args,
    input,
    streams,
    group = false,
    timeoutMs,
  }: Omit<Launch, 'input' | 'signal'> & { input: string | null | { later: true } }) {
    const process = this.#open()
    const id = ++this.#last
    const ended = new Promise<Ended>((resolve) => this.#pending.set(id, resolve))
    this.#hold(process)
    this.#send(process, { id, program, args, input, streams, group, timeoutMs: timeoutMs ?? null })
    return { process, id, ended, kill: () => this.#send(process, { id, kill: true }) }
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
    this.#waiting.delete(id)
    this.#hold(process)
    settle?.(ended)
  }

  /** The server may end unless a program is on its way. */
  #hold(process: ChildProcess): void {
    const isNeeded = this.#pending.size > this.#waiting.size
    if (isNeeded) process.ref()
    else process.unref()
    if (isNeeded) process.channel?.ref()
    else process.channel?.unref()
  }
}

function killedBy(signal: AbortSignal, { ended, kill }: Pick<Waiting, 'ended' | 'kill'>): Promise<Ended> {
  if (signal.aborted) kill()
  signal.addEventListener('abort', kill, { once: true })
  void ended.then(() => signal.removeEventListener('abort', kill))
  return ended
}

const launcher = new Launcher()

/** Runs a program to its end. Rejects only where `signal` was aborted before. */
export function launch(what: Launch): Promise<Ended> {
  return launcher.run(what)
}

/** Starts a program that waits for its input. */
export function launchWaiting(what: Omit<Launch, 'input' | 'signal'>): Waiting {
  return launcher.wait(what)
}
