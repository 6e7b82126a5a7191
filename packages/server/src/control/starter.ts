import { ThawError } from '@thaw/protocol'
import type { Driver } from '../drivers/driver.ts'
import type { Artifacts } from './artifacts.ts'
import type { Drivers } from './drivers.ts'
import { Instance, type InstanceLog } from './instance.ts'
import { launchOf } from './launch.ts'
import type { Images, ReadyImage } from './ports.ts'
import type { Version } from './version.ts'

export interface StarterOptions {
  runtimesDir: string
  startTimeoutMs: number
}

/** Starts instances: brings driver, image and code of a version together. */
export class Starter {
  readonly #options: StarterOptions
  readonly #parts: { drivers: Drivers; images: Images; artifacts: Artifacts; log: (version: Version) => InstanceLog }

  constructor(
    options: StarterOptions,
    parts: { drivers: Drivers; images: Images; artifacts: Artifacts; log: (version: Version) => InstanceLog },
  ) {
    this.#options = options
    this.#parts = parts
  }

  /** The driver and the image of a version, ready for use. */
  async prepare(
    version: Version,
    signal: AbortSignal,
    onProgress?: (line: string) => void,
  ): Promise<{ driver: Driver; image: ReadyImage }> {
    const driver = await this.#parts.drivers.usable(version.config.driver)
    return { driver, image: await this.#image(version, signal, onProgress) }
  }

  async start(version: Version, signal: AbortSignal): Promise<Instance> {
    if (!this.#parts.artifacts.isComplete(version)) throw new ThawError('start_failed', 'The code of this version is not on disk yet.')
    const { driver, image } = await this.prepare(version, signal)
    const prepared = await driver.prepare(image.source)
    const launch = launchOf(version, prepared, {
      runtimesDir: this.#options.runtimesDir,
      codeDir: this.#parts.artifacts.path(version),
      insideCodeDir: version.codeDigest === null ? (image.config?.workdir ?? '/') : '/function',
      imageEnv: image.config?.env ?? {},
      platformEnv: {},
    })
    return Instance.start(driver, version, launch, this.#parts.log(version), { timeoutMs: this.#options.startTimeoutMs, signal })
  }

  /** A version stays with the image that it was made with: a tag that moved meanwhile changes nothing. */
  async #image(version: Version, signal: AbortSignal, onProgress?: (line: string) => void): Promise<ReadyImage> {
    const { image: ref } = version.config
    if (version.imageDigest !== null) {
      const found = await this.#parts.images.find(version.imageDigest)
      if (found !== null) return found
    }
    const image = await this.#parts.images.ensure(ref, { signal, ...(onProgress ? { onProgress } : {}) }).catch((error: unknown) => {
      // It was there when the version was deployed: whatever is wrong now is not the fault of who calls.
      if (version.imageDigest === null || !(error instanceof ThawError) || error.code !== 'image_unresolvable') throw error
      throw new ThawError('image_unavailable', error.message, { details: error.details, cause: error })
    })
    if (version.imageDigest !== null && image.digest !== version.imageDigest && image.kind === 'oci') {
      throw new ThawError(
        'image_unavailable',
        `The image ${ref} is not what it was when version ${version.number} was deployed, and the old one is gone.`,
        {
          fix: 'Deploy a new version.',
        },
      )
    }
    return image
  }
}
