import { join } from 'node:path'
import type { LoadMessage, NetworkMode } from '@thaw/protocol'
import { insidePaths, type Prepared } from '../drivers/driver.ts'
import type { BootSpec } from './booted.ts'
import type { Version } from './version.ts'

/** A folder of `runtimes/`: whose files a sandbox is shown, and which program it starts with. */
export type RuntimeFolder = 'python' | 'node' | 'custom'

/** Where a sandbox that serves no function has its agent. */
export type AgentFolder = 'agent'

/** What makes one started sandbox as good as another for a version, before its code is given to it. */
export interface BootKind {
  folder: RuntimeFolder | AgentFolder
  network: NetworkMode
  /** The size of /tmp is fixed when a sandbox starts; its other limits are not. */
  tmp_mib: number
}

export interface LaunchPlaces {
  /** Host folder with one folder for each runtime's own files. */
  runtimesDir: string
  /** Host folder with the unpacked code of this version; undefined where the image brings the code. */
  codeDir: string | undefined
  /** Where the code lies inside: differs for images that bring it. */
  insideCodeDir: string
  /** What the image itself says its environment is. */
  imageEnv: Record<string, string>
}

/** Where a deploy puts what it built, below the code folder. */
export const builtPaths = { goBinary: '.thaw/bin/function', pythonPackages: '.thaw/python' } as const

export const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** Which folder of `runtimes/` serves the version. */
export function runtimeFolder(version: Version): RuntimeFolder | null {
  const { runtime, contract } = version.config
  if (contract !== 'handler' || runtime === 'custom') return 'custom'
  return runtime === 'go' ? null : runtime
}

const runtimeArgv: Record<RuntimeFolder, string[]> = {
  python: ['python3', '-u', `${insidePaths.runtimeDir}/bootstrap.py`],
  node: ['node', `${insidePaths.runtimeDir}/bootstrap.mjs`],
  custom: [`${insidePaths.runtimeDir}/launcher`],
}

/** What a version runs that names no command. */
export function defaultCommand(version: Version, codeDir: string): string[] {
  const { runtime, contract, handler } = version.config
  if (contract === 'custom' && runtime !== 'go') return ['./bootstrap']
  switch (runtime) {
    case 'python':
      return ['python3', '-u', handler]
    case 'node':
      return ['node', handler]
    case 'go':
      return [`${codeDir}/${builtPaths.goBinary}`]
    case 'custom':
      return [handler]
  }
}

/** Null: the version starts with a program of its own (Go functions are linked with their runtime). */
export function bootKindOf(version: Version): (BootKind & { folder: RuntimeFolder }) | null {
  const folder = runtimeFolder(version)
  return folder === null ? null : { folder, network: version.config.network, tmp_mib: version.config.resources.tmp_mib }
}

/** Limits of a sandbox that waits for its code; `bind` sets those of the version. */
export const pooledResources = { memory_mib: 128, cpus: 1, pids: 64 } as const

/** A sandbox that can be started before anybody knows for which version. */
export function pooledSpec(
  kind: BootKind & { folder: RuntimeFolder },
  image: Prepared,
  places: Pick<LaunchPlaces, 'runtimesDir' | 'imageEnv'>,
): BootSpec {
  return {
    ...bootSpec(runtimeArgv[kind.folder], image, places),
    mounts: [{ source: join(places.runtimesDir, kind.folder), target: insidePaths.runtimeDir, readonly: true }],
    slot: insidePaths.codeDir,
    resources: { ...pooledResources, tmp_mib: kind.tmp_mib },
    network: kind.network,
  }
}

function bootSpec(argv: string[], image: Prepared, places: Pick<LaunchPlaces, 'imageEnv'>) {
  return {
    image,
    argv,
    env: {
      PATH: defaultPath,
      HOME: '/tmp',
      LANG: 'C.UTF-8',
      ...places.imageEnv,
      THAW_RUNTIME_SOCKET: insidePaths.runtimeSocket,
      THAW_RUNTIME_DIR: insidePaths.runtimeDir,
      THAW_SECRETS_DIR: insidePaths.secretsDir,
    },
    cwd: '/',
    user: 'function',
    root: 'readonly',
  } as const
}

/** The process driver has no inside: there the code lies where it lies on the host. */
function codeDirInside(version: Version, places: LaunchPlaces): string {
  return version.config.driver === 'process' && places.codeDir !== undefined ? places.codeDir : places.insideCodeDir
}

/** The sandbox that an instance of a version is started in. */
export function specOf(version: Version, image: Prepared, places: LaunchPlaces): BootSpec {
  const { config } = version
  const folder = runtimeFolder(version)
  const mounts = []
  if (folder !== null) mounts.push({ source: join(places.runtimesDir, folder), target: insidePaths.runtimeDir, readonly: true })
  if (places.codeDir !== undefined) mounts.push({ source: places.codeDir, target: insidePaths.codeDir, readonly: true })
  const argv = folder === null ? [`${insidePaths.codeDir}/${builtPaths.goBinary}`] : runtimeArgv[folder]
  return { ...bootSpec(argv, image, places), mounts, resources: config.resources, network: config.network }
}

/** What the runtime is told to load; secrets are not in it yet. */
export function loadOf(version: Version, places: LaunchPlaces): LoadMessage {
  const { config } = version
  const codeDir = codeDirInside(version, places)
  return {
    function: version.functionName,
    version: String(version.number),
    contract: config.contract,
    handler: config.handler,
    ...(config.contract === 'handler' ? {} : { command: config.command ?? defaultCommand(version, codeDir) }),
    // The process driver has no network of its own, so any port may be taken there.
    ...(config.contract === 'http' ? { port: config.driver === 'process' ? 0 : 8080 } : {}),
    code_dir: codeDir,
    env: { ...config.env, THAW_FUNCTION_NAME: version.functionName, THAW_FUNCTION_VERSION: String(version.number) },
    timeout_ms: config.timeout_ms,
    memory_mib: config.resources.memory_mib,
    concurrency: config.scaling.concurrency,
  }
}
