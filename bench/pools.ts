import type { Language } from './functions.ts'
import type { ThawServer } from './thaw-server.ts'
import type { Workbench } from './workbench.ts'

/** Sandboxes that the server started ahead of need. */
export interface Pools {
  /** Resolves when a sandbox for this language waits. */
  ready(bench: Workbench, language: Language): Promise<void>
}

interface PoolItem {
  image: string
  ready: number
}

/** Asks the server to keep sandboxes ready for these languages; null where it offers no pools. */
export async function fillPool(server: ThawServer, languages: readonly Language[]): Promise<Pools | null> {
  const list = async () => {
    const response = await fetch(`${server.url}/v1/pools`)
    return response.ok ? ((await response.json()) as { items: PoolItem[] }).items : null
  }
  if ((await list()) === null) return null
  for (const language of languages) {
    const response = await fetch(`${server.url}/v1/pools/${language}`, {
      method: 'PUT',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ size: 3 }),
    })
    if (!response.ok) throw new Error(`PUT /v1/pools/${language}: ${response.status} ${await response.text()}`)
  }
  return {
    ready: (bench, language) =>
      bench.until(
        `a pooled ${language} sandbox is ready`,
        async () => ((await list())?.find((pool) => pool.image === language)?.ready ?? 0) > 0,
      ),
  }
}
