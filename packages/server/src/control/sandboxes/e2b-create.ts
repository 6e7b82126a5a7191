import { execRequestSchema, type SandboxCreateParsed, type SandboxItem, sandboxCreateSchema, ThawError } from '@thaw/protocol'
import type { E2bFacet } from '../../store/store.ts'
import type { Caller } from '../caller.ts'
import type { Sandboxes } from './sandboxes.ts'
import type { Snapshots } from './snapshots.ts'

interface E2bCreateParts {
  sandboxes: Sandboxes
  snapshots: Snapshots
}

/** What a client of E2B asks for, in words of thaw. */
export interface E2bCreate {
  /** An image, or a snapshot by its id. */
  source: { image: string | undefined } | { snapshotId: string; env?: Record<string, string> }
  template: string
  timeoutMs: number
  onTimeout: 'stop' | 'pause'
  autoResume: boolean
  secure: boolean
  publicTraffic: boolean
  network: 'none' | 'egress'
  env: Record<string, string>
  metadata: Record<string, string>
  /** A template is being built in it: nobody else sees it. */
  build?: boolean
  resources?: { cpus: number | undefined; memory_mib: number | undefined }
}

/** What a template has beside its files. */
export interface E2bTemplateFacts {
  env: Record<string, string>
  user: string
  workdir: string
  startCmd?: string | undefined
  readyCmd?: string | undefined
}

/** The account that E2B's images have. Commands and files are its own, unless a call names another. */
export const e2bUser = 'user'

const readyMs = 120_000
/** `ss`, which ready commands of E2B's clients ask for ports, is missing in most images: this one knows as much as they need. */
const readyScript = `command -v ss > /dev/null 2>&1 || ss() {
  for last; do :; done
  grep -ihE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "\${last#:}") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6 2> /dev/null
}
until eval "$0"; do sleep 0.1; done > /dev/null 2>&1`

/** A sandbox with the manners of E2B. `signal` gives up waiting for what is to be ready. */
export async function createE2bSandbox(
  parts: E2bCreateParts,
  caller: Caller,
  request: E2bCreate,
  signal?: AbortSignal,
): Promise<SandboxItem> {
  const { sandboxes, snapshots } = parts
  const facet: E2bFacet = {
    template: request.template,
    secure: request.secure,
    public_traffic: request.publicTraffic,
    auto_resume: request.autoResume,
    user: e2bUser,
    ...(request.build === true ? { build: true } : {}),
  }
  const resources = definedOnly(request.resources ?? {})
  const common = { timeout_ms: request.timeoutMs, on_timeout: request.onTimeout, metadata: request.metadata } as const
  const { source } = request
  if ('image' in source) {
    const parsed: SandboxCreateParsed = sandboxCreateSchema.parse({
      ...common,
      image: source.image,
      env: request.env,
      network: request.network,
      ports: 'all',
      resources,
    })
    return (await sandboxes.create(caller, { ...parsed, e2b: facet })).item
  }
  const snapshot = await snapshots.row(caller, source.snapshotId)
  const template = snapshot.spec.e2b
  if (snapshot.kind === 'memory' && snapshot.spec.network !== request.network) {
    throw new ThawError('invalid_request', `The snapshot ${snapshot.id} keeps memory, and its network cannot be another one.`, {
      fix: `Leave network and allow_internet_access as they were when it was taken: ${snapshot.spec.network}.`,
    })
  }
  const { user = e2bUser, workdir, ready_cmd } = template ?? {}
  const { item } = await snapshots.restore(caller, snapshot.id, {
    ...common,
    ports: 'all',
    env: { ...source.env, ...request.env },
    network: request.network,
    e2b: { ...facet, user, ...definedOnly({ workdir, ready_cmd }) },
    ...(Object.keys(resources).length === 0 ? {} : { resources: { ...snapshot.spec.resources, ...resources } }),
  })
  if (ready_cmd !== undefined && snapshot.kind === 'filesystem') await untilReady(sandboxes, caller, item.id, ready_cmd, signal)
  return item
}

/** What was started with it takes its time. The sandbox is gone when that takes too long. */
async function untilReady(
  sandboxes: Sandboxes,
  caller: Caller,
  id: string,
  command: string,
  signal = new AbortController().signal,
): Promise<void> {
  try {
    const request = { command: ['/bin/sh', '-c', readyScript, command], timeout_ms: readyMs }
    const result = await sandboxes.exec(caller, id, execRequestSchema.parse(request), { signal })
    if (result.exit_code === 0) return
    signal.throwIfAborted()
    throw new ThawError(
      'start_failed',
      `What the template starts was not ready within ${readyMs / 1000} seconds: ${command.slice(0, 200)}`,
      {
        fix: 'Look at its start command and its ready command; the latter needs its programs in the image.',
      },
    )
  } catch (error) {
    await sandboxes.delete(caller, id).catch(() => undefined)
    throw error
  }
}

export function definedOnly<Fields extends object>(fields: Fields): { [Name in keyof Fields]?: Exclude<Fields[Name], undefined> } {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as {
    [Name in keyof Fields]?: Exclude<Fields[Name], undefined>
  }
}
