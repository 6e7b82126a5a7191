import { chmodSync, mkdtempSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A temporary folder that the users of sandboxes can walk through, removed at the end. */
export function tempDir(): { path: string } & Disposable {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'thaw-test-')))
  chmodSync(path, 0o711)
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}
