import type { ImageItem } from '@thaw/protocol'
import { ThawError } from '@thaw/protocol'
import type { Images as ImageFiles, ListedImage } from '../images/images.ts'
import type { Caller } from './caller.ts'

/** Images as the API shows them: what is on disk, and whether something uses it. */
export class ImageCatalog {
  readonly #files: ImageFiles
  readonly #references: (tenant?: string) => Promise<Set<string>>

  /** `references`: digests of the images that functions and sandboxes use, those of one tenant or all. */
  constructor(files: ImageFiles, references: (tenant?: string) => Promise<Set<string>>) {
    this.#files = files
    this.#references = references
  }

  /** A member sees the images that come with thaw, and those that its functions use. */
  async list(caller: Caller): Promise<ImageItem[]> {
    const admin = caller.role === 'admin'
    const imageDigests = await this.#references(admin ? undefined : caller.tenant)
    const seen = (image: ListedImage) => admin || image.kind !== 'oci' || (image.digest !== null && imageDigests.has(image.digest))
    return (await this.#files.list()).filter(seen).map((image) => item(image, imageDigests))
  }

  /** Builds or pulls an image. */
  async ensure(ref: string, onProgress: (line: string) => void, signal: AbortSignal): Promise<ImageItem> {
    const { digest } = await this.#files.ensure(ref, { onProgress, signal })
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
