import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const cwd = fileURLToPath(new URL('../../agent', import.meta.url))
const go = existsSync('/usr/local/go/bin/go') ? '/usr/local/go/bin/go' : 'go'

test("the agent's own tests and go vet find nothing", { timeout: 300_000 }, () => {
  for (const args of [
    ['vet', './...'],
    ['test', './...'],
  ]) {
    const { status, stdout, stderr } = spawnSync(go, args, {
      cwd,
      encoding: 'utf8',
      env: { ...process.env, CGO_ENABLED: '0', GOFLAGS: '' },
    })
    expect(status, `go ${args.join(' ')}: ${stdout}${stderr}`).toBe(0)
  }
})
