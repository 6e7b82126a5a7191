import { appendFile, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { hash } from './cache.ts'
import { runCommand } from './command.ts'
import { buildDebianTree, readPackages, readRelease } from './debian.ts'
import { defaultPath, type ImageManifest } from './manifest.ts'
import { Tree } from './tree.ts'

export interface PackageContext {
  /** An empty folder; the result lies in its `rootfs`. */
  folder: string
  /** A folder for what is only needed while building. */
  temporary: string
  /** Bytes of all files, unpacked. */
  maxBytes: number
  onProgress: (step: string) => void
  signal?: AbortSignal | undefined
}

/** Raised with every change here that changes what is in an image: caches then build anew. */
const revision = 1
const prefix = 'apt:'
const maxEntries = 1_000_000

export const basePackages = ['ca-certificates', 'libstdc++6']

/**
 * The packages that `apt:postgresql,redis-server` names, sorted; null where the reference is of another kind. Throws
 * `image_unresolvable` for what cannot be names of packages.
 */
export function parsePackages(ref: string): string[] | null {
  if (!ref.startsWith(prefix)) return null
  const names = ref.slice(prefix.length).split(',')
  // Debian policy, 5.6.1. apt takes a - behind a name, or a + behind one that it does not know, as "remove" and "install".
  const wrong = names.find((name) => !/^[a-z0-9][a-z0-9+.-]*(?:[a-z0-9]|\+\+)$/.test(name))
  if (wrong !== undefined) {
    throw new ThawError('image_unresolvable', `${JSON.stringify(wrong.slice(0, 100))} is not the name of a Debian package.`, {
      fix: 'Write names separated by commas, without versions: apt:postgresql,redis-server.',
    })
  }
  return [...new Set(names)].sort()
}

/** What decides the content of an image of packages before it is built. The order of the names is no part of it. */
export async function packageKey(packages: readonly string[]): Promise<string> {
  const { id, codename } = await readRelease()
  return JSON.stringify({ name: prefix, revision, id, codename, arch: process.arch, packages })
}

/** Builds an image of Debian packages into `<folder>/rootfs` and describes it. */
export async function buildPackageImage(ref: string, packages: readonly string[], context: PackageContext): Promise<ImageManifest> {
  const rootfs = join(context.folder, 'rootfs')
  const tree = await unpackPackages([...new Set([...basePackages, ...packages])], rootfs, context)
  const installed = await readPackages(rootfs)
  return {
    ref,
    kind: 'runtime',
    digest: `sha256:${hash(JSON.stringify({ key: await packageKey(packages), installed }))}`,
    size_bytes: await sizeOf(rootfs, context.signal),
    created_at: new Date().toISOString(),
    config: { env: { PATH: defaultPath.join(':'), LANG: 'C.UTF-8' }, entrypoint: null, cmd: null, workdir: null, user: null },
    interpreters: {
      python: tree.findProgram(['python3'], defaultPath),
      node: tree.findProgram(['node', 'nodejs'], defaultPath),
      go: tree.findProgram(['go'], defaultPath),
    },
    packages: installed,
    binds: [],
  }
}

/** A root file system of packages, with the folders that containers mount over and the user that functions run as. */
export async function unpackPackages(
  packages: readonly string[],
  rootfs: string,
  { temporary, maxBytes, onProgress, signal }: Omit<PackageContext, 'folder'>,
): Promise<Tree> {
  await mkdir(rootfs, { mode: 0o755 })
  const tree = new Tree(rootfs, { maxBytes, maxEntries })
  await buildDebianTree({ packages, temporary, onProgress, signal }, async (tar) => {
    await tree.addLayer(tar, signal)
    await tree.addMountPoints()
  })
  // The ordinary user that functions run as. Nothing but /tmp is writable for it.
  await appendFile(join(rootfs, 'etc/passwd'), 'function:x:1000:1000:function:/tmp:/bin/sh\n')
  await appendFile(join(rootfs, 'etc/group'), 'function:x:1000:\n')
  return tree
}

export async function sizeOf(rootfs: string, signal: AbortSignal | undefined): Promise<number> {
  const text = await runCommand('du', ['--summarize', '--block-size=1', rootfs], { timeoutMs: 60_000, signal })
  return Number.parseInt(text, 10)
}
