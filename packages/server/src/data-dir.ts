import { chmodSync, mkdirSync, realpathSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { ThawError } from '@thaw/protocol'

/** Sandboxes walk through it to what is shown to them, but cannot list it; what is private in it has modes of its own. */
export function openDataDir(path: string): string {
  try {
    mkdirSync(path, { recursive: true, mode: 0o711 })
    chmodSync(path, 0o711)
    const real = realpathSync(path)
    if (process.getuid?.() === 0) checkReachable(real)
    return real
  } catch (cause) {
    if (cause instanceof ThawError) throw cause
    throw new ThawError('config_invalid', `The data directory ${path} cannot be used: ${(cause as Error).message}`, {
      fix: 'Choose a folder that this user may write to, with --data-dir.',
      cause,
    })
  }
}

/** Code never runs as root, so every folder on the way must let other users through. */
function checkReachable(path: string): void {
  for (let dir = dirname(path); dir !== dirname(dir); dir = dirname(dir)) {
    if ((statSync(dir).mode & 0o001) !== 0) continue
    throw new ThawError('config_invalid', `Sandboxes cannot reach the data directory ${path}: ${dir} lets no other user through.`, {
      fix: `Choose another folder with --data-dir, such as /var/lib/thaw, or let users pass: chmod o+x ${dir}`,
    })
  }
}
