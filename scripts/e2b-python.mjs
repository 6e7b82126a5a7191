// The Python client of E2B, which tests use as it is, in an environment of its own.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const packages = ['e2b==2.63.0']
const folder = join(dirname(dirname(fileURLToPath(import.meta.url))), '.build', 'e2b-python')
const stamp = join(folder, 'installed')

export const e2bPython = join(folder, 'bin', 'python')

export function hasE2bPython() {
  return existsSync(e2bPython) && existsSync(stamp) && readFileSync(stamp, 'utf8') === packages.join('\n')
}

/** Throws with what was printed when it cannot be installed. */
export function installE2bPython() {
  const python = ['/usr/bin/python3', 'python3'].find((program) => spawnSync(program, ['-c', 'import venv, ensurepip']).status === 0)
  if (python === undefined) throw new Error('there is no Python with the module venv (Debian: apt-get install python3-venv)')
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(dirname(folder), { recursive: true })
  run(python, ['-m', 'venv', folder])
  run(e2bPython, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', ...packages])
  writeFileSync(stamp, packages.join('\n'))
}

function run(program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${program} ${args.join(' ')}: ${error?.message ?? `${stdout}${stderr}`.slice(-2000)}`)
}
