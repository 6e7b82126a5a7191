import { createHash } from 'node:crypto'
import { ThawError } from '@thaw/protocol'
import type { SnapshotKind, SnapshotResult, SnapshotSource, SnapshotUse } from '../../drivers/driver.ts'
import type { SandboxRow } from '../../store/store.ts'
import type { ReadyImage } from '../ports.ts'
import { AgentSandbox } from './agent-sandbox.ts'
import { initOf } from './sandbox-starter.ts'

const agentMs = 10_000

/** What was captured: what the driver says, and the word by which the agent inside knows its new owner. */
export interface Captured extends SnapshotResult {
  kind: SnapshotKind
  /** Opens the agent of a clone, once. It is worth nothing for the sandbox that was captured. */
  resume_token: string | null
}

/** Memory where the driver can keep it, or what was asked for. Throws `snapshot_unsupported`. */
export function chooseKind(running: AgentSandbox, wanted: SnapshotKind | undefined, fallback: boolean): SnapshotKind {
  const able = running.driver.abilities.snapshot
  if (able === 'none' || running.driver.snapshot === undefined) {
    throw new ThawError('snapshot_unsupported', `The driver ${running.driver.kind} takes no snapshots.`, { fix: 'Choose another driver.' })
  }
  if (wanted === 'memory' && able === 'filesystem' && !fallback) {
    throw new ThawError('snapshot_unsupported', `The driver ${running.driver.kind} cannot keep memory on this machine.`, {
      fix: 'Ask for kind "filesystem", or set fallback; `thaw doctor` says what memory snapshots need.',
    })
  }
  return wanted === 'filesystem' ? 'filesystem' : able
}

/**
 * Writes a sandbox into a folder. For memory its agent ends all connections first, since none of them could go on in a
 * clone. The sandbox is as it was afterwards, also when this rejects; for its hibernation it stands still after a snapshot of its
 * memory, and whoever asked for that destroys it, or calls `goOn`.
 */
export async function capture(
  running: AgentSandbox,
  image: Pick<ReadyImage, 'config'>,
  row: SandboxRow,
  target: { dir: string; kind: SnapshotKind; use: SnapshotUse },
): Promise<Captured> {
  const { driver, agent, id } = running
  const { dir, kind, use } = target
  if (driver.snapshot === undefined) throw new ThawError('snapshot_unsupported')
  if (kind === 'filesystem') return { ...(await driver.snapshot(id, { dir, kind, use, stop: false })), kind, resume_token: null }
  if (row.state === 'paused') await driver.resume?.(id)
  const resumeToken = resumeTokenOf(row)
  let result: SnapshotResult
  try {
    await agent.prepareSnapshot(resumeToken, AbortSignal.timeout(agentMs))
    if (use === 'hibernation') await driver.pause?.(id)
    result = await driver.snapshot(id, { dir, kind, use, stop: false })
  } catch (error) {
    // One that has ended does not go on either: why it ended is the news.
    const status = await driver.inspect(id).catch(() => null)
    if (status === null || status.state === 'exited') throw error
    await goOn(running, image, row)
    throw error
  }
  if (use !== 'hibernation')
    await goOn(running, image, row).catch(async (error) => {
      await driver.dropSnapshot?.({ dir, kind, state: result.state })
      throw error
    })
  return { ...result, kind, resume_token: resumeToken }
}

/**
 * By this word the agent of a sandbox that is being captured obeys. It follows from the sandbox's own token, so that the next
 * server knows it too should this one end meanwhile; the other way round nothing follows.
 */
function resumeTokenOf(row: Pick<SandboxRow, 'access_token'>): string {
  return createHash('sha256').update(`resume ${row.access_token}`).digest('base64url')
}

/** Gets hold of the agent of a sandbox that an earlier server left, perhaps in the middle of a snapshot. */
export async function reclaim(
  running: AgentSandbox,
  image: Pick<ReadyImage, 'config'>,
  row: SandboxRow,
  signal: AbortSignal,
): Promise<void> {
  const { driver, id, agent } = running
  const limit = () => AbortSignal.any([signal, AbortSignal.timeout(agentMs)])
  try {
    await agent.stats(limit())
    return
  } catch {
    signal.throwIfAborted()
    // It takes no calls, and obeys either the sandbox's own token or the one of the snapshot.
  }
  const held = new AgentSandbox(id, driver, 0, resumeTokenOf(row))
  try {
    await held.agent.resumeFromSnapshot(initOf(image, row), limit())
  } catch {
    await agent.resumeFromSnapshot(initOf(image, row), limit())
  } finally {
    held.agent.close()
  }
}

/** Ends the stillness after a snapshot. */
export async function goOn(running: AgentSandbox, image: Pick<ReadyImage, 'config'>, row: SandboxRow): Promise<void> {
  await running.driver.resume?.(running.id)
  await running.agent.resumeFromSnapshot(initOf(image, row), AbortSignal.timeout(agentMs))
  if (row.state === 'paused') await running.driver.pause?.(running.id)
}

/** What the driver is given of a snapshot. */
export function sourceOf(dir: string, captured: Pick<Captured, 'kind' | 'state'>): SnapshotSource {
  return { dir, kind: captured.kind, state: captured.state }
}
