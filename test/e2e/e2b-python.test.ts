import { describe, expect, test } from 'vitest'
import { runE2bPython, whyNoE2bPython } from '../support/e2b.ts'
import { startServer, whyNoDriver } from '../support/server.ts'

const noPython = whyNoE2bPython()
const script = new URL('fixtures/e2b_client.py', import.meta.url).pathname

for (const driver of ['oci', 'process'] as const) {
  const skip = noPython ?? (await whyNoDriver(driver))

  describe.skipIf(skip !== null)(`the Python client e2b over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    test('lives, commands, terminals, files, snapshots, and all of it asynchronously', { timeout: 120_000 }, async () => {
      await using server = await startServer({ driver })
      expect(await runE2bPython(server, script, [driver])).toBe('all well\n')
    })
  })
}
