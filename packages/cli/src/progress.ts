const frames = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏']
const frameMs = 100
/** What takes less is done before anyone wonders. */
const quietMs = 1000

/** Tells on standard error what takes long: a spinner on a terminal, else one plain line. */
export class Progress {
  readonly #silent: boolean
  readonly #terminal = process.stderr.isTTY === true
  #timer: NodeJS.Timeout | undefined
  #shown = false

  constructor(options: { silent: boolean }) {
    this.#silent = options.silent
  }

  /** Runs `work`; from its second on, `label` is shown until it ends. A label that changes is asked for again and again. */
  async during<Result>(label: string | (() => string), work: () => Promise<Result>): Promise<Result> {
    if (this.#silent) return work()
    const startedMs = performance.now()
    this.stop()
    this.#timer = setTimeout(() => this.#show(label, startedMs), quietMs)
    try {
      return await work()
    } finally {
      this.stop()
    }
  }

  /** A line of its own; a spinner goes on below it. */
  line(text: string): void {
    if (this.#silent) return
    this.#clear()
    process.stderr.write(`${text}\n`)
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#clear()
  }

  #show(label: string | (() => string), startedMs: number): void {
    const text = typeof label === 'string' ? label : label()
    if (!this.#terminal) {
      process.stderr.write(`${text}…\n`)
      return
    }
    const elapsedMs = performance.now() - startedMs
    const frame = frames[Math.floor(elapsedMs / frameMs) % frames.length]
    process.stderr.write(`\r\x1b[2K${frame} ${text} (${Math.floor(elapsedMs / 1000)} s)`)
    this.#shown = true
    this.#timer = setTimeout(() => this.#show(label, startedMs), frameMs)
  }

  #clear(): void {
    if (this.#shown) process.stderr.write('\r\x1b[2K')
    this.#shown = false
  }
}
