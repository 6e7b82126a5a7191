import { ThawError } from '@thaw/protocol'
import type { EngineInfo } from './facts.ts'

/** Engine API, type DeviceRequest. */
export interface DeviceRequest {
  Driver: string
  Count?: number
  DeviceIDs?: string[]
  Capabilities?: string[][]
}

const cdiKind = 'nvidia.com/gpu'

/**
 * How to ask this engine for GPUs: by the Container Device Interface where it knows NVIDIA devices by it, else by NVIDIA's
 * runtime. Throws `gpu_unavailable` where it has neither.
 */
export function gpuRequest(gpus: number | 'all' | undefined, info: EngineInfo): DeviceRequest[] {
  if (gpus === undefined) return []
  const devices = (info.DiscoveredDevices ?? []).filter(({ Source, ID }) => Source === 'cdi' && ID.startsWith(`${cdiKind}=`))
  if (devices.length > 0) {
    if (gpus === 'all') return [{ Driver: 'cdi', DeviceIDs: [`${cdiKind}=all`] }]
    const numbered = devices.map(({ ID }) => ID).filter((id) => /=\d+$/.test(id))
    if (numbered.length < gpus) throw new ThawError('gpu_unavailable', `The Docker engine has ${numbered.length} GPUs, not ${gpus}.`)
    return [{ Driver: 'cdi', DeviceIDs: numbered.slice(0, gpus) }]
  }
  if (info.Runtimes?.nvidia !== undefined) return [{ Driver: 'nvidia', Count: gpus === 'all' ? -1 : gpus, Capabilities: [['gpu']] }]
  throw new ThawError('gpu_unavailable')
}
