import { insidePaths } from '../driver.ts'
import { type ConfigInput, ociConfig } from './config.ts'

interface Bundle {
  mounts: { destination: string }[]
  linux: { namespaces: { type: string }[] } & Record<string, unknown>
}

/**
 * The `config.json` of a bundle as runsc takes it. gVisor is the filter of system calls and hides the host's /proc by having one
 * of its own; the control group is ours to manage.
 */
export function gvisorConfig(input: ConfigInput): object {
  const config = ociConfig(input) as Bundle
  const {
    seccomp: _seccomp,
    resources: _resources,
    cgroupsPath: _path,
    maskedPaths: _masked,
    readonlyPaths: _read,
    ...linux
  } = config.linux
  // The socket of an agent stays inside: one that is bound on the host cannot be part of a snapshot.
  const runFolder = {
    destination: insidePaths.runDir,
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'nodev', 'noexec', 'mode=700', 'size=1m'],
  }
  return {
    ...config,
    mounts: config.mounts.map((mount) => (mount.destination === insidePaths.runDir && input.spec.ready === 'agent' ? runFolder : mount)),
    linux: { ...linux, namespaces: linux.namespaces.filter(({ type }) => type !== 'cgroup') },
  }
}
