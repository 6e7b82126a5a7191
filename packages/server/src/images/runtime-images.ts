import { chmod, copyFile, mkdir, readdir, rename, rm, symlink } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { hash } from './cache.ts'
import { CommandError, runCommand } from './command.ts'
import { readPackages, readRelease } from './debian.ts'
import { shiftId } from './idshift.ts'
import { defaultPath, type ImageManifest } from './manifest.ts'
import { basePackages, sizeOf, unpackPackages } from './package-images.ts'

export const runtimeImages = ['python', 'node', 'go'] as const
export type RuntimeImage = (typeof runtimeImages)[number]
/** `base` is what node and go images begin with. */
export type RecipeName = RuntimeImage | 'base'

export interface BuildContext {
  /** An empty folder; the result lies in its `rootfs`. */
  folder: string
  /** A folder for what is only needed while building. */
  temporary: string
  /** The binary that node images get. */
  nodeBinary: string
  /** The root file system of the image `base`. */
  base: () => Promise<string>
  onProgress: (step: string) => void
  signal?: AbortSignal | undefined
}

/** Raised with every change here that changes what is in an image: caches then build anew. */
const revision = 3
const npmVersion = '11.19.1'
const goVersion = '1.26.8'

const packages: Record<RecipeName, string[]> = {
  base: basePackages,
  // pip and venv are for the build sandbox, which installs dependencies from within the same image.
  python: [...basePackages, 'python3', 'python3-pip', 'python3-venv'],
  node: [],
  go: [],
}

const goRoot = '/usr/local/go'
const goPath = `${goRoot}/bin`
const goCache = '/usr/local/go-cache'
const compiledPackages = [
  'net/http',
  'encoding/json',
  'database/sql',
  'html/template',
  'text/template',
  'log/slog',
  'os/exec',
  'crypto/sha256',
  'encoding/csv',
  'encoding/xml',
  'compress/gzip',
  'archive/zip',
  'image/png',
  'math/rand/v2',
  'regexp',
  'testing',
]
const downloadTimeoutMs = 10 * 60_000
const maxBytes = 8 * 1024 ** 3

/** What decides the content of an image before it is built. The same key: the same recipe on the same distribution. */
export async function recipeKey(name: RecipeName, nodeBinary: string): Promise<string> {
  const { id, codename } = await readRelease()
  const node = name === 'node' ? await versionOf(nodeBinary) : ''
  return JSON.stringify({ name, revision, id, codename, arch: process.arch, packages: packages[name], node, npmVersion, goVersion })
}

/** Builds a runtime image into `<folder>/rootfs` and describes it. */
export async function buildRuntimeImage(name: RecipeName, context: BuildContext): Promise<ImageManifest> {
  const rootfs = join(context.folder, 'rootfs')
  let parts: string[] = []
  if (packages[name].length === 0) parts = await buildFromBase(name, rootfs, context)
  else await unpackPackages(packages[name], rootfs, { ...context, maxBytes })
  const installed = await readPackages(rootfs)
  const interpreters = {
    python: name === 'python' ? '/usr/bin/python3' : null,
    node: name === 'node' ? '/usr/bin/node' : null,
    go: name === 'go' ? `${goPath}/go` : null,
  }
  for (const program of Object.values(interpreters)) if (program !== null) await checkProgram(rootfs, program, context.signal)
  const path = [...(name === 'go' ? [goPath] : []), ...defaultPath].join(':')
  return {
    ref: name,
    kind: 'runtime',
    digest: `sha256:${hash(JSON.stringify({ key: await recipeKey(name, context.nodeBinary), installed, parts }))}`,
    size_bytes: await sizeOf(rootfs, context.signal),
    created_at: new Date().toISOString(),
    config: {
      env: { PATH: path, LANG: 'C.UTF-8', ...(name === 'go' ? { GOROOT: goRoot, GOCACHE: goCache } : {}) },
      entrypoint: null,
      cmd: null,
      workdir: null,
      user: null,
    },
    interpreters,
    packages: installed,
    binds: [],
  }
}

/** The pinned Node.js of this installation, or else the one that runs this program. */
export function defaultNodeBinary(): string {
  try {
    return createRequire(import.meta.url).resolve('node/bin/node')
  } catch {
    return process.execPath
  }
}

/** Adds a toolchain to a copy of the base image; gives what identifies the toolchain. */
async function buildFromBase(name: RecipeName, rootfs: string, context: BuildContext): Promise<string[]> {
  const base = await context.base()
  context.onProgress('copying the base image')
  await runCommand('cp', ['--archive', '--reflink=auto', base, rootfs], { timeoutMs: downloadTimeoutMs, signal: context.signal })
  return name === 'node' ? addNode(rootfs, context) : addGo(rootfs, context)
}

async function addNode(rootfs: string, context: BuildContext): Promise<string[]> {
  const node = join(rootfs, 'usr/bin/node')
  await copyFile(context.nodeBinary, node)
  await chmod(node, 0o755)

  context.onProgress(`downloading npm ${npmVersion}`)
  const answer = await fetchToolchain('npm', ['pack', `npm@${npmVersion}`, '--json', '--pack-destination', context.temporary], context)
  const [packed] = JSON.parse(answer) as { filename: string; integrity: string }[]
  if (packed === undefined) throw new Error('npm pack named no file')
  const modules = join(rootfs, 'usr/lib/node_modules')
  const npm = join(modules, 'npm')
  await mkdir(npm, { recursive: true, mode: 0o755 })
  await runCommand(
    'tar',
    ['--extract', '--gzip', '--no-same-owner', '--strip-components=1', '-C', npm, '-f', join(context.temporary, packed.filename)],
    { timeoutMs: downloadTimeoutMs, signal: context.signal },
  )
  await symlink('../lib/node_modules/npm/bin/npm-cli.js', join(rootfs, 'usr/bin/npm'))
  await symlink('../lib/node_modules/npm/bin/npx-cli.js', join(rootfs, 'usr/bin/npx'))
  await giveToRoot([node, modules, join(rootfs, 'usr/bin/npm'), join(rootfs, 'usr/bin/npx')], context)
  return [packed.integrity]
}

/** The toolchain is a module (go.dev/ref/mod#toolchains, go.dev/doc/toolchain), so the go client of any version gets it, verified. */
async function addGo(rootfs: string, context: BuildContext): Promise<string[]> {
  const arch = process.arch === 'x64' ? 'amd64' : process.arch
  const module = `golang.org/toolchain@v0.0.1-go${goVersion}.linux-${arch}`
  context.onProgress(`downloading Go ${goVersion}`)
  const answer = await fetchToolchain(
    'env',
    [
      `GOMODCACHE=${context.temporary}`,
      'GOFLAGS=-modcacherw',
      'GOTOOLCHAIN=local',
      'GO111MODULE=on',
      'go',
      'mod',
      'download',
      '-json',
      module,
    ],
    context,
  )
  const found = JSON.parse(answer) as { Dir: string; Sum: string }
  const target = join(rootfs, 'usr/local/go')
  await rename(found.Dir, target)
  // What the go command itself does with a toolchain that it downloads (cmd/go/internal/toolchain): module archives
  // carry no mode bits and no nested go.mod files.
  for (const folder of ['src', 'src/cmd']) await rename(join(target, folder, '_go.mod'), join(target, folder, 'go.mod'))
  const tools = join(target, 'pkg/tool', `linux_${arch}`)
  for (const folder of [join(target, 'bin'), tools]) {
    for (const file of await readdir(folder)) await chmod(join(folder, file), 0o755)
  }
  await runCommand('find', [join(target, 'src'), '-name', 'testdata', '-prune', '-exec', 'rm', '-rf', '{}', '+'], { timeoutMs: 60_000 })
  await rm(join(target, 'doc'), { recursive: true, force: true })
  await compileStandardLibrary(rootfs, context)
  await giveToRoot([target, join(rootfs, goCache)], context)
  return [found.Sum]
}

/**
 * Every build begins with a cache in which the packages that nearly every program uses are compiled already, with the flags
 * of our builds: a build has seconds to do instead of many. What it adds goes with its sandbox.
 */
async function compileStandardLibrary(rootfs: string, context: BuildContext): Promise<void> {
  context.onProgress('compiling the standard library of Go')
  const root = join(rootfs, goRoot)
  const env = [
    `GOROOT=${root}`,
    `GOCACHE=${join(rootfs, goCache)}`,
    'CGO_ENABLED=0',
    'GOTOOLCHAIN=local',
    'GOFLAGS=',
    'HOME=/nonexistent',
    'PATH=/usr/local/bin:/usr/bin:/bin',
  ]
  await runCommand('env', ['-i', ...env, join(root, 'bin/go'), 'build', '-trimpath', '-buildvcs=false', ...compiledPackages], {
    timeoutMs: 600_000,
    cwd: context.temporary,
    signal: context.signal,
  })
}

/** Runs an ordinary client of a package registry; what it lacks or cannot reach is `image_unavailable`. */
async function fetchToolchain(program: string, args: string[], context: BuildContext): Promise<string> {
  try {
    return await runCommand(program, args, { timeoutMs: downloadTimeoutMs, cwd: context.temporary, signal: context.signal })
  } catch (error) {
    if (!(error instanceof CommandError)) throw error
    const client = program === 'env' ? 'go' : program
    const why = error.notFound ? 'is not installed.' : `failed: ${error.message}`
    throw new ThawError('image_unavailable', `The image needs a download by ${client}, which ${why}`, {
      fix: `Check that ${client} is installed and reaches its registry from this machine, then try again.`,
      details: { stderr: error.stderr.slice(-4000) },
      cause: error,
    })
  }
}

async function giveToRoot(paths: string[], context: BuildContext): Promise<void> {
  const owner = `${shiftId(0)}:${shiftId(0)}`
  await runCommand('chmod', ['--recursive', 'u=rwX,go=rX', ...paths], { timeoutMs: downloadTimeoutMs, signal: context.signal })
  await runCommand('chown', ['--recursive', '--no-dereference', owner, ...paths], { timeoutMs: downloadTimeoutMs, signal: context.signal })
}

/** An interpreter that does not start makes a broken image: better to know now. As the user that functions run as. */
async function checkProgram(rootfs: string, program: string, signal: AbortSignal | undefined): Promise<void> {
  const args = program.endsWith('/go') ? ['version'] : ['--version']
  const user = shiftId(1000)
  // Without /proc, go does not find its root by itself; without a home, nothing can write into the image.
  const env = ['/usr/bin/env', '-i', `GOROOT=${goRoot}`, 'HOME=/nonexistent']
  await runCommand('chroot', [`--userspec=+${user}:+${user}`, rootfs, ...env, program, ...args], { timeoutMs: 30_000, signal }).catch(
    (error: unknown) => {
      const message = `The image was built, but ${program} does not start in it: ${(error as Error).message}`
      throw new ThawError('image_unavailable', message, { cause: error })
    },
  )
}

async function versionOf(binary: string): Promise<string> {
  return (await runCommand(binary, ['--version'], { timeoutMs: 30_000 })).trim()
}
