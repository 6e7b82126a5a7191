import { spawnSync } from 'node:child_process'
import type { Command as CommandLine, Sandbox } from '@thaw/sdk'
import type { Context } from './context.ts'
import { UsageError } from './errors.ts'

export interface TerminalOptions {
  /** Default: a login shell. */
  command?: CommandLine | undefined
  env?: Record<string, string> | undefined
  cwd?: string | undefined
  user?: string | undefined
}

/** Names of terminals that images know; what others can do is close to xterm. */
const knownTerminals = /^(?:xterm(?:-256color|-color)?|screen(?:-256color)?|tmux(?:-256color)?|linux|vt100|vt220|ansi|dumb)$/

/**
 * Joins the terminal of this process with one in a sandbox, and resolves with the exit code of what ran there. Every key goes
 * inside, Ctrl-C and Ctrl-Z too. Afterwards the terminal is as it was, however it ended.
 */
export async function runTerminal({ output, signal }: Context, sandbox: Sandbox, options: TerminalOptions): Promise<number> {
  const { stdin, stdout } = process
  if (!stdin.isTTY || !stdout.isTTY) {
    throw new UsageError(
      'This is no terminal: standard input and output must both be one.',
      'Run a command without a terminal: `thaw sandbox exec SANDBOX -- COMMAND`.',
    )
  }
  signal.throwIfAborted()
  const modes = new TerminalModes()
  const terminal = await output.progress.during(`opening a terminal in ${sandbox.id}`, () =>
    sandbox.terminal({
      ...options,
      env: { ...terminalEnv(process.env), ...options.env },
      cols: stdout.columns,
      rows: stdout.rows,
      signal,
      onData: (bytes) => {
        modes.see(bytes)
        return output.bytes(bytes)
      },
    }),
  )
  const type = (bytes: Buffer) => {
    stdin.pause()
    void terminal.write(bytes).then(() => stdin.resume())
  }
  const resize = () => void terminal.resize({ cols: stdout.columns, rows: stdout.rows })
  // Whoever stops this process from outside and lets it go on finds the terminal in the mode of their shell.
  const goOn = () => {
    makeRaw()
    resize()
  }
  const hangUp = () => void terminal.kill('SIGHUP')
  makeRaw()
  stdin.on('data', type)
  stdin.once('end', hangUp)
  stdout.on('resize', resize)
  process.on('SIGCONT', goOn)
  process.once('SIGHUP', hangUp)
  stdin.resume()
  // The size may have changed while the terminal was opened.
  resize()
  try {
    return (await terminal.exited).exit_code
  } finally {
    process.off('SIGHUP', hangUp)
    process.off('SIGCONT', goOn)
    stdout.off('resize', resize)
    stdin.off('end', hangUp)
    stdin.off('data', type)
    stdin.setRawMode(false)
    stdin.pause()
    stdin.unref()
    const reset = modes.reset()
    if (reset !== '') stdout.write(reset)
  }
}

/** Every key comes as it is, and every byte is shown as it is. Undone by `setRawMode(false)`, and by the end of this process. */
function makeRaw(): void {
  process.stdin.setRawMode(true)
  // The raw mode of Node.js leaves on that line feeds also return to the first column (ONLCR), which spoils full-screen programs.
  spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] })
}

function terminalEnv({ TERM, COLORTERM }: NodeJS.ProcessEnv): Record<string, string> {
  return {
    TERM: TERM !== undefined && knownTerminals.test(TERM) ? TERM : 'xterm-256color',
    ...(COLORTERM === undefined ? {} : { COLORTERM }),
  }
}

/** Modes that programs switch on and must switch off: application keys, mouse, focus, alternate screens, bracketed paste. */
const offByDefault = new Set([1, 9, 47, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1047, 1049, 2004])
/** Wrapping, and the cursor that can be seen. */
const onByDefault = new Set([7, 25])
const longestSequence = 64

/**
 * Private modes (DECSET and DECRST of xterm, `ESC [ ? … h` and `… l`) that the other side switched and did not switch back, as
 * when a full-screen program was killed or the connection broke.
 */
export class TerminalModes {
  readonly #changed = new Set<number>()
  #tail = ''

  see(bytes: Uint8Array): void {
    const text = this.#tail + Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
    let end = 0
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
    for (const match of text.matchAll(/\x1b\[\?([\d;]+)([hl])/g)) {
      end = match.index + match[0].length
      for (const mode of (match[1] as string).split(';').map(Number)) this.#set(mode, match[2] === 'h')
    }
    // A sequence may be cut between two pieces.
    const open = text.lastIndexOf('\x1b')
    this.#tail = open >= end && text.length - open < longestSequence ? text.slice(open) : ''
  }

  /** What undoes them. */
  reset(): string {
    return [...this.#changed].map((mode) => `\x1b[?${mode}${onByDefault.has(mode) ? 'h' : 'l'}`).join('')
  }

  #set(mode: number, on: boolean): void {
    if (!offByDefault.has(mode) && !onByDefault.has(mode)) return
    if (on === onByDefault.has(mode)) this.#changed.delete(mode)
    else this.#changed.add(mode)
  }
}
