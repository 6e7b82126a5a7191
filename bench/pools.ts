import type { Language } from './functions.ts'
import type { ThawServer } from './thaw-server.ts'
import type { Workbench } from './workbench.ts'

/** Settings of a server that starts nothing ahead of need. */
export const noPools = { THAW_POOLS__SIZE: '0', THAW_POOLS__MAX_SIZE: '0' }

interface PoolItem {
  image: string
  network: string
  ready: number
  starting: number
  target: number
}

/** Whether the server keeps sandboxes started ahead of need, and has one for this language. */
export async function hasPool(server: ThawServer, language: Language): Promise<boolean> {
  return (await poolOf(server, language)) !== undefined
}

/** Resolves when the pool for this language is full and nothing is being started for it: the state between bursts. */
export async function poolIsFull(bench: Workbench, server: ThawServer, language: Language): Promise<void> {
  await bench.until(`the pool of ${language} sandboxes is full`, async () => {
    const pool = await poolOf(server, language)
    return pool !== undefined && pool.ready > 0 && pool.ready >= pool.target && pool.starting === 0
  })
}

async function poolOf(server: ThawServer, language: Language): Promise<PoolItem | undefined> {
  const response = await fetch(`${server.url}/v1/pools`)
  if (!response.ok) return undefined
  const { items } = (await response.json()) as { items: PoolItem[] }
  return items.find((pool) => pool.image === language && pool.network === 'egress')
}
