import { newId, type Probe, ThawError } from '@thaw/protocol'
import { type Engine, isUnreachable, statusOf } from './engine.ts'
import type { EngineFacts } from './facts.ts'
import type { BridgeNetwork } from './network.ts'
import { tryContainer } from './trial.ts'

/** What the driver finds out about an engine when it first speaks to it. */
interface Found {
  facts: EngineFacts
  shared: boolean
}

/** Asks the engine what it is, then runs a container to see whether all of it works. */
export async function probeDocker(engine: Engine, network: BridgeNetwork, open: () => Promise<Found>): Promise<Probe> {
  const probe: Probe = { usable: false, versions: {}, missing: [], warnings: [] }
  const lack = (what: string, fix: string) => probe.missing.push({ what, fix })
  // Images are unpacked with the owners that sandboxes need, which only root may set.
  if (process.getuid?.() !== 0) lack('root', 'Start the server as root; as another user only the process driver works.')
  try {
    const version = await engine.call<{ Version: string; ApiVersion: string }>('GET', '/version', { timeoutMs: 10_000 })
    probe.versions.docker = version.Version
    probe.versions.docker_api = version.ApiVersion
    if (olderThan(version.ApiVersion, 1, 41)) lack('Docker 20.10 or newer', `The engine is ${version.Version}: update it.`)
  } catch (error) {
    const unreachable = isUnreachable(error) !== null
    const { message, fix } = error as ThawError
    lack(unreachable ? `a Docker engine (${message.replace(/\.$/, '')})` : `an engine that answers (${message})`, fix)
  }
  if (probe.missing.length > 0) return probe
  try {
    const { facts, shared } = await open()
    describe(facts, shared, probe)
    if (probe.missing.length > 0) return probe
    await tryContainer(engine, facts)
    if (!(await network.canFilter(`thaw-probe-${newId('sbx')}`))) {
      probe.warnings.push(
        'Network "egress" is not filtered: this engine is not on this host, or nft is missing here. Sandboxes reach whatever the engine\'s host reaches, private networks and cloud metadata included. Filter there, or use network "none".',
      )
    }
    probe.usable = true
  } catch (error) {
    const { message, fix } = error instanceof ThawError ? error : { message: String(error), fix: '' }
    lack('a container that starts', `A trial container failed: ${message} ${statusOf(error) === null ? fix : ''}`.trim())
  }
  return probe
}

function describe({ info, remapBase, rootless }: EngineFacts, shared: boolean, probe: Probe): void {
  const lack = (what: string, fix: string) => probe.missing.push({ what, fix })
  const warn = (text: string) => probe.warnings.push(text)
  if (info.OSType !== 'linux') lack('an engine for Linux containers', `The engine runs ${info.OSType} containers: switch it.`)
  const architecture = process.arch === 'x64' ? 'x86_64' : 'aarch64'
  if (info.Architecture !== architecture)
    lack(`an engine for ${architecture}`, `The engine is for ${info.Architecture}; images of this machine do not run there.`)
  for (const [name, has] of [
    ['memory', info.MemoryLimit],
    ['pids', info.PidsLimit],
    ['cpu', info.CpuCfsQuota],
  ] as const) {
    if (has === false) lack(`cgroup controller ${name}`, "Enable it in the kernel command line of the engine's host.")
  }
  probe.versions.cgroup = `v${info.CgroupVersion ?? '1'}`
  const options = (info.SecurityOptions ?? []).join(' ')
  if (!options.includes('name=seccomp')) lack('seccomp in the engine', 'Use an engine and a kernel with seccomp.')
  if (info.SwapLimit === false) warn('Swap is not accounted for by the engine: a sandbox may use swap beyond its memory limit.')
  if (remapBase === null && !rootless) {
    warn(
      'The engine has no user namespaces: root inside a sandbox is root of its host, with most of its powers taken. Set "userns-remap": "default" in /etc/docker/daemon.json.',
    )
  }
  if (!options.includes('name=apparmor') && !options.includes('name=selinux'))
    warn('Neither AppArmor nor SELinux is active in the engine: one layer of defence less.')
  if (!shared) warn('The engine does not share files with this host: code is copied into each sandbox, which makes starts slower.')
}

function olderThan(version: string, major: number, minor: number): boolean {
  const [a = 0, b = 0] = version.split('.').map(Number)
  return a < major || (a === major && b < minor)
}
