import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { runCommand } from '../command.ts'

/** Where scripts/bootstrap.mjs puts CRIU, with the libraries that it needs. */
const prefix = '/opt/thaw/criu'
const systemFolders = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin']
/** Older ones cannot leave established TCP connections out, and from Linux 6.16 on those before 4.2 cannot keep any TCP socket. */
function wantedVersion(): number {
  const [major = 0, minor = 0] = release().split('.').map(Number)
  return major > 6 || (major === 6 && minor >= 16) ? 4.2 : 4
}

/** A CRIU that was found: how it is called, and where its knowledge of this kernel is kept. */
export interface Criu {
  /** Program and first arguments. */
  command: string[]
  version: string
  /**
   * A folder with `criu.kdat`, to be mounted on /run where CRIU runs. CRIU asks the kernel some forty questions at every
   * start (25 ms) unless it finds the answers there, and it writes them down only where /run is a tmpfs.
   */
  kernelFacts: string
}

/** Whether a CRIU is installed at all. Its version is looked at by `openCriu`. */
export function criuInstalled(): boolean {
  return candidates().length > 0
}

/** @returns what CRIU is here, or in words why there is none. */
export async function openCriu(dataDir: string): Promise<Criu | string> {
  let found = 'CRIU is not installed'
  for (const command of candidates()) {
    const version = await versionOf(command)
    if (version === null) found = `${command[0]} does not start`
    else if (Number.parseFloat(version) < wantedVersion())
      found = `CRIU ${version} is too old: ${wantedVersion().toFixed(1)} or newer is needed`
    else {
      try {
        return { command, version, kernelFacts: await gatherKernelFacts(dataDir, command, version) }
      } catch (error) {
        found = `CRIU does not work here: ${error instanceof Error ? error.message : String(error)}`
      }
    }
  }
  return found
}

/** What must be the same for a memory image to be restored. */
export function fingerprint(criu: Criu): Record<string, string> {
  const cpuinfo = readFileSync('/proc/cpuinfo', 'latin1')
  const features = /^(?:flags|Features)\s*:(.*)$/m.exec(cpuinfo)?.[1]?.trim() ?? ''
  return {
    arch: process.arch,
    kernel: release(),
    cpu: createHash('sha256').update(features.split(/\s+/).sort().join(' ')).digest('hex').slice(0, 16),
    criu: criu.version,
  }
}

function candidates(): string[][] {
  const libraries = existsSync(join(prefix, 'usr/lib'))
    ? readdirSync(join(prefix, 'usr/lib'), { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(prefix, 'usr/lib', entry.name))
    : []
  const own = libraries.flatMap((folder) => {
    const loader = readdirSync(folder).find((name) => name.startsWith('ld-linux'))
    return loader === undefined ? [] : [[join(folder, loader), '--library-path', folder, join(prefix, 'usr/sbin/criu')]]
  })
  return [...own, ...systemFolders.map((folder) => [join(folder, 'criu')])].filter((command) => existsSync(command.at(-1) as string))
}

async function versionOf(command: string[]): Promise<string | null> {
  const [program = '', ...args] = command
  const result = await runCommand(program, [...args, '--version'], { timeoutMs: 5_000 }).catch(() => null)
  return /^Version: (\S+)/m.exec(result?.stdout ?? '')?.[1] ?? null
}

/**
 * Keeps a sleeping process in an image and lets it go on. CRIU's own check asks the kernel for features only. All of it is in
 * namespaces that end with the script.
 */
const trial = `mount --bind "$1" /run && cd "$1" && shift && mkdir trial && exec </dev/null >/dev/null 2>&1 || exit 1
setsid sleep 60 & pid=$!
until read -r _ name _ </proc/$pid/stat && [ "$name" = '(sleep)' ]; do :; done
"$@" dump --tree $pid --images-dir trial --manage-cgroups=ignore >trial/log 2>&1 &&
"$@" restore --restore-detached --images-dir trial --manage-cgroups=ignore >trial/log 2>&1 &&
kill -9 $pid`

/** The answers hold until the next boot. CRIU is given a /run that it accepts, in a mount namespace that ends with it. */
async function gatherKernelFacts(dataDir: string, command: string[], version: string): Promise<string> {
  const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim()
  const parent = join(dataDir, 'oci', 'criu')
  const folder = join(parent, `${boot}-${version}`)
  if (existsSync(folder)) return folder
  // Sandboxes walk through the folder of the driver, which this may be the first to make.
  mkdirSync(join(dataDir, 'oci'), { recursive: true, mode: 0o711 })
  mkdirSync(parent, { recursive: true, mode: 0o700 })
  // It has its name when all of it has worked.
  const part = mkdtempSync(join(parent, 'trial-'))
  try {
    const check = `mount -t tmpfs tmpfs /run && "$@" check && cp /run/criu.kdat ${quote(part)}`
    await runCommand('unshare', ['--mount', 'sh', '-c', check, 'sh', ...command], { timeoutMs: 20_000 })
    const alone = ['--mount', '--net', '--pid', '--fork', '--mount-proc', '--kill-child']
    try {
      await runCommand('unshare', [...alone, 'sh', '-c', trial, 'sh', part, ...command], { timeoutMs: 20_000 })
    } catch (cause) {
      throw new Error(`a trial failed: ${complaints(readFileSync(join(part, 'trial', 'log'), 'utf8'))}`, { cause })
    }
    rmSync(join(part, 'trial'), { recursive: true })
    // Of an earlier boot, or another CRIU.
    for (const name of readdirSync(parent)) if (!name.startsWith('trial-')) rmSync(join(parent, name), { recursive: true, force: true })
    renameSync(part, folder)
  } finally {
    rmSync(part, { recursive: true, force: true })
  }
  return folder
}

/** A word of the shell's. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`
}

/** What a log of CRIU says went wrong, for details of an error. The rlimit line comes on every host without CAP_SYS_RESOURCE. */
export function complaints(log: string): string {
  const lines = log.split('\n').filter((line) => /Error|Warn|No space left/.test(line) && !/RLIMIT_NOFILE/.test(line))
  return (lines.length > 0 ? lines : log.trim().split('\n').slice(-5)).join('\n').slice(-2000)
}
