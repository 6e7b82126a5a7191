import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { ThawError } from '@thaw/protocol'
import { CommandError, runCommand } from './command.ts'

export interface DebianOptions {
  packages: readonly string[]
  /** A folder for what mmdebstrap needs while it works; emptied by the caller. */
  temporary: string
  onProgress: (step: string) => void
  signal?: AbortSignal | undefined
}

interface Release {
  id: string
  codename: string
}

const buildTimeoutMs = 15 * 60_000

/** Nobody reads manuals in a sandbox, and files cost unpacking time. Licences (copyright) stay. */
const leftOut = ['/usr/share/man/*', '/usr/share/info/*', '/usr/share/locale/*', '/usr/share/doc/*', '/usr/share/lintian/*']
const kept = ['/usr/share/doc/*/copyright']

/**
 * Builds a root file system from packages of the distribution that this machine runs, by mmdebstrap, and gives it to
 * `unpack` as a tar stream. Which mirror, suite and components: those of the machine's own apt configuration.
 *
 * Errors: `image_unresolvable` (no such package), `image_unavailable` (not Debian-like, mmdebstrap missing, mirror not reachable), `disk_full`.
 */
export async function buildDebianTree(options: DebianOptions, unpack: (tar: Readable) => Promise<void>): Promise<void> {
  const release = await readRelease()
  const sources = await readSources(release, options.signal)
  const apt = await readAptTransport(options.signal)
  try {
    await runCommand(
      'env',
      [
        `TMPDIR=${options.temporary}`,
        // Its mounts (/proc, /sys, /dev) end with it, also when it is killed.
        'unshare',
        '--mount',
        'mmdebstrap',
        '--variant=essential',
        '--format=tar',
        `--include=${options.packages.join(',')}`,
        ...leftOut.map((path) => `--dpkgopt=path-exclude=${path}`),
        ...kept.map((path) => `--dpkgopt=path-include=${path}`),
        ...apt.map((line) => `--aptopt=${line}`),
        release.codename,
        '-',
        ...sources,
      ],
      {
        timeoutMs: buildTimeoutMs,
        signal: options.signal,
        consume: unpack,
        onLine: (line) => {
          const step = /^I: (running apt-get update|downloading|extracting|installing|creating)(.*?)\.*$/.exec(line)
          if (step) options.onProgress(`${step[1]}${step[2]}`)
        },
      },
    )
  } catch (error) {
    throw explain(error)
  }
}

/** Name and version of every package of a Debian tree, sorted. */
export async function readPackages(rootfs: string): Promise<string[]> {
  const status = await readFile(join(rootfs, 'var/lib/dpkg/status'), 'utf8')
  return status
    .split('\n\n')
    .map((entry) => [/^Package: (.*)$/m.exec(entry)?.[1], /^Version: (.*)$/m.exec(entry)?.[1]])
    .filter(([name]) => name !== undefined)
    .map(([name, version]) => `${name}=${version}`)
    .sort()
}

/** Which distribution this machine runs. Throws `image_unavailable` where packages of Debian cannot be had. */
export async function readRelease(): Promise<Release> {
  const text = await readFile('/etc/os-release', 'utf8').catch(() => '')
  const field = (name: string) => new RegExp(`^${name}="?([^"\n]*)"?$`, 'm').exec(text)?.[1] ?? ''
  const codename = field('VERSION_CODENAME')
  const id = field('ID')
  if (!/(^| )(debian|ubuntu)( |$)/.test(`${id} ${field('ID_LIKE')}`) || codename === '') {
    throw new ThawError('image_unavailable', 'Runtime images are built from Debian packages, and this machine is not a Debian or Ubuntu.', {
      fix: 'Use image host, or an OCI image that holds the interpreter.',
    })
  }
  return { id, codename }
}

/** Lines of sources.list for the distribution's own archives; third-party archives are left out. */
async function readSources(release: Release, signal: AbortSignal | undefined): Promise<string[]> {
  const text = await runCommand(
    'apt-get',
    ['indextargets', '--format', '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)', 'Created-By: Packages'],
    { timeoutMs: 30_000, signal },
  ).catch((error: unknown) => {
    throw explain(error)
  })
  const components = new Map<string, Set<string>>()
  for (const line of text.split('\n')) {
    const [uri = '', suite = '', component = '', origin = ''] = line.split('|')
    if (suite !== release.codename && !suite.startsWith(`${release.codename}-`)) continue
    // Backports hold other versions of the same packages; they are for those who ask for them.
    if (suite.endsWith('-backports')) continue
    // The origin is only known once the lists were fetched; the placeholder stays where it is not.
    if (!origin.startsWith('$') && origin.toLowerCase() !== release.id) continue
    const key = `deb ${uri} ${suite}`
    components.set(key, (components.get(key) ?? new Set()).add(component))
  }
  if (components.size === 0) {
    throw new ThawError('image_unavailable', `apt on this machine knows no archive of ${release.id} ${release.codename}.`, {
      fix: 'Add the archive of your distribution to /etc/apt/sources.list, run apt-get update, and try again.',
    })
  }
  return [...components].map(([source, names]) => `${source} ${[...names].join(' ')}`)
}

/** How apt of this machine reaches its archives: proxies, certificates, retries. mmdebstrap starts without it. */
async function readAptTransport(signal: AbortSignal | undefined): Promise<string[]> {
  const names = ['Acquire::http', 'Acquire::https', 'Acquire::Retries', 'Acquire::Check-Valid-Until']
  const text = await runCommand('apt-config', ['dump', '--format', '%F "%v";%n', ...names], { timeoutMs: 30_000, signal })
  return text.split('\n').filter((line) => line !== '' && !line.endsWith(' "";'))
}

function explain(error: unknown): unknown {
  if (!(error instanceof CommandError)) return error
  const details = { stderr: error.stderr.slice(-4000) }
  if (/no space left/i.test(error.stderr)) return new ThawError('disk_full', undefined, { details, cause: error })
  if (error.notFound || /mmdebstrap: not found|‘mmdebstrap’|'mmdebstrap'/.test(error.stderr)) {
    return new ThawError('image_unavailable', 'Runtime images are built by mmdebstrap, which is not installed.', {
      fix: 'Run apt-get install mmdebstrap (`npm run bootstrap` does), or use image host or an OCI image.',
      cause: error,
    })
  }
  const missing = /(?:Unable to locate package (\S+)|Package '(\S+)' has no installation candidate)/.exec(error.stderr)
  if (missing !== null) {
    return new ThawError('image_unresolvable', `There is no package ${missing[1] ?? missing[2]} in the archives of this machine.`, {
      fix: 'Look for its name with `apt-cache search`; third-party archives and backports are left out.',
      details,
      cause: error,
    })
  }
  return new ThawError('image_unavailable', `The image could not be built: ${error.message}`, {
    fix: 'Check that `apt-get update` works on this machine, then try again; details has what mmdebstrap said.',
    details,
    cause: error,
  })
}
