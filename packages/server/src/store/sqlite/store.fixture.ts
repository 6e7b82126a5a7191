import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import type { Store } from '../store.ts'
import { type OpenOptions, openStore } from './open.ts'

export * from './rows.fixture.ts'

/** Fixtures of the tests in this folder. What they make is removed when the test has finished. */
export function tempDir(): string {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-store-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

export class LogSpy {
  readonly warnings: { fields: Record<string, unknown>; message: string }[] = []
  info(): void {}
  warn(fields: object, message: string): void {
    this.warnings.push({ fields: { ...fields }, message })
  }
}

export async function openTestStore(options: Partial<OpenOptions> = {}): Promise<Store> {
  const store = await openStore({ dataDir: options.dataDir ?? tempDir(), log: new LogSpy(), ...options })
  onTestFinished(() => store.close())
  return store
}
