// Packages of another Debian release than the system's, for programs whose own package is too old. They are downloaded and
// verified by apt, which leaves the system's packages and its own state as they are.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'

/** Whether `download` can do it here: the archive's key must be one that this system already trusts. */
export function canDownload() {
  return existsSync(keyring) && spawnSync('apt-get', ['--version']).status === 0 && ['x64', 'arm64'].includes(process.arch)
}

/**
 * Paths of a package of a release and of all that it depends on, in a folder below `work`. The user that apt downloads as has to
 * get in there.
 */
export function download(work, name, suite) {
  for (const folder of ['state/lists/partial', 'cache/archives/partial']) mkdirSync(join(work, folder), { recursive: true })
  const sources = join(work, 'thaw.sources')
  writeFileSync(sources, `Types: deb\nURIs: ${mirror()}\nSuites: ${suite}\nComponents: main\nSigned-By: ${keyring}\n`)
  // Empty: as if nothing were installed, so that libraries come along that the system has in an older version.
  writeFileSync(join(work, 'status'), '')
  mkdirSync(join(work, 'empty'))
  const options = [
    `Dir::State=${join(work, 'state')}`,
    `Dir::State::status=${join(work, 'status')}`,
    `Dir::Cache=${join(work, 'cache')}`,
    `Dir::Etc::sourcelist=${sources}`,
    `Dir::Etc::sourceparts=${join(work, 'empty')}`,
    'Dir::Etc::preferences=/dev/null',
    `Dir::Etc::preferencesparts=${join(work, 'empty')}`,
    'Acquire::Languages=none',
    'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false',
    'Acquire::Retries=3',
  ].flatMap((option) => ['-o', option])
  run('apt-get', [...options, '--quiet=2', 'update'])
  run('apt-get', [...options, '--quiet=2', '--yes', '--no-install-recommends', '--download-only', 'install', name])
  const folder = join(work, 'cache/archives')
  return readdirSync(folder)
    .filter((file) => file.endsWith('.deb'))
    .map((file) => join(folder, file))
}

/** The Debian mirror that this system uses, so that a local one is used here, too. */
function mirror() {
  const { stdout } = spawnSync('apt-get', ['indextargets', '--format', '$(LABEL) $(REPO_URI)', 'Created-By: Packages'], {
    encoding: 'utf8',
  })
  const found = /^Debian (https?:\S+)$/m.exec(stdout ?? '')?.[1]
  return found ?? 'http://deb.debian.org/debian'
}

/** Runs a program of the packages' tools. Throws with what it said. */
export function run(program, args) {
  const { status, error, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    timeout: 300_000,
  })
  if (error) throw new Error(`${program}: ${error.message}`)
  if (status !== 0) throw new Error(`${program} failed: ${stderr.trim().slice(-1000)}`)
}
