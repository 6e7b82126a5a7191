// gVisor: the oci driver needs a release of 2024 or newer, which Debian 12 does not have. Its package holds one static program,
// so that of Debian 13 is unpacked into a folder of its own.
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, renameSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { download, run } from './debian.mjs'

/** Where the oci driver looks for it, before the system's own. */
const prefix = '/opt/thaw/runsc'
const suite = 'trixie'
const oldestRelease = 20240101

/** Whether a runsc that is new enough is here. */
export function hasRunsc() {
  return [join(prefix, 'usr/bin/runsc'), 'runsc'].some((program) => {
    const { status, stdout } = spawnSync(program, ['--version'], { encoding: 'utf8' })
    return status === 0 && Number(/\d{8}/.exec(stdout)?.[0]) >= oldestRelease
  })
}

/** Installs runsc into its folder. Throws with what went wrong; nothing half-made is left in its place. */
export function installRunsc() {
  const work = mkdtempSync(join(tmpdir(), 'thaw-runsc-'))
  const unpacked = `${prefix}.${process.pid}`
  try {
    chmodSync(work, 0o755)
    rmSync(unpacked, { recursive: true, force: true })
    mkdirSync(unpacked, { recursive: true })
    for (const archive of download(work, 'runsc', suite)) run('dpkg-deb', ['--extract', archive, unpacked])
    run(join(unpacked, 'usr/bin/runsc'), ['--version'])
    rmSync(prefix, { recursive: true, force: true })
    renameSync(unpacked, prefix)
  } finally {
    rmSync(work, { recursive: true, force: true })
    rmSync(unpacked, { recursive: true, force: true })
  }
}
