import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import type { ImageSource } from '../driver.ts'
import { packTree } from './archive.ts'
import { type Engine, statusOf } from './engine.ts'
import type { EngineFacts } from './facts.ts'
import { imageOwner, moveUsers } from './users.ts'

const repository = 'thaw/rootfs'

/** Brings unpacked images into the engine, as images of one layer with the ids that belong inside. */
export class EngineImages {
  readonly #engine: Engine
  readonly #imports = new Map<string, Promise<void>>()

  constructor(engine: Engine) {
    this.#engine = engine
  }

  /** The engine's reference of an image, imported where it is missing. */
  async bring(image: ImageSource, facts: EngineFacts): Promise<string> {
    const { path } = image
    if (image.kind !== 'rootfs' || path === undefined) {
      throw new ThawError('driver_unavailable', 'The docker driver needs an image: the engine cannot show the files of this host.', {
        fix: 'Set image to python, node, go or an OCI reference.',
      })
    }
    if (!existsSync(path)) throw new ThawError('image_unavailable', 'The files of the image are not on this machine.')
    const reference = `${repository}:${image.digest.replace('sha256:', '')}`
    const running = this.#imports.get(reference) ?? this.#import(reference, path, facts)
    this.#imports.set(reference, running)
    running.catch(() => this.#imports.delete(reference))
    await running
    return reference
  }

  /** To be looked for again: somebody removed it from the engine, or the engine is another one. */
  forget(reference?: string): void {
    if (reference === undefined) this.#imports.clear()
    else this.#imports.delete(reference)
  }

  async #import(reference: string, path: string, facts: EngineFacts): Promise<void> {
    if (await this.has(reference)) return
    const images = dirname(dirname(path))
    const store = createHash('sha256').update(images).digest('hex').slice(0, 12)
    await this.#removeStale(images, store)
    const tar = packTree(path, '', {
      owner: imageOwner(facts),
      rewrite: (name) => (facts.remapBase === null && (name === 'etc/passwd' || name === 'etc/group') ? moveUsers : undefined),
    })
    const [repo, tag] = reference.split(':') as [string, string]
    await this.#engine.call('POST', '/images/create', {
      query: { fromSrc: '-', repo, tag, changes: `LABEL thaw.store=${store}` },
      stream: tar,
      timeoutMs: null,
    })
    if (!(await this.has(reference))) throw new ThawError('driver_failed', 'The Docker engine did not keep the image that it was given.')
  }

  async has(reference: string): Promise<boolean> {
    try {
      await this.#engine.call('GET', `/images/${reference}/json`)
      return true
    } catch (error) {
      if (statusOf(error) === 404) return false
      throw error
    }
  }

  /** Images whose files have left our store are not needed in the engine either; one that is in use stays. */
  async #removeStale(images: string, store: string): Promise<void> {
    const kept = await this.#engine.call<{ RepoTags: string[] | null }[]>('GET', '/images/json', {
      query: { filters: JSON.stringify({ label: [`thaw.store=${store}`], reference: [repository] }) },
    })
    for (const reference of kept.flatMap(({ RepoTags }) => RepoTags ?? [])) {
      const digest = reference.split(':')[1] ?? ''
      if (!existsSync(join(images, `sha256-${digest}`))) await this.#engine.call('DELETE', `/images/${reference}`).catch(() => undefined)
    }
  }
}
