import { createHash } from 'node:crypto'
import { chownSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { newId, ThawError } from '@thaw/protocol'
import { type CreateSpec, type Driver, idShift, insidePaths } from '../drivers/driver.ts'
import type { BuildLog } from './buildlog.ts'
import { builtPaths } from './launch.ts'
import { LineSplitter } from './lines.ts'
import type { ReadyImage } from './ports.ts'
import type { Version } from './version.ts'

export interface BuildOptions {
  /** What was built lies in `<dataDir>/builds/<key>`. */
  dataDir: string
  runtimesDir: string
  timeoutMs: number
  /** Given to every build: where the registries are, proxies. */
  env: Record<string, string>
  /** Certificates that builds trust; null: those of the image. */
  caFile: string | null
}

/** What has to be built for a version, and where the result belongs. */
interface Plan {
  /** Same key, same result: hash of everything that goes in. */
  key: string
  script: string
  /** Folder of the code, relative, that takes what the build left in its output folder. */
  target: string
  what: string
}

const outDir = '/thaw/out'
/** A folder of the build's own: with the process driver /tmp is that of the host. */
const workFolder = 'cd "$(mktemp -d)"'
const caPath = '/etc/ssl/certs/ca-certificates.crt'

/**
 * Installs dependencies and compiles, each time in a sandbox of its own: build scripts are code that nobody has
 * read. Results are kept by the hash of what went in.
 */
export class Builder {
  readonly #options: BuildOptions
  readonly #running = new Map<string, Promise<void>>()

  constructor(options: BuildOptions) {
    this.#options = options
  }

  /** Builds what the code in `codeDir` asks for, and returns what to copy where. Null: nothing is to be built. */
  async build(
    version: Version,
    codeDir: string,
    driver: Driver,
    image: ReadyImage,
    log: BuildLog,
    signal: AbortSignal,
  ): Promise<{ from: string; target: string; key: string } | null> {
    const plan = planOf(version, codeDir, image.digest, this.#options.runtimesDir)
    if (plan === null) return null
    const from = join(this.#options.dataDir, 'builds', plan.key)
    if (existsSync(from)) {
      log.line(`${plan.what}: unchanged, taken from the cache`)
      utimesSync(from, new Date(), new Date())
    } else {
      // The same dependencies asked for twice at once are built once.
      const running =
        this.#running.get(plan.key) ??
        this.#run(plan, codeDir, from, driver, image, version, log, signal).finally(() => this.#running.delete(plan.key))
      this.#running.set(plan.key, running)
      await running
    }
    return { from, target: plan.target, key: plan.key }
  }

  /** Removes results that no version refers to and that were last used before `before`, and what a crash left half-made. */
  collect(inUse: Set<string>, before: number): void {
    const dir = join(this.#options.dataDir, 'builds')
    if (!existsSync(dir)) return
    for (const name of readdirSync(dir)) {
      const path = join(dir, name)
      const stale = name.includes('.tmp-')
        ? !this.#running.has(name.split('.tmp-')[0] as string)
        : !inUse.has(name) && statSync(path).mtimeMs < before
      if (stale) rmSync(path, { recursive: true, force: true })
    }
  }

  async #run(
    plan: Plan,
    codeDir: string,
    target: string,
    driver: Driver,
    image: ReadyImage,
    version: Version,
    log: BuildLog,
    signal: AbortSignal,
  ): Promise<void> {
    const id = newId('sbx')
    const temporary = `${target}.tmp-${id}`
    mkdirSync(temporary, { recursive: true, mode: 0o755 })
    if (process.getuid?.() === 0) chownSync(temporary, idShift, idShift)
    const lines = new LineSplitter((line) => log.line(line))
    log.line(`${plan.what}: building`)
    try {
      const prepared = await driver.prepare(image.source)
      await driver.create(
        this.#spec(id, plan, codeDir, temporary, prepared, image.config?.env ?? {}, version, (bytes) => lines.push(bytes)),
        signal,
      )
      const exit = await withTimeout(driver.wait(id), this.#options.timeoutMs, signal)
      if (exit === null)
        throw new ThawError('build_failed', `The build took longer than ${this.#options.timeoutMs} ms and was ended.`, {
          details: { log: log.tail() },
        })
      if (exit.out_of_memory) throw new ThawError('build_failed', 'The build ran out of memory.', { details: { log: log.tail() } })
      if (exit.code !== 0) {
        throw new ThawError('build_failed', `${plan.what} failed with exit code ${exit.code ?? exit.signal}.`, {
          details: { log: log.tail() },
        })
      }
      await driver.destroy(id)
      renameSync(temporary, target)
    } finally {
      await driver.destroy(id)
      rmSync(temporary, { recursive: true, force: true })
    }
  }

  #spec(
    id: string,
    plan: Plan,
    codeDir: string,
    out: string,
    image: CreateSpec['image'],
    imageEnv: Record<string, string>,
    version: Version,
    onOutput: (bytes: Buffer) => void,
  ): CreateSpec {
    const onHost = version.config.driver === 'process'
    const ca = this.#options.caFile
    const caInside = ca === null ? undefined : onHost ? ca : caPath
    const mounts = [
      { source: codeDir, target: insidePaths.codeDir, readonly: true },
      { source: join(this.#options.runtimesDir, 'go'), target: '/thaw/go', readonly: true },
      { source: out, target: outDir, readonly: false },
    ]
    if (ca !== null && !onHost) mounts.push({ source: ca, target: caPath, readonly: true })
    return {
      id,
      image,
      argv: ['/bin/sh', '-eu', '-c', plan.script],
      env: {
        PATH: '/usr/local/sbin:/usr/local/go/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        LANG: 'C.UTF-8',
        HOME: '/tmp',
        ...imageEnv,
        CODE: insidePaths.codeDir,
        OUT: outDir,
        THAW_GO: '/thaw/go',
        ...(caInside === undefined ? {} : { SSL_CERT_FILE: caInside, PIP_CERT: caInside, NODE_EXTRA_CA_CERTS: caInside }),
        ...this.#options.env,
      },
      cwd: '/',
      mounts,
      resources: { memory_mib: 2048, cpus: 2, pids: 1024, tmp_mib: 1024 },
      network: 'egress',
      user: 'root',
      root: 'writable',
      ready: 'started',
      start_timeout_ms: 30_000,
      onOutput: (_source, bytes) => onOutput(bytes),
    }
  }
}

function planOf(version: Version, codeDir: string, imageDigest: string, runtimesDir: string): Plan | null {
  const { runtime } = version.config
  const text = (name: string) => (existsSync(join(codeDir, name)) ? readFileSync(join(codeDir, name), 'utf8') : null)
  const keyOf = (...parts: (string | null)[]) =>
    createHash('sha256')
      .update(JSON.stringify([runtime, imageDigest, process.arch, ...parts]))
      .digest('hex')
  if (runtime === 'python') {
    const requirements = text('requirements.txt')
    if (requirements === null || !/^\s*[^#\s]/m.test(requirements)) return null
    // Local paths in requirements refer to the code itself: then the code is part of what goes in.
    const local = /^\s*(\.|-e|-r|-c|file:)/m.test(requirements) ? version.codeDigest : null
    return {
      key: keyOf(requirements, local),
      script:
        'cd "$CODE"; python3 -m pip install --no-input --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-compile --target "$OUT" -r requirements.txt; python3 -m compileall -q "$OUT" || true',
      target: builtPaths.pythonPackages,
      what: 'requirements.txt',
    }
  }
  if (runtime === 'node') {
    const manifest = text('package.json')
    const lock = text('package-lock.json') ?? text('npm-shrinkwrap.json')
    if (manifest === null || existsSync(join(codeDir, 'node_modules')) || !hasDependencies(manifest)) return null
    const install = lock === null ? 'install' : 'ci'
    return {
      key: keyOf(manifest, lock),
      script: `${workFolder}; cp "$CODE"/package*.json "$CODE"/npm-shrinkwrap.json . 2>/dev/null || true; npm ${install} --omit=dev --no-audit --no-fund --no-update-notifier --cache ./.npm-cache; mkdir -p node_modules; cp -a node_modules/. "$OUT"`,
      target: 'node_modules',
      what: lock === null ? 'package.json' : 'package-lock.json',
    }
  }
  if (runtime === 'go') {
    return {
      key: keyOf(version.codeDigest, folderHash(join(runtimesDir, 'go'))),
      script: `${workFolder}; cp -r "$CODE/." .; chmod -R u+w .; [ -f go.mod ] || go mod init function; go mod edit -require=thaw@v0.0.0 "-replace=thaw=$THAW_GO"; CGO_ENABLED=0 GOFLAGS=-mod=mod GOTOOLCHAIN=local go build -trimpath -buildvcs=false -ldflags='-s -w' -o "$OUT/function" .`,
      target: '.thaw/bin',
      what: 'go build',
    }
  }
  return null
}

function hasDependencies(manifest: string): boolean {
  try {
    const { dependencies, optionalDependencies } = JSON.parse(manifest) as { dependencies?: object; optionalDependencies?: object }
    return Object.keys({ ...dependencies, ...optionalDependencies }).length > 0
  } catch {
    throw new ThawError('build_failed', 'package.json is not valid JSON.')
  }
}

function folderHash(dir: string): string {
  const hash = createHash('sha256')
  const entries = readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  for (const path of entries.map((entry) => join(entry.parentPath, entry.name)).sort()) hash.update(path).update(readFileSync(path))
  return hash.digest('hex')
}

/** Null when the time is over. */
function withTimeout<Value>(promise: Promise<Value>, timeoutMs: number, signal: AbortSignal): Promise<Value | null> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => resolve(null), timeoutMs)
    const abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
    promise.then(resolve, reject).finally(() => {
      clearTimeout(timer)
      signal.removeEventListener('abort', abort)
    })
    if (signal.aborted) abort()
  })
}
