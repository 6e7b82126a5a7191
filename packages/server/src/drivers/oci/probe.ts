import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { newId, type Probe } from '@thaw/protocol'
import { runCommand } from '../command.ts'
import type { CreateSpec } from '../driver.ts'
import type { Cgroups } from './cgroup.ts'
import { ociConfig } from './config.ts'
import { criuInstalled } from './criu.ts'
import { runCommandOf } from './engine.ts'
import type { Gvisor } from './gvisor.ts'
import { gvisorConfig } from './gvisor-config.ts'
import type { Volume } from './volume.ts'

/** The hard limit of open files of this process; children cannot have more where raising it is not allowed. */
export function hardNofileLimit(): number {
  const match = /^Max open files\s+\d+\s+(\d+|unlimited)/m.exec(readFileSync('/proc/self/limits', 'latin1'))
  return match?.[1] === undefined || match[1] === 'unlimited' ? 1_048_576 : Number(match[1])
}

/** Versions with known ways out of a container are named; each line: fixed in, per series. */
const fixedRunc = ['1.3.6', '1.4.3', '1.5.0']

/** Looks for the engine and the tools beside it, then runs a container to see whether all of it works here. */
export async function probeOci(engine: string, cgroups: Cgroups, volume: Volume, gvisor: Gvisor | null): Promise<Probe> {
  const probe: Probe = { usable: false, versions: {}, missing: [], warnings: [] }
  const lack = (what: string, fix: string) => probe.missing.push({ what, fix })
  if (process.platform !== 'linux') lack('Linux', 'Containers need a Linux host.')
  if (process.getuid?.() !== 0) lack('root', 'Start the server as root; as another user only the process driver works.')
  const version = gvisor === null ? await engineVersion(engine) : gvisor.version
  if (version !== null) probe.versions[engine] = version
  if (gvisor !== null && !gvisor.recent)
    lack('runsc (gVisor) of 2024 or newer', 'On Debian `npm run bootstrap` as root installs it; for others see gvisor.dev.')
  else if (version === null) lack(engine, `Install it: apt-get install ${engine} (crun does as well)`)
  for (const name of cgroups.missing) lack(`cgroup controller ${name}`, 'Enable it in the kernel command line or in the parent cgroup.')
  probe.versions.cgroup = `v${cgroups.version}`
  if (!existsSync('/proc/self/ns/user')) lack('user namespaces', 'Use a kernel with CONFIG_USER_NS.')
  if (probe.missing.length > 0) return probe

  if (!cgroups.swapLimit) probe.warnings.push('Swap is not accounted for on this host: a sandbox may use swap beyond its memory limit.')
  if (engine === 'runc' && version !== null && olderThanFix(version)) {
    probe.warnings.push(
      `runc ${version} has known ways out of a container (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881, CVE-2026-41579), unless your distribution patched it; 1.3.6, 1.4.3, 1.5.0 and later do not.`,
    )
  }
  if (!existsSync('/sys/module/apparmor')) probe.warnings.push('AppArmor is not active on this host: one layer of defence less.')
  for (const [tool, name] of [
    ['ip', 'iproute2'],
    ['nft', 'nftables'],
  ] as const) {
    const found = await runCommand(tool, tool === 'ip' ? ['-V'] : ['--version']).catch(() => null)
    if (found === null) probe.warnings.push(`${tool} is missing: network "egress" cannot be used. apt-get install ${name}`)
    else probe.versions[tool] = /[\d.]{3,}/.exec(found.stdout)?.[0] ?? 'unknown'
  }
  if (gvisor !== null)
    probe.warnings.push(
      'gVisor keeps the memory of sandboxes, not of functions: those start without snapshots with this engine.',
      'With gVisor the API of files in sandboxes does not work yet: use commands (docs/architecture.md).',
    )
  else if (!criuInstalled())
    probe.warnings.push('CRIU is missing: snapshots keep files only, no memory. docs/snapshots.md says how to get it.')
  const noDisks = await volume.problem()
  if (noDisks !== null)
    probe.warnings.push(
      `Sandboxes cannot have disks of their own on this host, so they may fill its disk. Needed: loop devices, util-linux (losetup, mount), e2fsprogs (mkfs.ext4). ${noDisks}`,
    )
  // What fails once on a busy machine must not leave the server without isolation: only what fails twice counts.
  const attempt = () => tryContainer(engine, cgroups, gvisor)
  const problem = (await attempt()) === null ? null : await attempt()
  if (problem === null) probe.usable = true
  else lack('a container that starts', problem)
  return probe
}

async function engineVersion(engine: string): Promise<string | null> {
  const result = await runCommand(engine, ['--version'], { timeoutMs: 5_000 }).catch(() => null)
  return result === null ? null : (/version (\S+)/.exec(result.stdout)?.[1] ?? 'unknown')
}

function olderThanFix(version: string): boolean {
  const parts = (text: string) =>
    text
      .split(/[.+~-]/)
      .slice(0, 3)
      .map(Number)
  const [major = 0, minor = 0, patch = 0] = parts(version)
  const fix = fixedRunc.map(parts).find((candidate) => candidate[0] === major && candidate[1] === minor)
  if (fix !== undefined) return patch < (fix[2] ?? 0)
  return major < 1 || (major === 1 && minor < 3)
}

/** Runs `true` of the host in a container with every limit and namespace that sandboxes use. Null: it worked. */
async function tryContainer(engine: string, cgroups: Cgroups, gvisor: Gvisor | null): Promise<string | null> {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-probe-'))
  // Several servers of one process may look at the same time.
  const id = `thaw-probe-${newId('sbx')}`
  const cgroupsPath = `/thaw/${id}`
  try {
    const rootfs = join(dir, 'rootfs')
    for (const name of ['proc', 'dev', 'tmp', 'usr', 'thaw/run']) mkdirSync(join(rootfs, name), { recursive: true })
    for (const name of ['bin', 'lib', 'lib64', 'sbin']) symlinkSync(`usr/${name}`, join(rootfs, name))
    mkdirSync(join(dir, 'run'))
    // The user namespace maps root to a user that must be able to walk here.
    await runCommand('chmod', ['-R', 'go+rX', dir])
    const spec: CreateSpec = {
      id,
      image: { image: { kind: 'host', digest: 'probe', path: rootfs, binds: [{ source: '/usr', target: '/usr' }] } },
      argv: ['/usr/bin/true'],
      env: {},
      cwd: '/',
      mounts: [],
      resources: { memory_mib: 128, cpus: 1, pids: 64, tmp_mib: 1 },
      network: 'none',
      user: 'function',
      root: 'readonly',
      ready: 'started',
      start_timeout_ms: 10_000,
    }
    const config = (gvisor === null ? ociConfig : gvisorConfig)({
      spec,
      rootfs,
      runDir: join(dir, 'run'),
      cgroupsPath,
      netns: undefined,
      swapLimit: cgroups.swapLimit,
      maxNofile: hardNofileLimit(),
    })
    writeFileSync(join(dir, 'config.json'), JSON.stringify(config))
    gvisor?.prepareGroup(cgroupsPath, spec.resources)
    const [program = '', ...words] =
      gvisor === null
        ? runCommandOf(engine, join(dir, 'state'), dir)
        : [...gvisor.starter(spec, cgroupsPath, join(dir, 'engine.log')), 'run']
    await runCommand(program, [...words, '--bundle', dir, id], { timeoutMs: 10_000 })
    return null
  } catch (error) {
    return `A trial container failed: ${error instanceof Error ? error.message : String(error)}`
  } finally {
    if (gvisor === null) await runCommand(engine, ['--root', join(dir, 'state'), 'delete', '--force', id]).catch(() => undefined)
    else await gvisor.forget(id, cgroupsPath)
    cgroups.remove(cgroupsPath)
    rmSync(dir, { recursive: true, force: true })
  }
}
