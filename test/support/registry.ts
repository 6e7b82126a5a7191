import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { type Header, pack } from 'tar-stream'

export interface LayerEntry extends Partial<Header> {
  name: string
  content?: string | Buffer
}

export interface TestImage {
  layers: Buffer[]
  config?: Record<string, unknown>
  architecture?: string
}

export interface TestRegistry extends AsyncDisposable {
  /** 127.0.0.1:port */
  readonly address: string
  /** Where it keeps its files. */
  readonly dataDir: string
  /** Pushes an image as name:tag and gives the digest of its manifest. */
  push(reference: string, image: TestImage): Promise<string>
  /** Pushes an index of several images as name:tag and gives its digest. */
  pushIndex(reference: string, images: { digest: string; sizeBytes: number; architecture: string }[]): Promise<string>
  stop(): Promise<void>
}

/** Why tests with a real registry cannot run here, or null. */
export function registryMissing(): string | null {
  const path = (process.env.PATH ?? '').split(delimiter)
  const missing = ['docker-registry', 'skopeo'].filter((program) => !path.some((folder) => existsSync(join(folder, program))))
  if (process.getuid?.() !== 0) missing.push('root')
  return missing.length > 0 ? `${missing.join(', ')} missing` : null
}

/** One layer: a gzipped tar. */
export async function layer(...entries: LayerEntry[]): Promise<Buffer> {
  const tar = pack()
  for (const { content, ...header } of entries) {
    if (content === undefined && (header.type ?? 'file') !== 'file') tar.entry(header)
    else tar.entry(header, content ?? '')
  }
  tar.finalize()
  const parts: Buffer[] = []
  for await (const part of tar as unknown as AsyncIterable<Buffer>) parts.push(part)
  return gzipSync(Buffer.concat(parts))
}

/** The one user of a private registry, and the line of htpasswd(1) for it (bcrypt). */
export const registryUser = { name: 'reader', password: 'open sesame' }
const htpasswd = 'reader:$2b$04$uolSdFjXxcMOLYavQw9A0.F8zB1LG4xIscrdnfPtxZrwlCdvEg.w2'

/** Starts a real registry (docker-registry) on a free port of loopback; stop it, or dispose of it. `private`: for `registryUser` alone. */
export async function startRegistry(access: 'public' | 'private' = 'public'): Promise<TestRegistry> {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-registry-'))
  const dataDir = join(dir, 'data')
  const address = `127.0.0.1:${await freePort()}`
  const config = join(dir, 'config.yml')
  await writeFile(join(dir, 'htpasswd'), `${htpasswd}\n`)
  const auth = access === 'private' ? `auth: {htpasswd: {realm: test, path: ${join(dir, 'htpasswd')}}}\n` : ''
  await writeFile(
    config,
    `version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: ${dataDir}}, delete: {enabled: true}}\nhttp: {addr: "${address}"}\n${auth}`,
  )
  const child = spawn('docker-registry', ['serve', config], { stdio: ['ignore', 'ignore', 'pipe'] })
  const ended = once(child, 'close')
  const stop = async () => {
    child.kill('SIGTERM')
    await ended
    await rm(dir, { recursive: true, force: true })
  }
  let said = ''
  const listening = new Promise<void>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', () => reject(new Error(`docker-registry ended: ${said}`)))
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-8192)
      if (said.includes('listening on')) resolve()
    })
  })
  await listening.catch(async (error: unknown) => {
    await stop()
    throw error
  })

  const upload = async (reference: string, blobs: Buffer[], manifest: object): Promise<string> => {
    const layout = await mkdtemp(join(dir, 'layout-'))
    await writeLayout(layout, blobs, manifest)
    const digestFile = join(layout, 'digest')
    await run('skopeo', [
      '--insecure-policy',
      'copy',
      '--quiet',
      '--multi-arch=index-only',
      '--preserve-digests',
      '--dest-tls-verify=false',
      ...(access === 'private' ? ['--dest-creds', `${registryUser.name}:${registryUser.password}`] : []),
      `--digestfile=${digestFile}`,
      `oci:${layout}:image`,
      `docker://${address}/${reference}`,
    ])
    return (await readFile(digestFile, 'utf8')).trim()
  }

  return {
    address,
    dataDir,
    async push(reference, image) {
      const architecture = image.architecture ?? (process.arch === 'x64' ? 'amd64' : process.arch)
      const diffIds = image.layers.map((bytes) => sha256(bytes))
      const config = Buffer.from(
        JSON.stringify({ architecture, os: 'linux', config: image.config ?? {}, rootfs: { type: 'layers', diff_ids: diffIds } }),
      )
      return upload(reference, [config, ...image.layers], {
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.manifest.v1+json',
        config: descriptor('application/vnd.oci.image.config.v1+json', config),
        layers: image.layers.map((bytes) => descriptor('application/vnd.oci.image.layer.v1.tar+gzip', bytes)),
      })
    },
    async pushIndex(reference, images) {
      return upload(reference, [], {
        schemaVersion: 2,
        mediaType: 'application/vnd.oci.image.index.v1+json',
        manifests: images.map(({ digest, sizeBytes, architecture }) => ({
          mediaType: 'application/vnd.oci.image.manifest.v1+json',
          digest,
          size: sizeBytes,
          platform: { os: 'linux', architecture },
        })),
      })
    },
    stop,
    [Symbol.asyncDispose]: stop,
  }
}

/** An OCI image layout (image-layout.md of the OCI image specification) with one tagged manifest. */
async function writeLayout(folder: string, blobs: Buffer[], manifest: object): Promise<void> {
  await mkdir(join(folder, 'blobs/sha256'), { recursive: true })
  const bytes = Buffer.from(JSON.stringify(manifest))
  for (const blob of [...blobs, bytes]) await writeFile(join(folder, 'blobs/sha256', sha256(blob).slice('sha256:'.length)), blob)
  const mediaType = (manifest as { mediaType: string }).mediaType
  const entry = { ...descriptor(mediaType, bytes), annotations: { 'org.opencontainers.image.ref.name': 'image' } }
  await writeFile(join(folder, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [entry] }))
  await writeFile(join(folder, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
}

function descriptor(mediaType: string, bytes: Buffer): { mediaType: string; digest: string; size: number } {
  return { mediaType, digest: sha256(bytes), size: bytes.length }
}

export function sha256(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

async function run(program: string, args: string[]): Promise<void> {
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text
  })
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${said}`)
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}
