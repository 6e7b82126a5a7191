import { createReadStream } from 'node:fs'
import { mkdir, open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable, Transform } from 'node:stream'
import { createGunzip, createZstdDecompress } from 'node:zlib'
import { ThawError } from '@thaw/protocol'
import { z } from 'zod'
import { defaultPath, type ImageConfig, type ImageManifest } from './manifest.ts'
import type { Reference } from './reference.ts'
import type { Registry, ResolvedImage } from './registry.ts'
import { Tree } from './tree.ts'

export interface PullContext {
  /** The result lies in its `rootfs`. */
  folder: string
  /** A folder for what is downloaded. */
  temporary: string
  registry: Registry
  /** Bytes of all files, unpacked. */
  maxBytes: number
  onProgress: (step: string) => void
  signal?: AbortSignal | undefined
}

const maxEntries = 1_000_000
const maxConfigBytes = 4 * 1024 * 1024

/** The part of an image configuration that is used (OCI image specification, config.md). */
const configSchema = z.object({
  config: z
    .object({
      Env: z.array(z.string()).nullish(),
      Entrypoint: z.array(z.string()).nullish(),
      Cmd: z.array(z.string()).nullish(),
      WorkingDir: z.string().nullish(),
      User: z.string().nullish(),
    })
    .nullish(),
})

/** Downloads an image that was resolved and unpacks it into `<folder>/rootfs`. */
export async function pullImage(ref: string, reference: Reference, image: ResolvedImage, context: PullContext): Promise<ImageManifest> {
  const { onProgress, signal, maxBytes } = context
  const packedBytes = image.layers.reduce((total, layer) => total + layer.size, 0)
  if (packedBytes > maxBytes || image.config.size > maxConfigBytes) {
    throw new ThawError('image_too_large', `The image is larger than ${mib(maxBytes)}, even packed.`, {
      fix: 'Use a smaller image, or raise the limit of image sizes in the configuration.',
    })
  }
  onProgress(`downloading ${image.layers.length} layers, ${mib(packedBytes)}`)
  const layout = join(context.temporary, 'image')
  await context.registry.download(reference, image.digest, layout, maxBytes, signal)
  return unpackImage(ref, image, layout, context)
}

/** Unpacks an image that lies in `layout`, as skopeo writes it (dir:), into `<folder>/rootfs`. Its blobs are removed on the way. */
export async function unpackImage(
  ref: string,
  image: ResolvedImage,
  layout: string,
  context: Pick<PullContext, 'folder' | 'maxBytes' | 'onProgress' | 'signal'>,
): Promise<ImageManifest> {
  const { onProgress, signal, maxBytes } = context
  const blob = (digest: string) => join(layout, digest.replace('sha256:', ''))

  const config = await readConfig(blob(image.config.digest))
  const rootfs = join(context.folder, 'rootfs')
  await mkdir(rootfs, { mode: 0o755 })
  const tree = new Tree(rootfs, { maxBytes, maxEntries })
  for (const [index, layer] of image.layers.entries()) {
    onProgress(`unpacking layer ${index + 1} of ${image.layers.length}`)
    await tree.addLayer(await openLayer(blob(layer.digest)), signal)
    // An image may name a layer twice.
    if (!image.layers.slice(index + 1).some(({ digest }) => digest === layer.digest)) await rm(blob(layer.digest), { force: true })
  }
  await tree.addMountPoints()
  const path = config.env.PATH?.split(':').filter((folder) => folder.startsWith('/')) ?? defaultPath
  onProgress(`unpacked ${tree.size.entries} files, ${mib(tree.size.bytes)}`)
  return {
    ref,
    kind: 'oci',
    digest: image.digest,
    size_bytes: tree.size.bytes,
    created_at: new Date().toISOString(),
    config,
    interpreters: {
      python: tree.findProgram(['python3', 'python'], path),
      node: tree.findProgram(['node', 'nodejs'], path),
      go: tree.findProgram(['go'], [...path, '/usr/local/go/bin']),
    },
    packages: [],
    binds: [],
  }
}

async function readConfig(path: string): Promise<ImageConfig> {
  let parsed: z.infer<typeof configSchema>
  try {
    parsed = configSchema.parse(JSON.parse(await readFile(path, 'utf8')))
  } catch (error) {
    throw new ThawError('image_unresolvable', 'The configuration of the image cannot be read.', { cause: error })
  }
  const { Env, Entrypoint, Cmd, WorkingDir, User } = parsed.config ?? {}
  const env = Object.fromEntries(
    (Env ?? []).map((entry) => {
      const at = entry.indexOf('=')
      return at < 0 ? [entry, ''] : [entry.slice(0, at), entry.slice(at + 1)]
    }),
  )
  return {
    env: { PATH: defaultPath.join(':'), ...env },
    entrypoint: Entrypoint ?? null,
    cmd: Cmd ?? null,
    workdir: WorkingDir || null,
    user: User || null,
  }
}

/** A layer as a tar stream; its first bytes say how it is packed, which media types sometimes do not. */
async function openLayer(path: string): Promise<Readable> {
  const start = await readStart(path)
  const source = createReadStream(path)
  const decompress = decompressorFor(start)
  if (decompress === null) return source
  source.once('error', (error) => decompress.destroy(error))
  decompress.once('close', () => source.destroy())
  return source.pipe(decompress)
}

function decompressorFor(start: Buffer): Transform | null {
  if (start.readUInt16BE(0) === 0x1f8b) return createGunzip()
  if (start.readUInt32LE(0) === 0xfd2fb528) return createZstdDecompress()
  return null
}

async function readStart(path: string): Promise<Buffer> {
  const file = await open(path, 'r')
  try {
    const { buffer } = await file.read(Buffer.alloc(4), 0, 4, 0)
    return buffer
  } finally {
    await file.close()
  }
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / 1024 / 1024)} MiB`
}
