import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { posix } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { transferFile } from './files.ts'
import { followProcess } from './follow.ts'
import type { Lease } from './live-sandbox.ts'
import { processEnd } from './process-end.ts'

/** A step of a template of E2B, in its words: RUN, COPY, ENV, WORKDIR, USER. */
export interface E2bStep {
  type: string
  args: string[]
  filesHash?: string | undefined
}

/** What steps leave behind beside files. */
export interface E2bBuildState {
  env: Record<string, string>
  user: string
  workdir: string
}

export interface StepContext {
  lease: Lease
  state: E2bBuildState
  /** The archive that a client uploaded under this hash, or null. */
  archive: (hash: string) => string | null
  log: (line: string) => void
  signal: AbortSignal
}

/** A login shell, as E2B has it, where the image has bash. */
const shell = 'if [ -x /bin/bash ]; then exec /bin/bash -l -c "$0"; else exec /bin/sh -l -c "$0"; fi'

/**
 * What was unpacked in $1 goes to $3: the file or folder $2, or what it matches. $4: owner, $5: mode. A folder gives its content,
 * a file takes the name of $3 unless that is a folder. Links are moved as they are.
 */
const copyScript = `set -e
from=$1 source=$2 target=$3 owner=$4 mode=$5
cd "$from"
[ -z "$mode" ] || find . -mindepth 1 ! -type l -exec chmod "$mode" {} +
[ -z "$owner" ] || chown -hR "$owner" .
if [ -d "./$source" ]; then
  mkdir -p "$target"
  cp -a "./$source/." "$target/"
elif [ -e "./$source" ] || [ -L "./$source" ]; then
  case "$target" in */) mkdir -p "$target" ;; *) mkdir -p "$(dirname "$target")" ;; esac
  cp -a "./$source" "$target"
else
  mkdir -p "$target"
  cp -a ./$source "$target/"
fi
cd / && rm -rf "$from"`

/** Does one step. Throws `build_failed` with what went wrong. */
export async function runStep(step: E2bStep, context: StepContext): Promise<void> {
  const { args } = step
  const { state } = context
  switch (step.type) {
    case 'RUN':
      return runShell(required(step, 0), args[1] || undefined, context)
    case 'ENV':
      for (let i = 0; i < args.length; i += 2) state.env[args[i] as string] = args[i + 1] ?? ''
      return
    case 'WORKDIR': {
      state.workdir = posix.resolve(state.workdir, required(step, 0))
      // Made as root, and given to whoever is to work in it.
      return run(
        ['/bin/sh', '-c', '[ -d "$1" ] || { mkdir -p "$1" && chown "$2" "$1"; }', 'sh', state.workdir, state.user],
        'root',
        '/',
        context,
      )
    }
    case 'USER':
      state.user = required(step, 0)
      return run(['/bin/sh', '-c', 'true'], state.user, '/', context)
    case 'COPY':
      return copy(step, context)
    default:
      throw failed(`There is no step ${step.type.slice(0, 100)}.`)
  }
}

function required({ type, args }: E2bStep, index: number): string {
  const value = args[index]
  if (value === undefined || value === '') throw failed(`A step ${type} lacks an argument.`)
  return value
}

/** Runs text in a shell with what the build has set so far. */
export function runShell(text: string, user: string | undefined, context: StepContext): Promise<void> {
  return run(['/bin/sh', '-c', shell, text], user ?? context.state.user, context.state.workdir, context)
}

async function run(argv: string[], user: string, cwd: string, { lease, state, log, signal }: StepContext): Promise<void> {
  const [cmd = '', ...args] = argv
  const lines = new Lines(log)
  for await (const { event } of followProcess(lease, { process: { cmd, args, envs: state.env, cwd }, stdin: false }, { user, signal })) {
    const { stdout, stderr } = event?.data ?? {}
    for (const text of [stdout, stderr]) if (text !== undefined) lines.add(Buffer.from(text, 'base64').toString('utf8'))
    if (event?.end === undefined) continue
    lines.end()
    const { exit_code, signal: killedBy } = processEnd(event.end)
    if (exit_code !== 0) throw failed(`The command ended with ${killedBy === null ? `exit code ${exit_code}` : killedBy}.${lines.last()}`)
    return
  }
  throw failed('The command was lost.')
}

async function copy(step: E2bStep, context: StepContext): Promise<void> {
  const { lease, state, archive, signal } = context
  const [source, target] = [required(step, 0), required(step, 1)]
  const path = step.filesHash === undefined ? null : archive(step.filesHash)
  if (path === null) throw failed(`The files of COPY ${source} were not uploaded.`)
  const folder = `/tmp/.e2b-copy-${step.filesHash?.slice(0, 16)}`
  const answer = await transferFile(lease.agent, {
    method: 'PUT',
    path: folder,
    user: 'root',
    tar: true,
    headers: {},
    body: { stream: createReadStream(path), length: (await stat(path)).size },
    signal,
  })
  answer.resume()
  const absolute = `${posix.resolve(state.workdir, target)}${target.endsWith('/') ? '/' : ''}`
  const owner = step.args[2] || state.user
  const argv = ['/bin/sh', '-c', copyScript, 'sh', folder, source.replace(/\/+$/, ''), absolute, owner, step.args[3] ?? '']
  await run(argv, 'root', '/', context)
}

export function failed(message: string, cause?: unknown): ThawError {
  return new ThawError('build_failed', message, { fix: 'Read the log of the build.', ...(cause === undefined ? {} : { cause }) })
}

/** Cuts output into lines, and remembers the last one. */
class Lines {
  readonly #log: (line: string) => void
  #rest = ''
  #last = ''

  constructor(log: (line: string) => void) {
    this.#log = log
  }

  add(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = (lines.pop() ?? '').slice(-16_384)
    for (const line of lines) this.#tell(line)
  }

  end(): void {
    if (this.#rest !== '') this.#tell(this.#rest)
    this.#rest = ''
  }

  last(): string {
    return this.#last === '' ? '' : ` Its last words: ${this.#last}`
  }

  #tell(line: string): void {
    if (line.trim() !== '') this.#last = line.slice(0, 500)
    this.#log(line)
  }
}
