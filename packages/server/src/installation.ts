import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { ThawError } from '@thaw/protocol'
import type { Agents } from './control/sandboxes/sandbox-starter.ts'
import { reseedLibrary } from './runtimes/reseed-library.ts'

// What the installation brings for sandboxes, and how it gets to where they can reach it.

/**
 * Copies the files of the runtimes into the data directory: sandboxes run as users who may not be able to walk to where
 * thaw is installed.
 */
export async function stageRuntimes(dataDir: string): Promise<string> {
  const root = findUp('runtimes')
  const target = join(dataDir, 'runtimes')
  rmSync(target, { recursive: true, force: true })
  mkdirSync(target, { mode: 0o755 })
  for (const name of ['python', 'node', 'go']) cpSync(join(root, 'runtimes', name), join(target, name), { recursive: true })
  if (process.arch === 'x64' || process.arch === 'arm64') writeFileSync(join(target, 'node', 'reseed.node'), reseedLibrary(process.arch))
  mkdirSync(join(target, 'custom'), { mode: 0o755 })
  const launcher = join(root, '.build', 'runtimes', 'custom', 'launcher')
  if (existsSync(launcher)) cpSync(launcher, join(target, 'custom', 'launcher'))
  mkdirSync(join(target, 'agent'), { mode: 0o755 })
  const agent = builtAgent()
  if (existsSync(agent)) cpSync(agent, join(target, 'agent', 'thaw-agent'))
  await compilePython(join(target, 'python'))
  return target
}

/**
 * Puts the agent into a folder of the data directory that is named by its content, and stays: sandboxes and snapshots of
 * earlier servers need theirs.
 */
export function stageAgent(dataDir: string): Agents {
  const program = builtAgent()
  const folder = (digest: string) => join(dataDir, 'agents', digest)
  const current = existsSync(program) ? createHash('sha256').update(readFileSync(program)).digest('hex') : 'none'
  if (!existsSync(folder(current))) {
    const draft = `${folder(current)}.draft`
    rmSync(draft, { recursive: true, force: true })
    mkdirSync(draft, { recursive: true, mode: 0o755 })
    if (existsSync(program)) cpSync(program, join(draft, 'thaw-agent'))
    renameSync(draft, folder(current))
  }
  return {
    current,
    dir: (digest) => {
      if (existsSync(folder(digest))) return folder(digest)
      throw new ThawError('snapshot_incompatible', 'The snapshot has an agent that this server does not know.')
    },
  }
}

/**
 * Sandboxes see the files of their runtime read-only, so Python could not keep what it compiles: every start would
 * compile anew. Made here for the Python of this machine; another one ignores it.
 */
async function compilePython(dir: string): Promise<void> {
  await promisify(execFile)('/usr/bin/python3', ['-I', '-m', 'compileall', '-q', '--invalidation-mode', 'unchecked-hash', dir]).catch(
    () => undefined,
  )
}

/** The agent's program for this machine, as the bootstrap of the installation builds it. */
export function builtAgent(): string {
  return join(findUp('runtimes'), '.build', 'agent', `thaw-agent-linux-${process.arch === 'arm64' ? 'arm64' : 'amd64'}`)
}

/** The nearest folder above this file that has a folder of this name. */
function findUp(name: string): string {
  let dir = dirname(fileURLToPath(import.meta.url))
  while (!existsSync(join(dir, name, 'python'))) {
    if (dirname(dir) === dir) throw new ThawError('internal', `The folder ${name} of the installation is missing.`)
    dir = dirname(dir)
  }
  return dir
}
