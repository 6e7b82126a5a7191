import { chmodSync, chownSync, mkdirSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { type CreateSpec, idShift, insidePaths } from '../driver.ts'
import { linkTree } from '../link-tree.ts'
import { packTree, unpackTree } from './archive.ts'
import type { EngineMount } from './container.ts'
import type { Engine } from './engine.ts'
import type { EngineFacts } from './facts.ts'
import { functionUser, hostId, userOf } from './users.ts'

/** How what a spec shows comes into a container, and what is written there comes back. */
export interface Sharing {
  /** Of the configuration of the container. */
  mounts(spec: CreateSpec): EngineMount[]
  /** Whether the engine can make the root of the container read-only. */
  readonlyRoot(spec: CreateSpec): boolean
  /** Once the container exists, before it starts. */
  fill(container: string, spec: CreateSpec, signal: AbortSignal): Promise<void>
  /** Shows code in the slot of a container that runs. */
  fillSlot(container: string, id: string, slot: string, code: string): Promise<void>
  /** Brings back what was written into writable mounts, after the end. */
  collect(container: string, spec: Pick<CreateSpec, 'mounts' | 'user'>): Promise<void>
}

/** An engine that sees the files of this host: it mounts them. */
export class SharedFiles implements Sharing {
  readonly #dir: (id: string) => string
  readonly #facts: EngineFacts

  /** @param dir the folder of a sandbox on this host. */
  constructor(dir: (id: string) => string, facts: EngineFacts) {
    this.#dir = dir
    this.#facts = facts
  }

  mounts(spec: CreateSpec): EngineMount[] {
    const dir = this.#dir(spec.id)
    const owner = hostId(userOf(spec.user, this.#facts), this.#facts)
    const own = (path: string) => {
      if (process.getuid?.() === 0) chownSync(path, owner, owner)
      else chmodSync(path, 0o777)
    }
    const runDir = join(dir, 'run')
    mkdirSync(runDir, { mode: 0o700 })
    own(runDir)
    const shown = [...spec.mounts, { source: runDir, target: insidePaths.runDir, readonly: false }]
    if (spec.slot !== undefined) {
      mkdirSync(join(dir, 'slot'), { mode: 0o755 })
      shown.push({ source: join(dir, 'slot'), target: spec.slot, readonly: true })
    }
    for (const mount of spec.mounts) if (!mount.readonly) own(mount.source)
    return shown.map(({ source, target, readonly }) => ({
      Type: 'bind',
      Source: source,
      Target: target,
      ReadOnly: readonly,
      BindOptions: { Propagation: 'rprivate' },
    }))
  }

  readonlyRoot(spec: CreateSpec): boolean {
    return spec.root === 'readonly'
  }

  async fill(): Promise<void> {}

  async fillSlot(_container: string, id: string, _slot: string, code: string): Promise<void> {
    linkTree(code, join(this.#dir(id), 'slot'))
  }

  async collect(): Promise<void> {}
}

/**
 * An engine elsewhere: everything is copied, into volumes that go with their container, since the engine takes nothing
 * into a read-only root. What was to be read-only is a copy that belongs to root: code of an ordinary user cannot change it,
 * and code of root changes nobody else's.
 */
export class CopiedFiles implements Sharing {
  readonly #engine: Engine
  readonly #facts: EngineFacts
  readonly #labels: Record<string, string>
  /** The agent's program on this host: it is the way in. */
  readonly #agent: string

  constructor(engine: Engine, facts: EngineFacts, labels: Record<string, string>, agent: string) {
    this.#engine = engine
    this.#facts = facts
    this.#labels = labels
    this.#agent = agent
  }

  mounts(spec: CreateSpec): EngineMount[] {
    const folders = spec.mounts.filter(({ source }) => statSync(source).isDirectory()).map(({ target }) => target)
    if (spec.slot !== undefined) folders.push(spec.slot)
    folders.push(bridgeDir)
    return folders.map((target) => ({
      Type: 'volume',
      Target: target,
      ReadOnly: false,
      VolumeOptions: { NoCopy: true, Labels: this.#labels },
    }))
  }

  /** What is written beside the writable mounts is lost with the container, read-only or not. */
  readonlyRoot(spec: CreateSpec): boolean {
    return spec.root === 'readonly' && spec.mounts.every(({ source, readonly }) => readonly && statSync(source).isDirectory())
  }

  async fill(container: string, spec: CreateSpec, signal: AbortSignal): Promise<void> {
    const user = userOf(spec.user, this.#facts)
    for (const { source, target, readonly } of spec.mounts) {
      const owner = () => (readonly ? 0 : user)
      // The engine keeps the owner of the folder itself as it is, unless it is an entry of an archive for the folder above.
      const [place, name] = readonly && statSync(source).isDirectory() ? [target, ''] : [dirname(target), basename(target)]
      await this.#put(container, place, packTree(source, name, { owner }), signal)
    }
    await this.#put(container, bridgeDir, packTree(this.#agent, 'thaw-agent', { owner: () => 0 }), signal)
  }

  async fillSlot(container: string, _id: string, slot: string, code: string): Promise<void> {
    await this.#put(container, slot, packTree(code, '', { owner: () => 0 }))
  }

  async #put(container: string, path: string, tar: ReturnType<typeof packTree>, signal?: AbortSignal): Promise<void> {
    await this.#engine.call('PUT', `/containers/${container}/archive`, { query: { path }, stream: tar, signal, timeoutMs: null })
  }

  async collect(container: string, { mounts, user }: Pick<CreateSpec, 'mounts' | 'user'>): Promise<void> {
    for (const { source, target, readonly } of mounts) {
      if (readonly || !statSync(source).isDirectory()) continue
      const tar = await this.#engine.stream('GET', `/containers/${container}/archive`, { query: { path: `${target}/.` }, timeoutMs: null })
      await unpackTree(tar, source, process.getuid?.() === 0 ? idShift + (user === 'root' ? 0 : functionUser) : null)
    }
  }
}

/** Where the way in lies in a container of a remote engine. */
export const bridgeDir = '/thaw/bridge'
