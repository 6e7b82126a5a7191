import { release } from 'node:os'
import type { Engine } from './engine.ts'

/** What is used of GET /info. */
export interface EngineInfo {
  ID: string
  Name: string
  KernelVersion: string
  DockerRootDir: string
  OSType: string
  Architecture: string
  CgroupVersion?: string
  CgroupDriver?: string
  SecurityOptions: string[] | null
  Runtimes?: Record<string, unknown> | null
  DiscoveredDevices?: { Source: string; ID: string }[] | null
  MemoryLimit?: boolean
  SwapLimit?: boolean
  PidsLimit?: boolean
  CpuCfsQuota?: boolean
  Warnings: string[] | null
}

/** What the driver goes by; it changes only when the engine is another one. */
export interface EngineFacts {
  info: EngineInfo
  /** Where root of a container is an ordinary user of the host (userns-remap): its id. */
  remapBase: number | null
  rootless: boolean
  /** The engine runs on this very kernel; whether it shares our files is still to be tried. */
  sameKernel: boolean
}

export async function readFacts(engine: Engine): Promise<EngineFacts> {
  const info = await engine.call<EngineInfo>('GET', '/info', { timeoutMs: 15_000 })
  const options = info.SecurityOptions ?? []
  const has = (name: string) => options.some((option) => option.split(',').includes(`name=${name}`))
  // The engine keeps the files of every mapping in a folder of their own, named <uid>.<gid>.
  const base = /\/(\d+)\.\d+$/.exec(info.DockerRootDir)?.[1]
  return {
    info,
    remapBase: has('userns') && base !== undefined ? Number(base) : null,
    rootless: has('rootless'),
    sameKernel: info.KernelVersion === release(),
  }
}
