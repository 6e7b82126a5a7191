import { linkSync, mkdirSync, readdirSync, readlinkSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Gives a folder the content of another by hard links: a mount of the folder that is read-only inside shows it at once,
 * and nothing is copied. Both must lie on one file system. The target exists and is empty.
 */
export function linkTree(source: string, target: string): void {
  for (const entry of readdirSync(source, { withFileTypes: true })) {
    const from = join(source, entry.name)
    const to = join(target, entry.name)
    if (entry.isDirectory()) {
      mkdirSync(to, { mode: 0o755 })
      linkTree(from, to)
    } else if (entry.isSymbolicLink()) symlinkSync(readlinkSync(from), to)
    else linkSync(from, to)
  }
}
