import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import type { PoolItem } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startServer, type TestServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

// The command as people run it: a process of its own, against the real server.

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))

const folder = tempDir()
let server: TestServer

beforeAll(async () => {
  server = await startServer({ driver: 'process', pools: { size: 0 } })
})

afterAll(async () => {
  await server?.[Symbol.asyncDispose]()
  folder[Symbol.dispose]()
})

interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

function environment(): Record<string, string | undefined> {
  const outer = Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_'))
  return { ...Object.fromEntries(outer), THAW_URL: server.url }
}

async function run(program: string, args: string[], input: string): Promise<Ended> {
  const child = spawn(program, args, { cwd: folder.path, env: environment() })
  child.stdin.end(input)
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  return { code, stdout, stderr }
}

const thaw = (args: string[], input = '') => run(process.execPath, [script, ...args], input)

let made = 0

function codeFolder(files: Record<string, string> = {}): string {
  const dir = join(folder.path, `code-${++made}`)
  mkdirSync(dir)
  const main = 'export const handler = (event) => event.map((name) => process.env[name] ?? null)'
  for (const [name, content] of Object.entries({ 'main.mjs': main, ...files })) writeFileSync(join(dir, name), content)
  return dir
}

/** What functions see of a secret: the only way to learn its value. */
async function readSecret(secret: string): Promise<string> {
  const name = `reader-${++made}`
  await server.thaw.functions.create({
    name,
    runtime: 'node',
    code: { inline: 'export const handler = () => ({ value: process.env.VALUE })' },
    secrets: [{ name: secret, env: 'VALUE' }],
  })
  const { value } = await server.thaw.functions.invoke<{ value: string }>(name)
  await server.thaw.functions.delete(name)
  return value.value
}

describe('thaw secret', () => {
  test('set takes the value from the argument, a file or standard input, and says it nowhere', async () => {
    const file = join(folder.path, 'value.txt')
    writeFileSync(file, 'line one\nline two\n')
    const set = [
      await thaw(['secret', 'set', 'from-argument', 'argument value']),
      await thaw(['secret', 'set', 'from-file', `@${file}`]),
      await thaw(['secret', 'set', 'from-dash', '-'], 'dash value\n'),
      await thaw(['secret', 'set', 'from-pipe'], 'pipe value\r\n'),
      await thaw(['secret', 'set', 'from-json', 'json value', '--json']),
    ]
    for (const { code, stdout, stderr } of set) {
      expect(code, stderr).toBe(0)
      expect(stdout + stderr).not.toMatch(/value|line one/)
    }
    expect(set[0]?.stdout).toBe('from-argument is set\n')
    expect(JSON.parse(set[4]?.stdout ?? '')).toMatchObject({ name: 'from-json', used_by: [] })
    expect(await readSecret('from-argument')).toBe('argument value')
    expect(await readSecret('from-file')).toBe('line one\nline two\n')
    expect(await readSecret('from-dash')).toBe('dash value')
    expect(await readSecret('from-pipe')).toBe('pipe value')
  })

  test('set again gives it another value', async () => {
    await thaw(['secret', 'set', 'twice', 'old'])
    expect((await thaw(['secret', 'set', 'twice', 'new'])).code).toBe(0)
    expect(await readSecret('twice')).toBe('new')
  })

  test('on a terminal the value is asked for and not shown, and corrections count', async () => {
    const typed = await atTerminal(['secret', 'set', 'typed'], 'hunterX\x7f2\r')
    expect(typed.code, typed.stdout).toBe(0)
    expect(typed.stdout).toContain('value of typed: ')
    expect(typed.stdout).toContain('typed is set')
    expect(typed.stdout).not.toContain('hunter')
    expect(await readSecret('typed')).toBe('hunter2')
    const left = await atTerminal(['secret', 'set', 'left'], 'half\x03')
    expect(left.code).toBe(130)
    await expect(server.thaw.secrets.get('left')).rejects.toMatchObject({ code: 'secret_not_found' })
  })

  test('a file that is missing or no text is a mistake of usage', async () => {
    expect((await thaw(['secret', 'set', 'bad', '@/no/such/file'])).code).toBe(2)
    const file = join(folder.path, 'bytes')
    writeFileSync(file, new Uint8Array([255, 0]))
    expect((await thaw(['secret', 'set', 'bad', `@${file}`])).code).toBe(2)
  })

  test('ls shows names and users, rm removes what nobody uses', async () => {
    await thaw(['secret', 'set', 'listed', 'hidden'])
    const dir = codeFolder()
    expect((await thaw(['deploy', dir, '--name', 'uses-it', '--secret', 'listed'])).code).toBe(0)
    const { stdout } = await thaw(['secret', 'ls'])
    expect(stdout).toMatch(/^NAME +USED BY +CREATED +UPDATED/)
    expect(stdout).toMatch(/^listed +uses-it +20/m)
    expect((await thaw(['secret', 'ls', '--quiet'])).stdout.split('\n')).toContain('listed')
    expect(JSON.parse((await thaw(['secret', 'ls', '--json'])).stdout)).toContainEqual(
      expect.objectContaining({ name: 'listed', used_by: ['uses-it'] }),
    )
    const refused = await thaw(['secret', 'rm', 'listed'])
    expect(refused).toMatchObject({ code: 1, stdout: '' })
    expect(refused.stderr).toContain('uses-it')
    await thaw(['rm', 'uses-it'])
    expect((await thaw(['secret', 'rm', 'listed'])).stdout).toBe('removed listed\n')
    expect((await thaw(['secret', 'rm', 'listed'])).code).toBe(1)
  })
})

describe('thaw deploy --secret', () => {
  test('gives secrets under their own names or others, over those of thaw.json', async () => {
    for (const name of ['ONE', 'two', 'three']) await server.thaw.secrets.create(name, `value of ${name}`)
    const config = {
      secrets: [
        { name: 'three', env: 'THREE' },
        { name: 'three', env: 'TWO' },
      ],
    }
    const dir = codeFolder({ 'thaw.json': JSON.stringify(config) })
    const deployed = await thaw(['deploy', dir, '--name', 'given', '--secret', 'ONE', '--secret', 'two=TWO'])
    expect(deployed.code, deployed.stderr).toBe(0)
    expect(deployed.stdout + deployed.stderr).not.toContain('value of')
    const { stdout } = await thaw(['invoke', 'given', '["ONE", "TWO", "THREE"]'])
    expect(JSON.parse(stdout)).toEqual(['value of ONE', 'value of two', 'value of three'])
    const inspected = await thaw(['inspect', 'given'])
    expect(inspected.stdout).toMatch(/^secrets +three as THREE, ONE, two as TWO$/m)
    expect(inspected.stdout + (await thaw(['inspect', 'given', '--json'])).stdout).not.toContain('value of')
  })

  test('a name that is no variable needs one, and a secret that does not exist is named', async () => {
    const dir = codeFolder()
    const noVariable = await thaw(['deploy', dir, '--secret', 'with-dash'])
    expect(noVariable.code).toBe(2)
    expect(noVariable.stderr).toContain('--secret with-dash=')
    const unknown = await thaw(['deploy', dir, '--secret', 'NOBODY', '--json'])
    expect(unknown).toMatchObject({ code: 1, stdout: '' })
    expect(JSON.parse(unknown.stderr)).toMatchObject({ error: { code: 'secret_not_found', message: expect.stringContaining('NOBODY') } })
  })
})

describe('thaw pool', () => {
  test('prewarm starts sandboxes, ls shows them, set fixes the size and gives it up', async () => {
    const warmed = await thaw(['pool', 'prewarm', 'node', '2', '--network', 'none', '--tmp-mib', '32MiB'])
    expect(warmed, warmed.stderr).toMatchObject({ code: 0, stdout: 'the pool of host (node, process) has 2 ready\n' })
    const listed = await thaw(['pool', 'ls'])
    expect(listed.stdout).toMatch(/^IMAGE +RUNTIME +DRIVER +NETWORK/)
    expect(listed.stdout).toMatch(/^host +node +process +none +32 MiB +2 .* auto +0$/m)
    const kind = ['--network', 'none', '--tmp-mib', '32']
    expect((await thaw(['pool', 'set', 'node', '1', ...kind])).stdout).toBe('the pool of host (node, process) is kept at 1\n')
    const items = JSON.parse((await thaw(['pool', 'ls', '--json'])).stdout)
    expect(await server.thaw.pools.list().all()).toEqual(items)
    const item = items.find((pool: PoolItem) => pool.tmp_mib === 32)
    expect(item).toMatchObject({ configured: 1, target: 1, ready: 1, runtime: 'node', network: 'none', tmp_mib: 32 })
    expect((await thaw(['pool', 'set', 'node', 'auto', ...kind])).stdout).toContain('follows demand')
    expect(JSON.parse((await thaw(['pool', 'set', 'node', '0', ...kind, '--json'])).stdout)).toMatchObject({ configured: 0, ready: 0 })
  })

  test('the runtime and the driver can be said, and an image may have slashes in its name', async () => {
    const args = ['--runtime', 'python', '--driver', 'process', '--json']
    const { stdout, stderr } = await thaw(['pool', 'set', 'registry.example:5000/team/app:1.2', '0', ...args])
    expect(JSON.parse(stdout || stderr)).toMatchObject({ runtime: 'python', driver: 'process', configured: 0 })
  })

  test('what is no size, no count or no kind is a mistake of usage', async () => {
    for (const args of [
      ['set', 'python', '-1'],
      ['set', 'python', 'lots'],
      ['set', 'python', '1001'],
      ['set', 'python'],
      ['prewarm', 'python', '0'],
      ['prewarm', 'python', '--runtime', 'cobol'],
      ['prewarm', 'python', '--tmp-mib', 'x'],
    ])
      expect((await thaw(['pool', ...args])).code, args.join(' ')).toBe(2)
    const go = await thaw(['pool', 'prewarm', 'go', '--json'])
    expect(go.code).toBe(1)
    expect(JSON.parse(go.stderr)).toHaveProperty('error.code', 'invalid_request')
  })
})

/** Types at a terminal of its own once the command asks, and gives all that the terminal showed. */
async function atTerminal(args: string[], input: string): Promise<Ended> {
  const typist = `import os, pty, sys
program, keys = sys.argv[2:], sys.argv[1].encode().decode("unicode_escape").encode()
pid, terminal = pty.fork()
if pid == 0: os.execvp(program[0], program)
shown = b""
try:
    while True:
        data = os.read(terminal, 4096)
        if not data: break
        shown += data
        if keys and b": " in shown:
            os.write(terminal, keys)
            keys = b""
except OSError:
    pass
sys.stdout.write(shown.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))`
  const keys = [...input].map((key) => `\\x${key.charCodeAt(0).toString(16).padStart(2, '0')}`).join('')
  return run('python3', ['-c', typist, keys, process.execPath, script, ...args], '')
}
