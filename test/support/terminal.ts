import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { onTestFailed, onTestFinished } from 'vitest'

/** Runs a program on a terminal of its own: commands come as JSON lines on stdin, what it prints goes to stdout. */
const bridge = `
import os, pty, sys, json, select, struct, fcntl, termios, base64
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
held = b''
while True:
    ready, _, _ = select.select([0, terminal], [], [])
    if terminal in ready:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        while data:
            data = data[os.write(1, data):]
    if 0 in ready:
        more = os.read(0, 65536)
        if not more:
            break
        held += more
        *lines, held = held.split(b'\\n')
        for line in lines:
            command = json.loads(line)
            if 'rows' in command:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', command['rows'], command['cols'], 0, 0))
            else:
                data = base64.b64decode(command['keys'])
                while data:
                    data = data[os.write(terminal, data):]
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xff)
`

/** A program on a real terminal, as a person sees and uses it. */
export class TestTerminal {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #exited: Promise<unknown[]>
  #screen = ''
  #all = ''
  #changed: () => void = () => undefined

  constructor(command: string[], options: { env: NodeJS.ProcessEnv; cols: number; rows: number }) {
    this.#child = spawn('python3', ['-c', bridge, ...command], { env: options.env })
    this.#exited = once(this.#child, 'close')
    this.#child.stdout.setEncoding('utf8').on('data', (text: string) => {
      this.#screen += text
      this.#all += text
      this.#changed()
    })
    this.#child.stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#all += text
    })
    void this.#exited.then(() => this.#changed())
    onTestFailed(() => console.error(JSON.stringify(this.#all.slice(-4000))))
    onTestFinished(async () => {
      this.#child.kill('SIGKILL')
      await this.#exited
    })
    this.resize(options.cols, options.rows)
  }

  type(keys: string): void {
    this.#send({ keys: Buffer.from(keys).toString('base64') })
  }

  resize(cols: number, rows: number): void {
    this.#send({ cols, rows })
  }

  /** Resolves with what was printed up to and with the text, once it has been; it counts as seen then. */
  async see(text: string, timeoutMs = 20_000): Promise<string> {
    const end = performance.now() + timeoutMs
    for (;;) {
      const at = this.#screen.indexOf(text)
      if (at >= 0) {
        const seen = this.#screen.slice(0, at + text.length)
        this.#screen = this.#screen.slice(at + text.length)
        return seen
      }
      const leftMs = end - performance.now()
      if (leftMs <= 0 || this.#child.exitCode !== null) {
        throw new Error(`the terminal never showed ${JSON.stringify(text)}, but ${JSON.stringify(this.#screen.slice(-2000))}`)
      }
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, leftMs)
        this.#changed = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
  }

  /** Resolves with the exit code and what was printed since it was looked last. */
  async ended(): Promise<{ code: number | null; rest: string }> {
    await this.#exited
    return { code: this.#child.exitCode, rest: this.#screen }
  }

  #send(command: object): void {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`)
  }
}
