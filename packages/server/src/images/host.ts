import { constants, existsSync } from 'node:fs'
import { access, chmod, cp, lchown, lstat, mkdir, readdir, readFile, readlink, realpath, stat, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { hash } from './cache.ts'
import { shiftId } from './idshift.ts'
import { defaultPath, type ImageManifest, type Interpreters } from './manifest.ts'

export interface HostOptions {
  /** Shown at /thaw/bin/node. */
  nodeBinary: string
  /** More folders of this machine to show, such as /opt/toolchains. */
  folders: readonly string[]
}

/** What programs of this machine are made of. Nothing of /home, /root, /var, /srv, /opt or /etc is shown. */
const toolFolders = ['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32']

/** Public configuration that programs need, copied; never a key, a password or a name of the network. */
const copiedFiles = [
  '/etc/ld.so.cache',
  '/etc/ld.so.conf',
  '/etc/localtime',
  '/etc/timezone',
  '/etc/protocols',
  '/etc/services',
  '/etc/mime.types',
  '/etc/os-release',
  '/etc/debian_version',
  '/etc/ssl/openssl.cnf',
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
]
const copiedFolders = ['/etc/alternatives', '/etc/ld.so.conf.d']

const nodeInside = '/thaw/bin/node'
const searchPath = ['/thaw/bin', '/usr/local/go/bin', ...defaultPath]

const writtenFiles: Record<string, string> = {
  '/etc/passwd':
    'root:x:0:0:root:/root:/bin/sh\nfunction:x:1000:1000:function:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n',
  '/etc/group': 'root:x:0:\nfunction:x:1000:\nnogroup:x:65534:\n',
  '/etc/hosts': '127.0.0.1\tlocalhost\n::1\tlocalhost\n',
  '/etc/hostname': 'localhost\n',
  '/etc/resolv.conf': '',
  '/etc/nsswitch.conf': 'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n',
  // A place to mount the binary over.
  [nodeInside]: '',
}
const emptyFolders = ['dev', 'proc', 'sys', 'tmp', 'run', 'root', 'home', 'var/tmp', 'function', 'thaw/runtime', 'thaw/run']

/**
 * Describes the image `host`: this machine's own toolchains, shown read-only over a small tree with an /etc of its own.
 * The digest changes when the machine does: packages, libraries, interpreters, folders or what is copied.
 */
export async function describeHost(options: HostOptions): Promise<ImageManifest> {
  const binds: ImageManifest['binds'] = []
  for (const folder of [...toolFolders, ...options.folders]) {
    // Links, such as /bin → usr/bin, are part of the tree itself.
    if (existsSync(folder) && !(await isLink(folder))) binds.push({ source: folder, target: folder })
  }
  binds.push({ source: options.nodeBinary, target: nodeInside })
  const interpreters: Interpreters = {
    python: await findProgram(['python3'], binds),
    node: nodeInside,
    go: await findProgram(['go'], binds),
  }
  const path = searchPath.filter((folder) => folder === '/thaw/bin' || existsSync(folder)).join(':')
  const facts = [binds, interpreters, path, writtenFiles, await fingerprint([options.nodeBinary, ...Object.values(interpreters)])]
  return {
    ref: 'host',
    kind: 'host',
    digest: `sha256:${hash(JSON.stringify(facts))}`,
    size_bytes: 0,
    created_at: new Date().toISOString(),
    config: { env: { PATH: path, LANG: 'C.UTF-8' }, entrypoint: null, cmd: null, workdir: null, user: null },
    interpreters,
    packages: [],
    binds,
  }
}

/** Makes the tree that the folders of the host are mounted into. */
export async function buildHostTree(rootfs: string, manifest: ImageManifest): Promise<void> {
  await makeFolder(rootfs)
  for (const folder of emptyFolders) await makeFolder(join(rootfs, folder))
  for (const folder of ['tmp', 'var/tmp']) await chmod(join(rootfs, folder), 0o1777)
  for (const folder of toolFolders) {
    if (await isLink(folder)) await symlink(await readlink(folder), join(rootfs, folder))
  }
  for (const { source, target } of manifest.binds) {
    if ((await stat(source)).isDirectory()) await makeFolder(join(rootfs, target))
  }
  for (const [path, text] of Object.entries(writtenFiles)) {
    await makeFolder(join(rootfs, dirname(path)))
    await writeFile(join(rootfs, path), text, { mode: 0o644 })
  }
  for (const path of [...copiedFiles, ...copiedFolders]) {
    if (!existsSync(path)) continue
    await makeFolder(join(rootfs, dirname(path)))
    // Files are often links to places that are not shown: their content counts. Links of alternatives stay links.
    const links = copiedFolders.includes(path) ? { verbatimSymlinks: true } : { dereference: true }
    await cp(path, join(rootfs, path), { recursive: true, ...links })
  }
  await own(rootfs)
}

/** Folders are readable by everyone whatever the umask is. */
async function makeFolder(path: string): Promise<void> {
  if (existsSync(path)) return
  await makeFolder(dirname(path))
  await mkdir(path)
  await chmod(path, 0o755)
}

/** Gives the tree to root of the sandbox, where this process may; as another user it stays ours, and readable. */
async function own(path: string): Promise<void> {
  const found = await lstat(path)
  if (process.getuid?.() === 0) await lchown(path, shiftId(0), shiftId(0))
  if (found.isFile()) await chmod(path, 0o644)
  if (!found.isDirectory()) return
  for (const name of await readdir(path)) await own(join(path, name))
}

async function findProgram(names: string[], binds: ImageManifest['binds']): Promise<string | null> {
  for (const folder of searchPath) {
    for (const name of names) {
      const path = join(folder, name)
      try {
        await access(path, constants.X_OK)
        const real = await realpath(path)
        // A link that leads to a folder that is not shown is no use inside.
        if (binds.some(({ source }) => real.startsWith(`${source}/`))) return path
      } catch {
        // Not here.
      }
    }
  }
  return null
}

/** Changes with the files named and with what the machine has installed. */
async function fingerprint(programs: (string | null)[]): Promise<string[]> {
  const facts: string[] = []
  for (const path of [
    ...programs,
    '/var/lib/dpkg/status',
    '/var/lib/rpm',
    '/lib/apk/db/installed',
    '/usr/bin',
    '/usr/lib',
    '/usr/local/bin',
  ]) {
    if (path === null) continue
    const found = await stat(path).catch(() => null)
    if (found !== null) facts.push(`${path} ${found.size} ${found.mtimeMs}`)
  }
  for (const path of copiedFiles) {
    const content = await readFile(path).catch(() => null)
    if (content !== null) facts.push(`${path} ${hash(content.toString('latin1'))}`)
  }
  return facts
}

async function isLink(path: string): Promise<boolean> {
  return lstat(path).then(
    (found) => found.isSymbolicLink(),
    () => false,
  )
}
