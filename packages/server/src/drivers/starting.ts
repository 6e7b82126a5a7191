import { ThawError } from '@thaw/protocol'
import type { CreateSpec, Handle } from './driver.ts'

/**
 * What `create` promises in every driver: `start` is given up when its time is over or `signal` aborts, and whenever it
 * fails, `undo` has removed all of it before the error comes. `gpus`, `disks`: the driver can give them to a sandbox.
 */
export async function startWithin(
  spec: CreateSpec,
  signal: AbortSignal | undefined,
  start: (stop: AbortSignal) => Promise<void>,
  undo: () => Promise<void>,
  { gpus = false, disks = false } = {},
): Promise<Handle> {
  if (spec.gpus !== undefined && !gpus) throw new ThawError('gpu_unavailable', 'This driver cannot give GPUs to a sandbox.')
  if (spec.disk_mib !== undefined && !disks)
    throw new ThawError('invalid_request', 'This driver cannot limit the disk of a sandbox.', {
      fix: 'Leave resources.disk_mib out, or choose the driver oci.',
    })
  const started = performance.now()
  const timeout = AbortSignal.timeout(spec.start_timeout_ms)
  try {
    await start(signal === undefined ? timeout : AbortSignal.any([signal, timeout]))
  } catch (error) {
    await undo()
    if (!timeout.aborted || signal?.aborted) throw error
    throw new ThawError('driver_failed', `The sandbox was not ready within ${spec.start_timeout_ms} ms.`, { cause: error })
  }
  return { id: spec.id, boot_ms: performance.now() - started }
}
