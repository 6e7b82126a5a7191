import { join } from 'node:path'
import type { LoadMessage } from '@thaw/protocol'
import { type CreateSpec, insidePaths, type Prepared } from '../drivers/driver.ts'
import type { Version } from './version.ts'

/** How an instance of a version is started: the sandbox, and what its runtime is told to load. */
export interface Launch {
  spec: Omit<CreateSpec, 'id' | 'ready' | 'start_timeout_ms' | 'onOutput'>
  load: LoadMessage
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
  /** Environment that the platform adds, such as the paths of certificates. */
  platformEnv: Record<string, string>
}

/** Where a deploy puts what it built, below the code folder. */
export const builtPaths = { goBinary: '.thaw/bin/function', pythonPackages: '.thaw/python' } as const

const defaultPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** Which folder of `runtimes/` serves the version. */
function runtimeFolder(version: Version): 'python' | 'node' | 'custom' | null {
  const { runtime, contract } = version.config
  if (contract === 'stdio' || runtime === 'custom') return 'custom'
  return runtime === 'go' ? null : runtime
}

function runtimeArgv(version: Version): string[] {
  switch (runtimeFolder(version)) {
    case 'python':
      return ['python3', '-u', `${insidePaths.runtimeDir}/bootstrap.py`]
    case 'node':
      return ['node', `${insidePaths.runtimeDir}/bootstrap.mjs`]
    case 'custom':
      return [`${insidePaths.runtimeDir}/launcher`]
    case null:
      // A Go function is linked with its runtime.
      return [`${insidePaths.codeDir}/${builtPaths.goBinary}`]
  }
}

/** stdio: the program of a version that names none. */
export function defaultCommand(version: Version, codeDir: string): string[] {
  const { runtime, handler } = version.config
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

export function launchOf(version: Version, image: Prepared, places: LaunchPlaces): Launch {
  const { config } = version
  const folder = runtimeFolder(version)
  const mounts = []
  if (folder !== null) mounts.push({ source: join(places.runtimesDir, folder), target: insidePaths.runtimeDir, readonly: true })
  if (places.codeDir !== undefined) mounts.push({ source: places.codeDir, target: insidePaths.codeDir, readonly: true })
  // The process driver has no inside: the code lies where it lies on the host.
  const codeDir = config.driver === 'process' && places.codeDir !== undefined ? places.codeDir : places.insideCodeDir
  const base = { PATH: defaultPath, HOME: '/tmp', LANG: 'C.UTF-8', ...places.imageEnv, ...places.platformEnv }
  return {
    spec: {
      image,
      argv: runtimeArgv(version),
      env: { ...base, THAW_RUNTIME_SOCKET: insidePaths.runtimeSocket, THAW_RUNTIME_DIR: insidePaths.runtimeDir },
      cwd: folder === null ? insidePaths.codeDir : '/',
      mounts,
      resources: config.resources,
      network: config.network,
      user: 'function',
      root: 'readonly',
    },
    load: {
      function: version.functionName,
      version: String(version.number),
      contract: config.contract,
      handler: config.handler,
      ...(config.contract === 'stdio' ? { command: config.command ?? defaultCommand(version, codeDir) } : {}),
      code_dir: codeDir,
      env: { ...config.env, THAW_FUNCTION_NAME: version.functionName, THAW_FUNCTION_VERSION: String(version.number) },
      timeout_ms: config.timeout_ms,
      memory_mib: config.resources.memory_mib,
      concurrency: config.scaling.concurrency,
    },
  }
}
