import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { createWriteStream, existsSync, mkdirSync, rmSync } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { snapshotCreateSchema, ThawError, toThawError } from '@thaw/protocol'
import type { Caller } from '../caller.ts'
import type { E2bSandboxes } from './e2b.ts'
import { e2bUser } from './e2b-create.ts'
import { type E2bBuildState, type E2bStep, runStep } from './e2b-steps.ts'
import type { E2bTemplates } from './e2b-templates.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'

export interface E2bBuildsParts {
  e2b: E2bSandboxes
  templates: E2bTemplates
  sandboxes: Sandboxes
  snapshots: Snapshots
  /** Where uploads wait; emptied at the start. */
  folder: string
  maxArchiveBytes: number
}

export interface E2bBuildRequest {
  name: string
  tags: string[]
  cpus?: number | undefined
  memoryMib?: number | undefined
}

export interface E2bRecipe {
  /** An image or a template, by the names that `E2bTemplates.source` knows. */
  from: string
  steps: E2bStep[]
  startCmd?: string | undefined
  readyCmd?: string | undefined
}

export interface E2bLogEntry {
  timestamp: string
  level: 'info' | 'error'
  message: string
  step?: string
}

export interface E2bBuild {
  readonly id: string
  /** What sandboxes are made from it by. */
  readonly template: string
  readonly names: string[]
  readonly request: E2bBuildRequest
  readonly tenant: string
  status: 'waiting' | 'building' | 'ready' | 'error'
  reason: { message: string; step?: string } | null
  readonly log: E2bLogEntry[]
  readonly uploads: Map<string, string>
  readonly abort: AbortController
}

const buildMs = 3_600_000
const maxBuilds = 200
const maxLogEntries = 20_000
const noTag = 'default'

/**
 * Builds templates as clients of E2B describe them: in a sandbox, step by step, kept as a snapshot of its files under the name
 * of the template. Builds are in memory alone: one that runs when the server ends is gone.
 */
export class E2bBuilds {
  readonly #parts: E2bBuildsParts
  readonly #builds = new Map<string, E2bBuild>()
  readonly #tokens = new Map<string, { build: E2bBuild; hash: string }>()
  readonly #running = new Set<Promise<void>>()

  constructor(parts: E2bBuildsParts) {
    this.#parts = parts
    rmSync(parts.folder, { recursive: true, force: true })
    mkdirSync(parts.folder, { recursive: true, mode: 0o700 })
  }

  request(caller: Caller, request: E2bBuildRequest): E2bBuild {
    const tags = request.tags.length === 0 ? [noTag] : [...new Set(request.tags)]
    const names = tags.map((tag) => (tag === noTag ? request.name : `${request.name}:${tag}`))
    const build: E2bBuild = {
      id: randomUUID(),
      template: names[0] as string,
      names,
      request: { ...request, tags },
      tenant: caller.tenant,
      status: 'waiting',
      reason: null,
      log: [],
      uploads: new Map(),
      abort: new AbortController(),
    }
    this.#makeRoom()
    this.#builds.set(build.id, build)
    return build
  }

  /** Throws `image_not_found`. */
  get(caller: Caller, id: string): E2bBuild {
    const build = this.#builds.get(id)
    if (build === undefined || build.tenant !== caller.tenant)
      throw new ThawError('image_not_found', `There is no build ${id.slice(0, 64)}.`)
    return build
  }

  /** The newest build of a template, to which files are uploaded. */
  latest(caller: Caller, template: string): E2bBuild {
    const build = [...this.#builds.values()].findLast((one) => one.tenant === caller.tenant && one.template === template)
    if (build === undefined) throw new ThawError('image_not_found', `There is no build of ${JSON.stringify(template.slice(0, 100))}.`)
    return build
  }

  /** A word by which whoever has it may upload the files of this hash. */
  uploadToken(build: E2bBuild, hash: string): string {
    const token = randomBytes(24).toString('base64url')
    this.#tokens.set(token, { build, hash })
    return token
  }

  /** Takes what is uploaded with a token, once. Throws `image_not_found`, `archive_too_large`. */
  async receive(token: string, body: Readable): Promise<void> {
    const upload = this.#tokens.get(token)
    this.#tokens.delete(token)
    if (upload === undefined || upload.build.status !== 'waiting') throw new ThawError('image_not_found', 'There is no such upload.')
    const { build, hash } = upload
    const path = join(this.#parts.folder, `${build.id}-${createHash('sha256').update(hash).digest('hex')}`)
    const draft = `${path}.${token}`
    const { maxArchiveBytes } = this.#parts
    let bytes = 0
    const bounded = new Transform({
      transform: (piece: Buffer, _encoding, done) => {
        bytes += piece.length
        if (bytes > maxArchiveBytes) done(new ThawError('archive_too_large', `The files are larger than ${maxArchiveBytes} bytes, packed.`))
        else done(null, piece)
      },
    })
    try {
      await pipeline(body, bounded, createWriteStream(draft, { mode: 0o600 }))
      await rename(draft, path)
      build.uploads.set(hash, path)
    } finally {
      if (existsSync(draft)) await rm(draft, { force: true })
    }
  }

  /** Begins; what becomes of it is told by the build. Throws `sandbox_state_conflict` for one that was begun. */
  start(caller: Caller, build: E2bBuild, recipe: E2bRecipe): void {
    if (build.status !== 'waiting') throw new ThawError('sandbox_state_conflict', `The build ${build.id} is ${build.status}.`)
    build.status = 'building'
    const running = this.#build(caller, build, recipe).finally(() => this.#running.delete(running))
    this.#running.add(running)
  }

  /** Removes what builds of an earlier server left. */
  open(): Promise<void> {
    return this.#parts.e2b.dropBuilds()
  }

  async close(): Promise<void> {
    for (const build of this.#builds.values()) build.abort.abort(new ThawError('shutting_down'))
    await Promise.all([...this.#running])
  }

  async #build(caller: Caller, build: E2bBuild, recipe: E2bRecipe): Promise<void> {
    let step = 'base'
    const log = (message: string, level: E2bLogEntry['level'] = 'info') => {
      if (build.log.length === maxLogEntries) build.log.push(entry('The rest of the log is left out.', 'error', step))
      else if (build.log.length < maxLogEntries) build.log.push(entry(message.slice(0, 4096), level, step))
    }
    try {
      await this.#make(caller, build, recipe, log, (now) => {
        step = now
      })
      log('The template is ready.')
      build.status = 'ready'
    } catch (error) {
      const { message } = toThawError(error)
      log(message, 'error')
      build.reason = { message, step }
      build.status = 'error'
    } finally {
      for (const [token, upload] of this.#tokens) if (upload.build === build) this.#tokens.delete(token)
      for (const path of build.uploads.values()) await rm(path, { force: true })
      build.uploads.clear()
    }
  }

  async #make(caller: Caller, build: E2bBuild, recipe: E2bRecipe, log: (line: string) => void, at: (step: string) => void): Promise<void> {
    const { e2b, templates, sandboxes } = this.#parts
    const { signal } = build.abort
    log(`FROM ${recipe.from}`)
    const { item, facet } = await e2b.create(
      caller,
      {
        source: await templates.source(caller, recipe.from),
        template: build.template,
        timeoutMs: buildMs,
        onTimeout: 'stop',
        autoResume: false,
        secure: true,
        publicTraffic: false,
        network: 'egress',
        env: {},
        metadata: {},
        build: true,
        resources: { cpus: build.request.cpus, memory_mib: build.request.memoryMib },
      },
      signal,
    )
    try {
      using lease = await sandboxes.use(caller, item.id)
      const { spec } = lease.sandbox.row
      const user = facet?.user ?? e2bUser
      const state: E2bBuildState = { env: { ...spec.env }, user, workdir: facet?.workdir ?? (user === 'root' ? '/root' : `/home/${user}`) }
      const context = { lease, state, archive: (hash: string) => build.uploads.get(hash) ?? null, log, signal }
      for (const [index, one] of recipe.steps.entries()) {
        at(String(index + 1))
        log(`${one.type} ${one.args.join(' ')}`)
        await runStep(one, context)
      }
      at('finalize')
      await e2b.describeTemplate(caller, item.id, {
        env: state.env,
        user: state.user,
        workdir: state.workdir,
        startCmd: recipe.startCmd,
        readyCmd: recipe.readyCmd,
      })
      await this.#keep(caller, build, item.id, log)
    } finally {
      await sandboxes.delete(caller, item.id).catch(() => undefined)
    }
  }

  /** Tries it out before it takes the place of the one before. */
  async #keep(caller: Caller, build: E2bBuild, id: string, log: (line: string) => void): Promise<void> {
    const { e2b, templates, snapshots, sandboxes } = this.#parts
    const take = () =>
      snapshots.take(caller, id, snapshotCreateSchema.parse({ kind: 'filesystem', name: `${build.template} (${build.id})`.slice(-128) }))
    const made: string[] = []
    try {
      for (const _ of build.names) made.push((await take()).id)
      log('Starting a sandbox from the template')
      const trial = await e2b.create(
        caller,
        {
          source: { snapshotId: made[0] as string },
          template: build.template,
          timeoutMs: buildMs,
          onTimeout: 'stop',
          autoResume: false,
          secure: true,
          publicTraffic: false,
          network: 'egress',
          env: {},
          metadata: {},
          build: true,
        },
        build.abort.signal,
      )
      await sandboxes.delete(caller, trial.item.id)
      build.abort.signal.throwIfAborted()
    } catch (error) {
      for (const snapshot of made) await snapshots.delete(caller, snapshot).catch(() => undefined)
      throw error
    }
    for (const [index, name] of build.names.entries())
      await templates.replace(caller, name, made[index] as string, (old) => snapshots.delete(caller, old))
  }

  /** Builds that have ended are forgotten when there are many. */
  #makeRoom(): void {
    if (this.#builds.size < maxBuilds) return
    for (const [id, { status }] of this.#builds) {
      if (status === 'building') continue
      this.#builds.delete(id)
      return
    }
    throw new ThawError('too_many_requests', 'Too many templates are being built.')
  }
}

function entry(message: string, level: E2bLogEntry['level'], step: string): E2bLogEntry {
  return { timestamp: new Date().toISOString(), level, message, step }
}
