import { spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import type { CreateSpec } from '../driver.ts'
import { launch } from '../launcher/launcher.ts'
import type { Stream } from '../launcher/protocol.ts'
import { identify, type ProcessIdentity, waitUntil } from '../processes.ts'
import { waitForName } from '../socket.ts'
import { closeWriteEnds, type OutputPipes, readOutput } from './pipes.ts'

/** Where system programs lie; the PATH of whoever starts the server need not have all of it. */
const enginePath = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin']

/** runc, or crun where only that is installed. */
export function defaultEngine(): 'runc' | 'crun' {
  const installed = (program: string) => enginePath.some((folder) => existsSync(join(folder, program)))
  return !installed('runc') && installed('crun') ? 'crun' : 'runc'
}

export interface EngineStart {
  engine: string
  /** Program and arguments, up to the command that starts a bundle. */
  command: string[]
  /** The bundle. */
  dir: string
  spec: CreateSpec
  /** For what runs detached and has an output. */
  pipes: OutputPipes | null
}

/** A first process, and what tells that it may have ended. */
export interface Started {
  process: ProcessIdentity | null
  /** Resolves when nothing can come out of it any more; with its exit code where the engine waited for it. */
  silent: Promise<{ code: number | null; signal: string | null }>
}

/**
 * Starts the container of a bundle. One with a runtime or an agent is started detached: the engine goes away and costs nothing
 * while the sandbox lives. Where the exit code of argv is what matters, the engine stays as its parent and hands the code on.
 */
export function startContainer(start: EngineStart): Promise<Started> {
  return start.spec.ready === 'started' ? startAttended(start) : startDetached(start)
}

async function startDetached({ engine, command, dir, spec, pipes }: EngineStart): Promise<Started> {
  const [program = '', ...first] = command
  const args = [...first, '--pid-file', join(dir, 'pid'), '--bundle', dir, '--detach', spec.id]
  const silent = pipes === null ? Promise.resolve() : readOutput(pipes, (source, bytes) => spec.onOutput?.(source, bytes))
  const streams: Stream[] = pipes === null ? ['ignore', 'ignore'] : [pipes.stdout.write, pipes.stderr.write]
  const { code, error } = await launch({ program, args, streams })
  if (pipes !== null) closeWriteEnds(pipes)
  if (error !== null) throw new ThawError('driver_failed', `${engine} cannot be started: ${error.message}`, { cause: error })
  if (code !== 0) throw startFailure(engine, spec.argv[0] ?? '', engineError(dir) ?? '')
  return { process: rememberProcess(dir), silent: silent.then(() => ({ code: null, signal: null })) }
}

function startAttended({ engine, command, dir, spec }: EngineStart): Promise<Started> {
  const pidFile = join(dir, 'pid')
  const [program = '', ...first] = command
  const child = spawn(program, [...first, '--pid-file', pidFile, '--bundle', dir, spec.id], { stdio: ['ignore', 'pipe', 'pipe'] })
  let lastError = ''
  child.stdout.on('data', (bytes: Buffer) => spec.onOutput?.('stdout', bytes))
  child.stderr.on('data', (bytes: Buffer) => {
    if (lastError.length < 4096) lastError += bytes.toString('utf8')
    spec.onOutput?.('stderr', bytes)
  })
  const silent = new Promise<{ code: number | null; signal: string | null }>((resolve) =>
    child.once('close', (code, signal) => resolve({ code, signal })),
  )
  const started = (): Started => ({ process: rememberProcess(dir), silent })
  return new Promise((resolve, reject) => {
    const gone = new AbortController()
    child.once('error', (cause) => reject(new ThawError('driver_failed', `${engine} cannot be started: ${cause.message}`, { cause })))
    child.once('exit', (code) => {
      gone.abort()
      // The code may be that of argv, which may have ended already: then it has been started.
      if (code === 0 || existsSync(pidFile)) resolve(started())
      else reject(startFailure(engine, spec.argv[0] ?? '', engineError(dir) ?? lastError.trim()))
    })
    waitForName(pidFile, gone.signal)
      // Not every engine renames a finished file to this name: there is a moment when it is empty.
      .then(() => waitUntil(() => readFileSync(pidFile, 'latin1').trim() !== '', 2_000))
      .then(
        () => resolve(started()),
        () => undefined,
      )
  })
}

/** How runc and crun start a container. */
export function runCommandOf(engine: string, stateDir: string, dir: string): string[] {
  // A session keyring of its own would count against the 200 keys that the kernel gives one user, and all sandboxes are one
  // user to it. Code inside can reach no keyring: its system calls are refused.
  return [engine, '--root', stateDir, '--log', join(dir, 'engine.log'), 'run', '--no-new-keyring']
}

/** Writes down, for a later server, which process the engine started. */
export function rememberProcess(dir: string): ProcessIdentity | null {
  const first = identify(Number(readFileSync(join(dir, 'pid'), 'latin1')))
  writeFileSync(join(dir, 'process.json'), JSON.stringify(first), { mode: 0o600 })
  return first
}

/** Whether a process is an engine at work on a sandbox: its bundle or its group is one of the arguments. */
export function isEngineOf(pid: number, folders: string[]): boolean {
  try {
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
    return folders.some((folder) => args.includes(folder))
  } catch {
    return false
  }
}

/** An image without the program that is to start is the image's fault, not the engine's. */
function startFailure(engine: string, program: string, stderr: string): ThawError {
  if (/executable file not found|exec: .*no such file or directory/.test(stderr)) {
    return new ThawError('runtime_unsupported', `The image has no ${program}.`, { details: { stderr } })
  }
  return new ThawError('driver_failed', `${engine} could not start the container.`, { details: { stderr } })
}

/** The runtime writes its own log; its last line says what went wrong. */
function engineError(dir: string): string | null {
  try {
    const log = readFileSync(join(dir, 'engine.log'), 'utf8')
    return withoutTraces(log).trim().slice(-2000) || null
  } catch {
    return null
  }
}

/** gVisor writes JSON lines, and behind a message where in its code it came from: some hundred lines, which tell nobody anything. */
function withoutTraces(log: string): string {
  return log.replaceAll(/"msg":"(.*?):?\\ngoroutine .*?","level"/g, '"msg":"$1","level"')
}
