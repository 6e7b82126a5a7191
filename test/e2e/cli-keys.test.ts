import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { KeyItem } from '@thaw/sdk'
import { expect, test } from 'vitest'
import { startServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

// The command as people run it: a process of its own, against the real server.

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))

async function thaw(args: string[], env: Record<string, string> = {}) {
  const outer = Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_'))
  const child = spawn(process.execPath, [script, ...args], { env: { ...Object.fromEntries(outer), ...env } })
  child.stdin.end()
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  return { code, stdout, stderr }
}

test('keys are made, listed and revoked; the key alone is printed, so that a shell can keep it', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0 } })
  const at = { THAW_URL: server.url }
  expect((await thaw(['key', 'ls'], at)).stderr).toContain('no call needs one')
  const first = await thaw(['key', 'create', 'admin'], at)
  expect(first).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^e2b_[0-9a-f]{40}\n$/),
    stderr: expect.stringContaining('admin of default'),
  })
  const own = { ...at, THAW_API_KEY: first.stdout.trim() }

  const refused = await thaw(['ls'], at)
  expect(refused).toMatchObject({ code: 1, stdout: '' })
  expect(refused.stderr).toContain('THAW_API_KEY')
  expect((await thaw(['ls'], own)).code).toBe(0)

  const made = await thaw(['key', 'create', 'ci', '--tenant', 'web', '--expires-in', '90d', '--json'], own)
  const item = JSON.parse(made.stdout) as KeyItem & { key: string }
  expect(item).toMatchObject({ name: 'ci', tenant: 'web', role: 'member' })
  expect(Date.parse(item.expires_at ?? '') - Date.parse(item.created_at)).toBeGreaterThan(89 * 86_400_000)
  const listed = await thaw(['key', 'ls'], own)
  expect(listed.stdout).toMatch(/key-\w+ +admin +default +admin[\s\S]*key-\w+ +ci +web +member/)
  expect(listed.stdout).not.toContain(item.key)
  const forbidden = await thaw(['key', 'ls'], { ...at, THAW_API_KEY: item.key })
  expect(forbidden).toMatchObject({ code: 1, stderr: expect.stringContaining('admin') })

  expect(await thaw(['key', 'rm', item.id], own)).toMatchObject({ code: 0, stdout: `revoked ${item.id}\n` })
  expect((await thaw(['ls'], { ...at, THAW_API_KEY: item.key })).code).toBe(1)
  expect((await thaw(['key', 'rm', item.id], own)).stderr).toContain('thaw key ls')
  expect((await thaw(['key', 'create', 'x', '--expires-in', '5'], own)).code).toBe(2)
})

test('--data-dir makes a key where no server runs, and up serves on with it', async () => {
  using dir = tempDir()
  const dataDir = join(dir.path, 'data')
  const made = await thaw(['key', 'create', 'offline', '--data-dir', dataDir])
  expect(made).toMatchObject({ code: 0, stdout: expect.stringMatching(/^e2b_/) })
  await using server = await startServer({ driver: 'process', pools: { size: 0 }, data_dir: dataDir })
  const busy = await thaw(['key', 'create', 'offline', '--data-dir', dataDir])
  expect(busy).toMatchObject({ code: 1, stderr: expect.stringContaining('without --data-dir') })
  const listed = await thaw(['key', 'ls', '--json'], { THAW_URL: server.url, THAW_API_KEY: made.stdout.trim() })
  expect(JSON.parse(listed.stdout)).toMatchObject([{ name: 'offline', role: 'admin', tenant: 'default' }])
})

test('up says where it serves although every call needs a key, with the key in its environment or without', async () => {
  using dir = tempDir()
  const dataDir = join(dir.path, 'data')
  const key = (await thaw(['key', 'create', 'x', '--data-dir', dataDir])).stdout.trim()
  for (const env of [{}, { THAW_API_KEY: key }]) {
    const outer = Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_'))
    const child = spawn(process.execPath, [script, 'up', '--port', '0', '--driver', 'process', '--data-dir', dataDir, '--json'], {
      env: { ...Object.fromEntries(outer), ...env },
    })
    const ended = once(child, 'exit')
    const [line] = (await once(child.stdout, 'data')) as [Buffer]
    expect(JSON.parse(String(line))).toMatchObject({ url: expect.stringContaining('http://127.0.0.1:'), data_dir: dataDir })
    child.kill('SIGINT')
    expect((await ended)[0]).toBe(0)
  }
})
