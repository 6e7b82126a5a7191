// Makes a fresh checkout usable: npm packages, the programs that the default driver needs, the launcher and the agent.
// npm runs it before `start`, `test` and `bench`. It runs on any Node.js from 18 on, before npm packages exist, so it
// uses nothing but the standard library. When there is nothing to do, it says nothing.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, dirname, join } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { fileURLToPath } from 'node:url'
import { hasCriu, installCriu } from './criu.mjs'
import { canDownload } from './debian.mjs'
import { hasE2bPython, installE2bPython } from './e2b-python.mjs'
import { hasRunsc, installRunsc } from './runsc.mjs'

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const buildDir = join(root, '.build')
const declinedFile = join(buildDir, 'declined-packages')
const { env } = process

const inCi = Boolean(env.CI)
const forTests = inCi || env.npm_lifecycle_event === 'pretest'
const mayInstall = env.THAW_NO_INSTALL !== '1'

/** Debian packages by the program that shows that they are there, and what does not work without them. */
const programs = [
  { program: 'runc', package: 'runc', without: 'functions run without isolation (driver process)' },
  { program: 'ip', package: 'iproute2', without: 'containers have no network' },
  { program: 'nft', package: 'nftables', without: 'containers have no network' },
  { program: 'mkfs.ext4', package: 'e2fsprogs', without: 'sandboxes have no disks of their own, and may fill that of the host' },
  { program: 'losetup', package: 'mount', without: 'sandboxes have no disks of their own, and may fill that of the host' },
  { program: 'mmdebstrap', package: 'mmdebstrap', without: 'the images python, node and go cannot be built' },
  { program: 'skopeo', package: 'skopeo', without: 'OCI images cannot be used' },
  { program: 'go', package: 'golang-go', without: 'Go functions, programs with the stdio contract, and sandboxes cannot be run' },
]
const testPrograms = [
  { program: 'docker-registry', package: 'docker-registry', without: 'tests with a real registry cannot run' },
  { program: 'dockerd', package: 'docker.io', without: 'tests of the driver docker cannot run' },
  { program: 'ssh', package: 'openssh-client', without: 'tests of SSH cannot run' },
  { program: 'psql', package: 'postgresql-client', without: 'tests of remote development cannot run' },
  { program: 'redis-cli', package: 'redis-tools', without: 'tests of remote development cannot run' },
]

class Stop extends Error {}

function say(text) {
  console.error(`thaw: ${text}`)
}

function find(program) {
  // Programs for administrators are not on every PATH.
  for (const folder of [...(env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/local/go/bin']) {
    try {
      const path = join(folder, program)
      accessSync(path, constants.X_OK)
      if (statSync(path).isFile()) return path
    } catch {
      // Not here.
    }
  }
  return null
}

/** Runs a program in sight of the user; false when it fails. */
function run(program, args, options = {}) {
  const { status, error } = spawnSync(program, args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'], ...options })
  if (error) say(`${program}: ${error.message}`)
  return status === 0
}

// 1. npm packages

/** Whether node_modules holds what package-lock.json asks for; npm keeps its own account of what it installed. */
function hasNpmPackages() {
  const account = join(root, 'node_modules/.package-lock.json')
  if (!existsSync(account)) return false
  const wanted = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages
  const installed = JSON.parse(readFileSync(account, 'utf8')).packages
  return Object.entries(wanted).every(([path, { version, link, optional, peer }]) => {
    if (!path.startsWith('node_modules/') || link) return true
    // Optional ones are for other platforms.
    const found = installed[path]
    return found ? found.version === version : Boolean(optional || peer)
  })
}

function installNpmPackages() {
  if (hasNpmPackages()) return
  if (!mayInstall) {
    say('npm packages are missing or out of date, and THAW_NO_INSTALL forbids installing. Run: npm ci')
    return
  }
  say('installing npm packages')
  const quiet = ['--no-audit', '--no-fund', '--loglevel=error']
  const { status, stderr } = npm(['ci', ...quiet], 'pipe')
  // `npm ci` insists on packages for every other platform being in the lock file, also where the registry has none of
  // them. `npm install` leaves those out, and takes the same versions from the lock file for everything else.
  if (status !== 0 && /EUSAGE/.test(stderr)) {
    say('npm ci does not take package-lock.json as it is here; using npm install, with the versions in it')
    if (npm(['install', '--no-save', ...quiet], 'inherit').status !== 0) throw new Stop(npmFailed)
  } else if (status !== 0) {
    process.stderr.write(stderr)
    throw new Stop(npmFailed)
  }
  if (!existsSync(join(root, 'node_modules/node/bin/node'))) {
    throw new Stop(
      'npm did not install the pinned Node.js: its install script did not run. Allow scripts of the package "node" (npm config), then run npm ci.',
    )
  }
}

const npmFailed = 'npm packages could not be installed (see above). Check that this machine reaches the npm registry, then try again.'

/** The npm that runs this, or the one on PATH. */
function npm(args, stderr) {
  const [program, ...first] = env.npm_execpath ? [process.execPath, env.npm_execpath] : ['npm']
  const result = spawnSync(program, [...first, ...args], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'inherit', stderr] })
  if (result.error) throw new Stop(`npm cannot be run (${result.error.message}). Install Node.js with npm.`)
  return result
}

// 2. Programs of the system

function distribution() {
  const text = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : ''
  const field = (name) => new RegExp(`^${name}="?([^"\n]*)`, 'm').exec(text)?.[1] ?? ''
  return `${field('ID')} ${field('ID_LIKE')}`
}

async function installPrograms() {
  if (process.platform !== 'linux') return
  const missing = [...programs, ...(forTests ? testPrograms : [])].filter(({ program }) => find(program) === null)
  if (!existsSync('/etc/ssl/certs') && !existsSync('/etc/pki/tls/certs')) {
    missing.push({ program: 'ca-certificates', package: 'ca-certificates', without: 'registries cannot be reached' })
  }
  if (missing.length === 0) return
  const names = missing.map(({ package: name }) => name)
  const isDebian = /\b(debian|ubuntu)\b/.test(distribution()) && find('apt-get') !== null
  const isRoot = process.getuid() === 0
  const key = names.join(' ')
  if (isDebian && isRoot && mayInstall) {
    if (existsSync(declinedFile) && readFileSync(declinedFile, 'utf8') === key) return
    if (await agreed(missing)) {
      if (installDebianPackages(names)) return
      say('apt-get failed (see above); going on with what is there.')
    } else {
      mkdirSync(buildDir, { recursive: true })
      writeFileSync(declinedFile, key)
    }
  }
  describeMissing(missing, isDebian, isRoot)
}

/** CRIU has no package on most distributions that is new enough, so it comes a way of its own. */
async function provideCriu() {
  const missing = { program: 'criu', package: 'criu', without: 'memory snapshots and forks of sandboxes are not possible' }
  if (process.platform !== 'linux' || process.getuid() !== 0 || hasCriu()) return
  const told = join(buildDir, 'told-criu')
  if (existsSync(told)) return
  if (!mayInstall || !canDownload()) say('a recent CRIU is missing: without it, memory snapshots are not possible (docs/snapshots.md).')
  else if (await agreed([missing])) {
    say('installing CRIU, with its libraries, in /opt/thaw/criu (packages of Debian)')
    try {
      installCriu()
      return
    } catch (error) {
      say(`CRIU could not be installed (${error.message}); going on without memory snapshots.`)
      // A network that failed once may work the next time.
      return
    }
  }
  mkdirSync(buildDir, { recursive: true })
  writeFileSync(told, '')
}

/** gVisor is an engine by choice (`oci.engine`), so it comes where somebody asks for it, and for tests. */
function provideRunsc() {
  const asked = forTests || env.THAW_OCI__ENGINE === 'runsc'
  if (process.platform !== 'linux' || process.getuid() !== 0 || !asked || !mayInstall || hasRunsc()) return
  if (!canDownload()) return say('gVisor (runsc) of 2024 or newer is missing, and there is no package of it here; see gvisor.dev.')
  say('installing gVisor (runsc) in /opt/thaw/runsc (package of Debian)')
  try {
    installRunsc()
  } catch (error) {
    say(`gVisor could not be installed (${error.message}); the engine runsc cannot be used.`)
  }
}

async function agreed(missing) {
  if (inCi || !process.stdin.isTTY || !process.stderr.isTTY) return true
  say('some programs are missing:')
  for (const { package: name, without } of missing) say(`  ${name.padEnd(16)} without it, ${without}`)
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  const answer = await terminal.question('thaw: install them with apt-get now? [Y/n] ')
  terminal.close()
  return !/^n/i.test(answer.trim())
}

function installDebianPackages(names) {
  say(`installing ${names.join(', ')} (apt-get)`)
  const options = { env: { ...env, DEBIAN_FRONTEND: 'noninteractive', NEEDRESTART_SUSPEND: '1' } }
  run('apt-get', ['--quiet=2', 'update'], options)
  return withoutStarting(() => run('apt-get', ['--quiet=1', '--yes', '--no-install-recommends', 'install', ...names], options))
}

/**
 * Packages of services (docker.io, docker-registry) start them when they are installed. Tests start their own, and nobody
 * asked for one on this machine; policy-rc.d is how Debian is told so (invoke-rc.d(8)).
 */
function withoutStarting(install) {
  const policy = '/usr/sbin/policy-rc.d'
  if (existsSync(policy)) return install()
  writeFileSync(policy, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
  try {
    return install()
  } finally {
    rmSync(policy)
  }
}

/** Says what will not work, and what to type. Once: the same list again is known. */
function describeMissing(missing, isDebian, isRoot) {
  const key = missing.map(({ package: name }) => name).join(' ')
  const told = join(buildDir, 'told-missing')
  if (existsSync(told) && readFileSync(told, 'utf8') === key) return
  say('going on without some programs:')
  for (const { program, without } of missing) say(`  ${program.padEnd(16)} ${without}`)
  if (isDebian) say(`To install them: ${isRoot ? '' : 'sudo '}apt-get install ${key}`)
  else say(`To install them, use the package manager of your system (their names in Debian: ${key}).`)
  mkdirSync(buildDir, { recursive: true })
  writeFileSync(told, key)
}

// 3. The launcher

function buildLauncher() {
  const source = join(root, 'runtimes/custom')
  const files = [...listFiles(source), ...listFiles(join(root, 'runtimes/go/protocol'))].filter(
    (path) => /\.go$|\/go\.(mod|sum)$/.test(path) && !path.endsWith('_test.go'),
  )
  if (!files.some((path) => path.endsWith('.go'))) return
  const target = join(buildDir, 'runtimes/custom/launcher')
  const stamp = `${target}.sha256`
  const hash = createHash('sha256').update(process.arch)
  for (const path of files) hash.update(path.slice(root.length)).update('\0').update(readFileSync(path)).update('\0')
  const digest = hash.digest('hex')
  if (existsSync(target) && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) return

  const go = findGo(source)
  if (go === null) return
  say('building the launcher (Go)')
  mkdirSync(dirname(target), { recursive: true })
  const temporary = `${target}.${process.pid}`
  const args = ['build', '-trimpath', '-ldflags=-s -w', '-o', temporary, '.']
  const built = run(go, args, { cwd: source, env: { ...env, CGO_ENABLED: '0', GOOS: 'linux', GOFLAGS: '' } })
  if (!built) throw new Stop('the launcher could not be built (see above). It needs Go and, the first time, the Go module proxy.')
  renameSync(temporary, target)
  writeFileSync(stamp, digest)
}

// 4. The agent

/** The program that runs inside sandboxes, for every architecture that a worker may have. */
function buildAgent() {
  const source = join(root, 'agent')
  const files = listFiles(source).filter((path) => /\.go$|\/go\.(mod|sum)$/.test(path) && !path.endsWith('_test.go'))
  const hash = createHash('sha256')
  for (const path of files) hash.update(path.slice(source.length)).update('\0').update(readFileSync(path)).update('\0')
  const digest = hash.digest('hex')
  for (const arch of ['amd64', 'arm64']) {
    const target = join(buildDir, `agent/thaw-agent-linux-${arch}`)
    const stamp = `${target}.sha256`
    if (existsSync(target) && existsSync(stamp) && readFileSync(stamp, 'utf8') === digest) continue

    const go = findGo(source)
    if (go === null) return
    say(`building the agent for ${arch} (Go)`)
    mkdirSync(dirname(target), { recursive: true })
    const temporary = `${target}.${process.pid}`
    const args = ['build', '-trimpath', '-ldflags=-s -w', '-o', temporary, '.']
    const built = run(go, args, { cwd: source, env: { ...env, CGO_ENABLED: '0', GOOS: 'linux', GOARCH: arch, GOFLAGS: '' } })
    if (!built) throw new Stop('the agent could not be built (see above). It needs Go and, the first time, the Go module proxy.')
    renameSync(temporary, target)
    writeFileSync(stamp, digest)
  }
}

function listFiles(folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder, { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => (entry.isDirectory() ? listFiles(join(folder, entry.name)) : [join(folder, entry.name)]))
}

/** A go that is recent enough. From 1.21 on, go gets the toolchain that go.mod asks for by itself; older ones need help. */
function findGo(source) {
  const go = find('go')
  if (go === null) return null
  const wanted = /^go (\d+)\.(\d+)(?:\.(\d+))?/m.exec(readFileSync(join(source, 'go.mod'), 'utf8'))
  const has = /go(\d+)\.(\d+)/.exec(spawnSync(go, ['env', 'GOVERSION'], { cwd: tmpdir(), encoding: 'utf8' }).stdout)
  if (wanted === null || has === null || Number(has[2]) >= 21 || Number(has[2]) >= Number(wanted[2])) return go

  const version = `${wanted[1]}.${wanted[2]}.${wanted[3] ?? 0}`
  const folder = join(buildDir, `go-${version}`)
  const program = join(folder, 'bin/go')
  if (existsSync(program)) return program
  say(`downloading Go ${version}: ${go} is ${has[0]}, which is too old`)
  const cache = mkdtempSync(join(tmpdir(), 'thaw-go-'))
  try {
    const arch = process.arch === 'x64' ? 'amd64' : process.arch
    const module = `golang.org/toolchain@v0.0.1-go${version}.linux-${arch}`
    const options = { cwd: cache, encoding: 'utf8', env: { ...env, GOMODCACHE: cache, GOFLAGS: '-modcacherw', GO111MODULE: 'on' } }
    const { status, stdout, stderr } = spawnSync(go, ['mod', 'download', '-json', module], options)
    if (status !== 0)
      throw new Stop(`Go ${version} could not be downloaded: ${stderr || stdout}. Install Go ${wanted[1]}.${wanted[2]} or newer.`)
    installToolchain(JSON.parse(stdout).Dir, folder, arch)
  } finally {
    rmSync(cache, { recursive: true, force: true })
  }
  return program
}

/** What newer go commands do with a toolchain that they download: module archives carry no mode bits and no nested go.mod. */
function installToolchain(source, target, arch) {
  mkdirSync(buildDir, { recursive: true })
  for (const folder of ['src', 'src/cmd']) renameSync(join(source, folder, '_go.mod'), join(source, folder, 'go.mod'))
  run('chmod', ['-R', '+x', join(source, 'bin'), join(source, 'pkg/tool', `linux_${arch}`)])
  const temporary = `${target}.${process.pid}`
  run('cp', ['-a', source, temporary])
  renameSync(temporary, target)
}

// 5. What only tests need

function provideE2bPython() {
  if (!forTests || !mayInstall || hasE2bPython()) return
  say('installing the Python client e2b, for tests')
  try {
    installE2bPython()
  } catch (error) {
    say(`the Python client e2b could not be installed (${error.message}); its tests cannot run.`)
  }
}

try {
  installNpmPackages()
  await installPrograms()
  await provideCriu()
  provideRunsc()
  buildLauncher()
  buildAgent()
  provideE2bPython()
} catch (error) {
  if (!(error instanceof Stop)) throw error
  say(error.message)
  process.exitCode = 1
}
