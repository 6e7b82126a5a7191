import type { Readable } from 'node:stream'
import type { ImageItem } from '@thaw/protocol'
import { ThawError } from '@thaw/protocol'
import type { Images as ImageFiles, ListedImage } from '../images/images.ts'
import type { Caller } from './caller.ts'
import { openArchive } from './image-context.ts'
import type { ImageBuilder } from './ports.ts'

/** Images as the API shows them: what is on disk, and whether something uses it. */
export class ImageCatalog {
  readonly #files: ImageFiles
  readonly #references: (tenant?: string) => Promise<Set<string>>
  readonly #builder: ImageBuilder
  readonly #maxContextBytes: number

  /** `references`: digests of the images that functions and sandboxes use, those of one tenant or all. */
  constructor(
    files: ImageFiles,
    references: (tenant?: string) => Promise<Set<string>>,
    builds: { builder: ImageBuilder; maxContextBytes: number },
  ) {
    this.#files = files
    this.#references = references
    this.#builder = builds.builder
    this.#maxContextBytes = builds.maxContextBytes
  }

  /** A member sees the images that come with thaw, and those that its functions use. */
  async list(caller: Caller): Promise<ImageItem[]> {
    const admin = caller.role === 'admin'
    const imageDigests = await this.#references(admin ? undefined : caller.tenant)
    const seen = (image: ListedImage) => admin || image.kind !== 'oci' || (image.digest !== null && imageDigests.has(image.digest))
    return (await this.#files.list()).filter(seen).map((image) => item(image, imageDigests))
  }

  /** Builds or pulls an image. Packages that nobody chose before run scripts as root of this machine: those are for admins. */
  async ensure(caller: Caller, ref: string, onProgress: (line: string) => void, signal: AbortSignal): Promise<ImageItem> {
    const watcher = { onProgress, signal }
    const { digest } = await (caller.role === 'admin' ? this.#files.build(ref, watcher) : this.#files.ensure(ref, watcher))
    return this.#item(ref, digest)
  }

  /**
   * Builds an image from a Dockerfile; `archive` is a tar or tar.gz of its folder. `build_failed`, `archive_too_large`,
   * `archive_invalid`, `driver_unavailable`.
   */
  async build(
    ref: string,
    archive: Readable,
    dockerfile: string,
    onProgress: (line: string) => void,
    signal: AbortSignal,
  ): Promise<ImageItem> {
    const make = async (target: string) => {
      const context = openArchive(archive, this.#maxContextBytes)
      await this.#builder.buildImage({ ref, context, dockerfile, target, onProgress, signal }).catch((error) => {
        // What is wrong with the archive shows first where it is sent on.
        throw context.errored ?? error
      })
    }
    return this.#item(ref, (await this.#files.add(ref, make, { onProgress, signal })).digest)
  }

  async #item(ref: string, digest: string): Promise<ImageItem> {
    const imageDigests = await this.#references()
    const listed = (await this.#files.list()).find((image) => image.digest === digest)
    if (listed === undefined) throw new ThawError('image_unavailable', `The image ${ref} was removed while it was being made.`)
    return item({ ...listed, ref }, imageDigests)
  }

  async remove(ref: string): Promise<void> {
    const imageDigests = await this.#references()
    const used = (await this.#files.list()).find(
      (image) => (image.ref === ref || image.digest === ref) && image.digest !== null && imageDigests.has(image.digest),
    )
    if (used !== undefined) throw new ThawError('image_in_use', `The image ${ref} is used by a function or a sandbox.`)
    await this.#files.remove(ref)
  }

  /** Removes images that no function uses and nobody has asked for within the last `olderThanMs`. */
  async prune(olderThanMs: number): Promise<{ removed: string[]; freed_bytes: number }> {
    const imageDigests = await this.#references()
    return this.#files.prune({ inUse: imageDigests, olderThanMs })
  }
}

function item(image: ListedImage, inUse: Set<string>): ImageItem {
  return {
    ref: image.ref,
    kind: image.kind as ImageItem['kind'],
    digest: image.digest,
    state: image.state,
    size_bytes: image.size_bytes,
    in_use: image.digest !== null && inUse.has(image.digest),
    created_at: image.created_at,
  }
}
