import type { CreateSpec } from '../driver.ts'
import { idShift, idShiftRange, insidePaths } from '../driver.ts'
import { seccompProfile } from '../seccomp.ts'
import { cpuBandwidth } from './cgroup.ts'

/** What config needs to know beside the spec of the sandbox. */
export interface ConfigInput {
  spec: CreateSpec
  rootfs: string
  /** Host folder that holds the socket of the runtime. */
  runDir: string
  cgroupsPath: string
  /** Path of a prepared network namespace; undefined: a new one with nothing but loopback. */
  netns: string | undefined
  /** Whether the host can limit swap (v1 hosts may not account for it). */
  swapLimit: boolean
  /** rlimits above the server's own hard limit cannot be set without CAP_SYS_RESOURCE. */
  maxNofile: number
}

const functionUser = { uid: 1000, gid: 1000 }

/** /proc files that tell about the host or change it: hidden, or read-only. */
const maskedPaths = [
  'acpi',
  'asound',
  'interrupts',
  'kcore',
  'keys',
  'latency_stats',
  'sched_debug',
  'scsi',
  'timer_list',
  'timer_stats',
].map((name) => `/proc/${name}`)
const readonlyPaths = ['bus', 'fs', 'irq', 'sys', 'sysrq-trigger'].map((name) => `/proc/${name}`)

const seccomp = seccompProfile()

/** The `config.json` of an OCI bundle (opencontainers runtime-spec 1.0.2). */
export function ociConfig(input: ConfigInput): object {
  const { spec, rootfs, runDir, netns } = input
  const memoryBytes = spec.resources.memory_mib * 1024 * 1024
  const idMapping = [{ containerID: 0, hostID: idShift, size: idShiftRange }]
  const bind = (source: string, destination: string, readonly: boolean) => ({
    destination,
    type: 'bind',
    source,
    options: ['rbind', readonly ? 'ro' : 'rw', 'nosuid', 'nodev', 'rprivate'],
  })
  // Root inside may install packages while it builds; it never gets more than an engine gives by default.
  const capabilities =
    spec.user === 'root'
      ? [
          'CAP_CHOWN',
          'CAP_DAC_OVERRIDE',
          'CAP_FOWNER',
          'CAP_FSETID',
          'CAP_SETGID',
          'CAP_SETUID',
          'CAP_KILL',
          'CAP_NET_BIND_SERVICE',
          'CAP_SYS_CHROOT',
        ]
      : []
  return {
    ociVersion: '1.0.2',
    hostname: spec.id,
    root: { path: rootfs, readonly: spec.root === 'readonly' },
    process: {
      terminal: false,
      user: spec.user === 'root' ? { uid: 0, gid: 0 } : functionUser,
      args: spec.argv,
      env: Object.entries(spec.env).map(([name, value]) => `${name}=${value}`),
      cwd: spec.cwd,
      noNewPrivileges: true,
      capabilities: { bounding: capabilities, effective: capabilities, permitted: capabilities },
      rlimits: [
        { type: 'RLIMIT_NOFILE', hard: Math.min(input.maxNofile, 16_384), soft: Math.min(input.maxNofile, 1024) },
        { type: 'RLIMIT_CORE', hard: 0, soft: 0 },
      ],
    },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc', options: ['nosuid', 'noexec', 'nodev'] },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'noexec', 'strictatime', 'mode=755', 'size=64k'] },
      {
        destination: '/dev/shm',
        type: 'tmpfs',
        source: 'shm',
        options: ['nosuid', 'noexec', 'nodev', 'mode=1777', `size=${spec.resources.tmp_mib}m`, 'nr_inodes=4096'],
      },
      // Terminals: for sandboxes that people work in.
      ...(spec.ready === 'agent'
        ? [
            {
              destination: '/dev/pts',
              type: 'devpts',
              source: 'devpts',
              options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
            },
          ]
        : []),
      // For secrets as files, which must not come onto a disk: all images have this folder.
      ...(spec.ready === 'runtime'
        ? [
            {
              destination: '/run',
              type: 'tmpfs',
              source: 'tmpfs',
              options: [
                'nosuid',
                'nodev',
                'noexec',
                'mode=755',
                `uid=${functionUser.uid}`,
                `gid=${functionUser.gid}`,
                'size=8m',
                'nr_inodes=256',
              ],
            },
          ]
        : []),
      // In a sandbox that people work in, /tmp is a folder like any other.
      ...(spec.ready === 'agent'
        ? []
        : [
            {
              destination: '/tmp',
              type: 'tmpfs',
              source: 'tmpfs',
              options: [
                'nosuid',
                'nodev',
                'mode=1777',
                `size=${spec.resources.tmp_mib}m`,
                `nr_inodes=${Math.min(spec.resources.tmp_mib * 256, 262_144)}`,
              ],
            },
          ]),
      ...(spec.image.image.binds ?? []).map((mount) => bind(mount.source, mount.target, true)),
      ...spec.mounts.map((mount) => bind(mount.source, mount.target, mount.readonly)),
      bind(runDir, insidePaths.runDir, false),
    ],
    linux: {
      uidMappings: idMapping,
      gidMappings: idMapping,
      namespaces: [
        { type: 'user' },
        { type: 'pid' },
        { type: 'ipc' },
        { type: 'uts' },
        { type: 'mount' },
        { type: 'cgroup' },
        { type: 'network', ...(netns === undefined ? {} : { path: netns }) },
      ],
      cgroupsPath: input.cgroupsPath,
      resources: {
        memory: { limit: memoryBytes, ...(input.swapLimit ? { swap: memoryBytes } : {}) },
        pids: { limit: spec.resources.pids },
        cpu: cpuBandwidth(spec.resources.cpus),
      },
      seccomp,
      maskedPaths,
      readonlyPaths,
    },
  }
}
