// Memory snapshots need CRIU 4, and from Linux 6.16 on CRIU 4.2: older ones cannot keep any TCP socket there. Debian 12 has 3.17,
// Debian 13 has 4.1, and the next one's package asks for a newer C library than theirs. So that package and the libraries that
// it needs are unpacked into a folder of their own, where it runs with that folder's loader; the system's packages and apt's
// own state stay as they are.
import { spawnSync } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { release, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/** Where the oci driver looks for it, before the system's own. */
export const criuPrefix = '/opt/thaw/criu'
const wanted = newKernel() ? 4.2 : 4
const suite = 'forky'
const keyring = '/usr/share/keyrings/debian-archive-keyring.gpg'

function newKernel() {
  const [major = 0, minor = 0] = release().split('.').map(Number)
  return major > 6 || (major === 6 && minor >= 16)
}

/** Whether a criu that is new enough is here. */
export function hasCriu() {
  return [join(criuPrefix, 'bin/criu'), 'criu'].some((program) => {
    const { status, stdout } = spawnSync(program, ['--version'], { encoding: 'utf8' })
    return status === 0 && Number(/^Version: (\d+\.\d+)/m.exec(stdout)?.[1]) >= wanted
  })
}

/** Whether `installCriu` can do it here: the archive's key must be one that this system already trusts. */
export function canInstallCriu() {
  return existsSync(keyring) && spawnSync('apt-get', ['--version']).status === 0 && ['x64', 'arm64'].includes(process.arch)
}

/** Installs criu into its folder. Throws with what went wrong; nothing half-made is left in its place. */
export function installCriu() {
  const work = mkdtempSync(join(tmpdir(), 'thaw-criu-'))
  const prefix = `${criuPrefix}.${process.pid}`
  try {
    // The user that apt downloads as has to get in.
    chmodSync(work, 0o755)
    rmSync(prefix, { recursive: true, force: true })
    mkdirSync(prefix, { recursive: true })
    for (const archive of download(work)) run('dpkg-deb', ['--extract', archive, prefix])
    for (const unused of ['etc', 'usr/share', 'usr/bin']) rmSync(join(prefix, unused), { recursive: true, force: true })
    writeWrapper(prefix)
    rmSync(criuPrefix, { recursive: true, force: true })
    renameSync(prefix, criuPrefix)
    run(join(criuPrefix, 'bin/criu'), ['--version'])
  } finally {
    rmSync(work, { recursive: true, force: true })
    rmSync(prefix, { recursive: true, force: true })
  }
}

/** Paths of the packages: criu and all that it depends on, chosen and verified by apt. */
function download(work) {
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
  run('apt-get', [...options, '--quiet=2', '--yes', '--no-install-recommends', '--download-only', 'install', 'criu'])
  const folder = join(work, 'cache/archives')
  return readdirSync(folder)
    .filter((name) => name.endsWith('.deb'))
    .map((name) => join(folder, name))
}

/** The Debian mirror that this system uses, so that a local one is used here, too. */
function mirror() {
  const { stdout } = spawnSync('apt-get', ['indextargets', '--format', '$(LABEL) $(REPO_URI)', 'Created-By: Packages'], {
    encoding: 'utf8',
  })
  const found = /^Debian (https?:\S+)$/m.exec(stdout ?? '')?.[1]
  return found ?? 'http://deb.debian.org/debian'
}

function writeWrapper(prefix) {
  const libraries = readdirSync(join(prefix, 'usr/lib'))
    .map((name) => join('usr/lib', name))
    .find((folder) => readdirSync(join(prefix, folder)).some((name) => name.startsWith('ld-linux')))
  if (libraries === undefined) throw new Error('the packages hold no loader')
  const loader = readdirSync(join(prefix, libraries)).find((name) => name.startsWith('ld-linux'))
  const wrapper = join(prefix, 'bin/criu')
  mkdirSync(dirname(wrapper))
  const folder = join(criuPrefix, libraries)
  writeFileSync(wrapper, `#!/bin/sh\nexec ${join(folder, loader)} --library-path ${folder} ${join(criuPrefix, 'usr/sbin/criu')} "$@"\n`)
  chmodSync(wrapper, 0o755)
}

function run(program, args) {
  const { status, error, stderr } = spawnSync(program, args, {
    encoding: 'utf8',
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    timeout: 300_000,
  })
  if (error) throw new Error(`${program}: ${error.message}`)
  if (status !== 0) throw new Error(`${program} failed: ${stderr.trim().slice(-1000)}`)
}
