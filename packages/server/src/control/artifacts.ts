import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { Driver } from '../drivers/driver.ts'
import { runCommand } from '../images/command.ts'
import type { BuildLog } from './buildlog.ts'
import type { Builder } from './builds.ts'
import type { Bundles, ReadyImage } from './ports.ts'
import type { Version } from './version.ts'

/**
 * The code of each version as its instances see it, dependencies included: `<dataDir>/code/<version id>/`. A folder that
 * exists is complete; it is made beside its name and then renamed.
 */
export class Artifacts {
  readonly #dir: string
  readonly #bundles: Bundles
  readonly #builder: Builder
  /** Files and folders of a version; its code never changes. */
  readonly #entries = new Map<string, number>()

  constructor(dataDir: string, bundles: Bundles, builder: Builder) {
    this.#dir = join(dataDir, 'code')
    this.#bundles = bundles
    this.#builder = builder
    mkdirSync(this.#dir, { recursive: true, mode: 0o711 })
  }

  /** The folder of a version, or undefined where the image brings the code. */
  path(version: Version): string | undefined {
    return version.codeDigest === null ? undefined : join(this.#dir, version.id)
  }

  /** Whether the code of a version, which must be complete, has no more files and folders than that. */
  hasAtMost(version: Version, entries: number): boolean {
    const path = this.path(version)
    if (path === undefined) return true
    let count = this.#entries.get(version.id)
    if (count === undefined) {
      count = readdirSync(path, { recursive: true }).length
      this.#entries.set(version.id, count)
    }
    return count <= entries
  }

  isComplete(version: Version): boolean {
    const path = this.path(version)
    return path === undefined || existsSync(path)
  }

  /** Unpacks and builds. Nothing is left when it rejects. */
  async make(version: Version, driver: Driver, image: ReadyImage, log: BuildLog, signal: AbortSignal): Promise<void> {
    const path = this.path(version)
    if (path === undefined || version.codeDigest === null || existsSync(path)) return
    const temporary = `${path}.tmp`
    rmSync(temporary, { recursive: true, force: true })
    try {
      await this.#bundles.unpack(version.codeDigest, temporary)
      const built = await this.#builder.build(version, temporary, driver, image, log, signal)
      if (built !== null) {
        const target = join(temporary, built.target)
        mkdirSync(dirname(target), { recursive: true, mode: 0o755 })
        // Links instead of copies: a hundred versions with the same dependencies hold them once.
        await runCommand('cp', ['--archive', '--link', '--no-target-directory', built.from, target], { timeoutMs: 300_000 })
        writeFileSync(this.#keyPath(version.id), built.key, { mode: 0o600 })
      }
      renameSync(temporary, path)
    } catch (error) {
      rmSync(this.#keyPath(version.id), { force: true })
      throw error
    } finally {
      rmSync(temporary, { recursive: true, force: true })
    }
  }

  remove(versionId: string): void {
    this.#entries.delete(versionId)
    rmSync(join(this.#dir, versionId), { recursive: true, force: true })
    rmSync(this.#keyPath(versionId), { force: true })
  }

  /** Removes what belongs to no version of the store, and builds that nothing has used since `before`. */
  collect(versionIds: Set<string>, before: number): void {
    const keys = new Set<string>()
    for (const name of readdirSync(this.#dir)) {
      const id = name.replace(/\.(tmp|build)$/, '')
      if (!versionIds.has(id)) rmSync(join(this.#dir, name), { recursive: true, force: true })
      else if (name.endsWith('.build')) keys.add(readFileSync(join(this.#dir, name), 'utf8'))
    }
    this.#builder.collect(keys, before)
  }

  #keyPath(versionId: string): string {
    return join(this.#dir, `${versionId}.build`)
  }
}
