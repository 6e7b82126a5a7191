import { type ExecuteRequestParsed, type ExecuteResult, sandboxCreateSchema, ThawError } from '@thaw/protocol'
import type { Caller } from '../caller.ts'
import { runCommand } from './exec.ts'
import type { Lease } from './live-sandbox.ts'
import type { Sandboxes } from './sandboxes.ts'

/** Runs commands for callers who do not want to care about sandboxes. */
export class Executor {
  readonly #sandboxes: Sandboxes

  constructor(sandboxes: Sandboxes) {
    this.#sandboxes = sandboxes
  }

  async execute(caller: Caller, request: ExecuteRequestParsed, signal: AbortSignal): Promise<Omit<ExecuteResult, 'request_id'>> {
    switch (request.mode) {
      case 'ephemeral':
        return this.#ephemeral(caller, request, signal)
      case 'persistent':
        return this.#persistent(caller, request, signal)
      default:
        throw new ThawError('invalid_request', `This server has no mode ${request.mode} yet.`, { fix: 'Use ephemeral or persistent.' })
    }
  }

  /** A sandbox of its own, which ends with the command. */
  async #ephemeral(caller: Caller, request: ExecuteRequestParsed, signal: AbortSignal): Promise<Omit<ExecuteResult, 'request_id'>> {
    const { item } = await this.#sandboxes.create(caller, createRequest(request))
    try {
      using lease = await this.#sandboxes.use(caller, item.id)
      const result = await this.#run(lease, request, signal)
      return { ...result, boot_method: item.boot_method ?? 'cold', sandbox_id: null, snapshot_id: null, cached: false }
    } finally {
      // The answer need not wait for the end of what it came from.
      void this.#sandboxes.delete(caller, item.id).catch(() => undefined)
    }
  }

  /** The sandbox of `sandbox_id`, or a new one, which lives on. */
  async #persistent(caller: Caller, request: ExecuteRequestParsed, signal: AbortSignal): Promise<Omit<ExecuteResult, 'request_id'>> {
    const created = request.sandbox_id === undefined ? (await this.#sandboxes.create(caller, createRequest(request))).item : null
    const id = created?.id ?? (request.sandbox_id as string)
    using lease = await this.#sandboxes.use(caller, id)
    const result = await this.#run(lease, request, signal)
    return { ...result, boot_method: created?.boot_method ?? 'reused', sandbox_id: lease.sandbox.row.id, snapshot_id: null, cached: false }
  }

  async #run(lease: Lease, request: ExecuteRequestParsed, signal: AbortSignal) {
    for (const [path, content] of Object.entries(request.files)) {
      const body = Buffer.from(content, request.encoding)
      await lease.agent.call(
        {
          method: 'POST',
          path: `/files?path=${encodeURIComponent(path)}`,
          headers: { 'content-type': 'application/octet-stream', 'content-length': body.length },
          signal,
        },
        body,
      )
    }
    return runCommand(lease, request, signal)
  }
}

/** The sandbox that an execution asks for. It has no name, no ports and no end of its own. */
function createRequest({ image, driver, network, resources }: ExecuteRequestParsed) {
  return sandboxCreateSchema.parse({
    ...(image === undefined ? {} : { image }),
    ...(driver === undefined ? {} : { driver }),
    network,
    resources,
  })
}
