import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { loadConfig } from '../packages/server/src/config/index.ts'
import type { Language } from './functions.ts'

/** Root file system of the newest runtime image on this machine: peers start from the same files as we do. Null without one. */
export function runtimeRoot(language: Language): string | null {
  const dir = loadConfig({ env: process.env, cwd: '/' }).config.images_dir
  if (!existsSync(dir)) return null
  const found = readdirSync(dir).flatMap((folder) => {
    const manifest = join(dir, folder, 'manifest.json')
    if (!existsSync(manifest)) return []
    const { ref, created_at } = JSON.parse(readFileSync(manifest, 'utf8')) as { ref: string; created_at: string }
    return ref === language ? [{ root: join(dir, folder, 'rootfs'), created_at }] : []
  })
  return found.sort((a, b) => (a.created_at < b.created_at ? 1 : -1))[0]?.root ?? null
}
