// Memory snapshots need CRIU 4, and from Linux 6.16 on CRIU 4.2: older ones cannot keep any TCP socket there. Debian 12 has 3.17,
// Debian 13 has 4.1, and the next one's package asks for a newer C library than theirs. So that package and the libraries that
// it needs are unpacked into a folder of their own, where it runs with that folder's loader; the system's packages and apt's
// own state stay as they are.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { release, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { download, run } from './debian.mjs'

/** Where the oci driver looks for it, before the system's own. */
export const criuPrefix = '/opt/thaw/criu'
const wanted = newKernel() ? 4.2 : 4
const suite = 'forky'

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

/** Installs criu into its folder. Throws with what went wrong; nothing half-made is left in its place. */
export function installCriu() {
  const work = mkdtempSync(join(tmpdir(), 'thaw-criu-'))
  const prefix = `${criuPrefix}.${process.pid}`
  try {
    // The user that apt downloads as has to get in.
    chmodSync(work, 0o755)
    rmSync(prefix, { recursive: true, force: true })
    mkdirSync(prefix, { recursive: true })
    for (const archive of download(work, 'criu', suite)) run('dpkg-deb', ['--extract', archive, prefix])
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
