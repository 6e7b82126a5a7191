import { spawn } from 'node:child_process'
import { closeSync, constants, fchownSync, openSync, readlinkSync } from 'node:fs'
import { Socket } from 'node:net'
import { ThawError } from '@thaw/protocol'

/** Two descriptors of this process: an anonymous pipe. */
export interface Pipe {
  read: number
  write: number
}

/** The pipes for stdout and stderr of a sandbox. */
export interface OutputPipes {
  stdout: Pipe
  stderr: Pipe
}

/** Both as links below /proc name them, and CRIU: `pipe:[12345]`. */
export interface PipeNames {
  stdout: string
  stderr: string
}

export function pipeNames(pipes: OutputPipes): PipeNames {
  const name = (fd: number) => readlinkSync(`/proc/self/fd/${fd}`)
  return { stdout: name(pipes.stdout.write), stderr: name(pipes.stderr.write) }
}

/**
 * Node.js gives children socket pairs, which cannot be part of a snapshot: their other end is outside. Pipes can, but it
 * has no call that makes one; so a shell makes two, and they are opened through its descriptors before it ends. A shell
 * that redirects a command of its own has another descriptor 1 meanwhile: so a child says which process to look at.
 */
const script = `exec 3<&0 4>&1
hold() { read pid rest </proc/self/stat; (echo $pid >&4); read rest <&3; }
hold | read rest <&3 &
hold | read rest <&3 &
wait`

function openPipes(): Promise<OutputPipes> {
  return new Promise((resolve, reject) => {
    const shell = spawn('sh', ['-c', script], { stdio: ['pipe', 'pipe', 'ignore'] })
    let text = ''
    const fail = (cause?: unknown) => reject(new ThawError('driver_failed', 'No pipe could be made.', { cause }))
    shell.once('error', fail)
    shell.once('close', () => fail())
    shell.stdin.on('error', () => undefined)
    shell.stdout.setEncoding('latin1').on('data', (more: string) => {
      text += more
      const pids = text.split('\n').slice(0, -1)
      if (pids.length < 2) return
      try {
        resolve({ stdout: openThrough(pids[0] as string), stderr: openThrough(pids[1] as string) })
      } catch (error) {
        fail(error)
      } finally {
        shell.stdin.end()
      }
    })
  })
}

function openThrough(pid: string): Pipe {
  const path = `/proc/${pid}/fd/1`
  const read = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    return { read, write: openSync(path, constants.O_WRONLY) }
  } catch (error) {
    closeSync(read)
    throw error
  }
}

/** Pipes, with one pair always made ahead: a start does not wait for a shell. */
export class PipeSource {
  #spare: Promise<OutputPipes> | undefined

  /** @param owner user of the host who may open them anew, by /dev/stdout. */
  async take(owner: number): Promise<OutputPipes> {
    const next = this.#spare ?? openPipes()
    this.#spare = undefined
    const pipes = await next
    setImmediate(() => {
      this.#spare ??= openPipes()
      this.#spare.catch(() => {
        this.#spare = undefined
      })
    })
    for (const { write } of [pipes.stdout, pipes.stderr]) fchownSync(write, owner, owner)
    return pipes
  }

  async close(): Promise<void> {
    const spare = await this.#spare?.catch(() => undefined)
    this.#spare = undefined
    if (spare !== undefined) dropPipes(spare)
  }
}

/** Our copies of the ends that the sandbox writes to: while one is open, the output does not end. */
export function closeWriteEnds(pipes: OutputPipes): void {
  closeSync(pipes.stdout.write)
  closeSync(pipes.stderr.write)
}

/** Both ends of both. */
export function dropPipes(pipes: OutputPipes): void {
  for (const { read, write } of [pipes.stdout, pipes.stderr]) for (const fd of [read, write]) closeSync(fd)
}

/** Hands on what comes out. Resolves when the last process that could write has ended or closed both pipes. */
export function readOutput(pipes: OutputPipes, onOutput: (source: 'stdout' | 'stderr', bytes: Buffer) => void): Promise<void> {
  const ended = (['stdout', 'stderr'] as const).map(
    (source) =>
      new Promise<void>((resolve) => {
        const stream = new Socket({ fd: pipes[source].read, readable: true, writable: false })
        stream.on('data', (bytes: Buffer) => onOutput(source, bytes))
        stream.on('error', () => undefined)
        stream.once('close', () => resolve())
      }),
  )
  return Promise.all(ended).then(() => undefined)
}
