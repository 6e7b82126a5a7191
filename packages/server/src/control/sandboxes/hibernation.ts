import { newId, ThawError } from '@thaw/protocol'
import type { SnapshotStore } from '../../store/store.ts'
import type { Logger } from '../../telemetry/log.ts'
import type { SnapshotFiles } from '../ports.ts'
import type { AgentSandbox } from './agent-sandbox.ts'
import { capture, chooseKind, goOn } from './capture.ts'
import { keepSnapshot } from './keep.ts'
import type { LiveSandbox } from './live-sandbox.ts'
import type { SandboxStarter } from './sandbox-starter.ts'

export interface HibernationParts {
  store: SnapshotStore
  files: SnapshotFiles
  starter: SandboxStarter
  log: Logger
}

/** Sleep on disk: memory and files of a sandbox in a snapshot of its own, and the way back. */
export class Hibernation {
  readonly #parts: HibernationParts

  constructor(parts: HibernationParts) {
    this.#parts = parts
  }

  /** Leaves the sandbox standing still, and returns the id of its snapshot. When it rejects, the sandbox goes on. */
  async capture({ row }: LiveSandbox, running: AgentSandbox): Promise<string> {
    const { files, starter } = this.#parts
    chooseKind(running, 'memory', false)
    const image = await starter.imageOf(row)
    const id = newId('snap')
    await using draft = await files.draft()
    const captured = await capture(running, image, row, { dir: draft.data, kind: 'memory', use: 'hibernation' })
    try {
      await keepSnapshot(this.#parts, { id, purpose: 'hibernation', name: null, of: row, imageDigest: image.digest, captured, draft })
      return id
    } catch (error) {
      await goOn(running, image, row)
      throw error
    }
  }

  /** The sandbox as it was. Its snapshot stays, for another try where this rejects. */
  async restore({ row }: LiveSandbox): Promise<AgentSandbox> {
    const snapshot = row.hibernation_id === null ? null : await this.#parts.store.get(row.hibernation_id)
    if (snapshot === null) throw new ThawError('snapshot_not_found', 'The snapshot that the sandbox sleeps in is gone.')
    try {
      await this.#parts.files.check(snapshot.id, snapshot.manifest_digest ?? '')
      return await this.#parts.starter.restore(snapshot, row, this.#parts.files.dataDir(snapshot.id), AbortSignal.timeout(60_000))
    } catch (error) {
      await this.#parts.store.count(snapshot.id, false, Date.now())
      throw error
    }
  }

  /** Keeps the snapshot of a sleeper compressed. */
  async archive(id: string): Promise<void> {
    const size_bytes = await this.#parts.files.archive(id)
    await this.#parts.store.update(id, { size_bytes, archived_at: Date.now() })
  }

  async isArchived(id: string): Promise<boolean> {
    return (await this.#parts.store.get(id))?.archived_at != null
  }

  async drop(id: string): Promise<void> {
    try {
      await this.#parts.store.delete(id)
      await this.#parts.files.remove(id)
    } catch (error) {
      // The next start removes what no row knows.
      this.#parts.log.warn({ err: error, snapshot: id }, 'a snapshot could not be removed')
    }
  }
}
