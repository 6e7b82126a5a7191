import { type CreateSpec, insidePaths } from '../driver.ts'
import { seccompProfile } from '../seccomp.ts'
import type { EngineFacts } from './facts.ts'
import type { DeviceRequest } from './gpu.ts'
import { userOf } from './users.ts'

/** A mount as the engine takes it (Engine API, type Mount). */
export interface EngineMount {
  Type: 'bind' | 'volume'
  Source?: string
  Target: string
  ReadOnly: boolean
  BindOptions?: { Propagation: 'rprivate' }
  VolumeOptions?: { NoCopy: boolean; Labels: Record<string, string> }
}

/** What the configuration of a container needs to know beside the spec of the sandbox. */
export interface ContainerInput {
  spec: CreateSpec
  /** Reference of an image in the engine. */
  image: string
  labels: Record<string, string>
  mounts: EngineMount[]
  /** Name of the network, or `none`. */
  network: string
  readonlyRoot: boolean
  resolvers: readonly string[]
  devices: DeviceRequest[]
  facts: EngineFacts
  /** The folder of the sockets is in memory of the container instead of on this host. */
  ownRunDir: boolean
}

const mib = 1024 * 1024
const seccomp = `seccomp=${JSON.stringify(seccompProfile())}`

/** Of root inside, which may install packages; it never gets more than an engine gives by default. */
const rootCapabilities = ['CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'SETGID', 'SETUID', 'KILL']

/** The limits of a sandbox that the engine can also change while it runs. */
export function limitsOf(resources: CreateSpec['resources']) {
  const memory = resources.memory_mib * mib
  return { Memory: memory, MemorySwap: memory, PidsLimit: resources.pids, NanoCpus: Math.round(resources.cpus * 1e9) }
}

/** The body of POST /containers/create. */
export function containerConfig(input: ContainerInput): object {
  const { spec, facts } = input
  const tmp = `rw,exec,nosuid,nodev,mode=1777,size=${spec.resources.tmp_mib}m,nr_inodes=${Math.min(spec.resources.tmp_mib * 256, 262_144)}`
  const user = userOf(spec.user, facts)
  return {
    Image: input.image,
    Hostname: spec.id.slice(0, 63),
    User: `${user}:${user}`,
    Env: Object.entries(spec.env).map(([name, value]) => `${name}=${value}`),
    Entrypoint: [],
    Cmd: spec.argv,
    WorkingDir: spec.cwd,
    Labels: input.labels,
    // Whoever stops the engine does not wait for code that ignores its signals.
    StopTimeout: 1,
    HostConfig: {
      ...limitsOf(spec.resources),
      NetworkMode: input.network,
      Dns: input.network === 'none' ? [] : input.resolvers,
      ReadonlyRootfs: input.readonlyRoot,
      // It is not offered, and our filter knows the addresses of version 4 alone.
      ...(input.network === 'none' ? {} : { Sysctls: { 'net.ipv6.conf.all.disable_ipv6': '1' } }),
      CapDrop: ['ALL'],
      CapAdd: spec.user === 'root' ? rootCapabilities : [],
      SecurityOpt: ['no-new-privileges', seccomp],
      Privileged: false,
      Init: false,
      IpcMode: 'private',
      CgroupnsMode: 'private',
      // The kernel takes a sandbox before it takes a service of the host.
      OomScoreAdj: 500,
      ShmSize: spec.resources.tmp_mib * mib,
      Tmpfs: {
        // In a sandbox that people work in, /tmp is a folder like any other.
        ...(spec.ready === 'agent' ? {} : { '/tmp': tmp }),
        ...(input.ownRunDir ? { [insidePaths.runDir]: `rw,noexec,nosuid,nodev,size=1m,mode=0700,uid=${user},gid=${user}` } : {}),
      },
      Ulimits: [
        { Name: 'nofile', Soft: 1024, Hard: 16_384 },
        { Name: 'core', Soft: 0, Hard: 0 },
      ],
      // Output is read while it comes; kept by the engine it would fill the disk.
      LogConfig: { Type: 'none', Config: {} },
      RestartPolicy: { Name: 'no' },
      Mounts: input.mounts,
      ...(input.devices.length > 0 ? { DeviceRequests: input.devices } : {}),
    },
  }
}
