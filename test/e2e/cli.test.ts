import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { Thaw } from '@thaw/sdk'
import { runServer } from '@thaw/server'
import { afterAll, beforeAll, expect, test } from 'vitest'

// The command as people run it: a process of its own, against the real server.

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))
const examples = fileURLToPath(new URL('../../examples/quickstart', import.meta.url))

let root: string
let server: Awaited<ReturnType<typeof runServer>>
const running = new Set<ChildProcessWithoutNullStreams>()

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'thaw-e2e-cli-'))
  // Functions of a server that runs as root run as another user, who must be able to walk through here.
  await chmod(root, 0o711)
  server = await runServer({ flags: { port: 0, data_dir: join(root, 'data'), driver: 'process', log_level: 'silent' } })
}, 60_000)

afterAll(async () => {
  for (const child of running) child.kill('SIGKILL')
  await server?.close()
  await rm(root, { recursive: true, force: true })
}, 60_000)

function start(args: string[], env: Record<string, string> = {}): ChildProcessWithoutNullStreams {
  const outer = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_')))
  const child = spawn(process.execPath, [script, ...args], { cwd: root, env: { ...outer, THAW_URL: server.url, ...env } })
  running.add(child)
  child.once('exit', () => running.delete(child))
  return child
}

interface Ended {
  code: number | null
  stdout: string
  stderr: string
}

async function ended(child: ChildProcessWithoutNullStreams): Promise<Ended> {
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  return { code, stdout, stderr }
}

async function thaw(args: string[], options: { input?: string | Uint8Array; env?: Record<string, string> } = {}): Promise<Ended> {
  const child = start(args, options.env)
  child.stdin.end(options.input ?? '')
  return ended(child)
}

let made = 0

async function folderOf(files: Record<string, string>): Promise<string> {
  const dir = join(root, `code-${++made}`)
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(dir, name)), { recursive: true })
    await writeFile(join(dir, name), content)
  }
  return dir
}

async function deployed(source: string): Promise<string> {
  const dir = await folderOf({ 'main.mjs': source })
  const name = `cli-${made}`
  const { code, stderr } = await thaw(['deploy', dir, '--name', name])
  expect(code, stderr).toBe(0)
  return name
}

test('deploy says what it guessed and why, shows the build, and ends when the function is ready', async () => {
  const dir = await folderOf({ 'main.mjs': 'export const handler = (event) => ({ hello: event.name })' })
  const { code, stdout, stderr } = await thaw([
    'deploy',
    dir,
    '--name',
    'cli-guessed',
    '--memory',
    '256MiB',
    '--timeout',
    '5s',
    '--env',
    'A=b',
  ])
  expect(code, stderr).toBe(0)
  expect(stderr).toContain('guessed: node function, handler main.handler, because main.mjs is there')
  expect(stderr).toContain('loading the handler')
  expect(stdout).toContain('cli-guessed version 1 is ready')
  const item = JSON.parse((await thaw(['inspect', 'cli-guessed', '--json'])).stdout)
  expect(item).toMatchObject({ runtime: 'node', resources: { memory_mib: 256 }, timeout_ms: 5000, env: ['A'] })
  expect((await thaw(['invoke', 'cli-guessed', '{"name": "world"}'])).stdout).toBe('{"hello":"world"}\n')
})

test('a Python folder is a Python function', async () => {
  const { code, stderr } = await thaw(['deploy', join(examples, 'hello-python'), '--name', 'cli-python'])
  expect(stderr).toContain('guessed: python function, handler main.handler')
  expect(code).toBe(0)
  const { stdout } = await thaw(['invoke', 'cli-python', '{"text": "to be or not to be"}'])
  expect(JSON.parse(stdout)).toMatchObject({ words: 6, distinct: 4 })
})

test('deploying again makes a version, which versions lists and rollback undoes', async () => {
  const dir = await folderOf({ 'main.mjs': "export const handler = () => 'old'" })
  await thaw(['deploy', dir, '--name', 'cli-twice'])
  await writeFile(join(dir, 'main.mjs'), "export const handler = () => 'new'")
  expect((await thaw(['deploy', dir, '--name', 'cli-twice'])).stdout).toContain('version 2 is ready')
  expect((await thaw(['invoke', 'cli-twice'])).stdout).toBe('new\n')
  const versions = JSON.parse((await thaw(['versions', 'cli-twice', '--json'])).stdout)
  expect(versions.map((version: { version: number }) => version.version)).toEqual([2, 1])
  expect((await thaw(['rollback', 'cli-twice'])).stdout).toContain('now serves version 1')
  expect((await thaw(['invoke', 'cli-twice'])).stdout).toBe('old\n')
})

test('a deploy whose handler cannot be loaded prints the log and the error, and ends with 1', async () => {
  const dir = await folderOf({ 'main.mjs': "import './missing.mjs'\nexport const handler = () => 1" })
  const plain = await thaw(['deploy', dir, '--name', 'cli-broken'])
  expect(plain.code).toBe(1)
  expect(plain.stderr).toMatch(/error: .+\n(?:.*\n)*fix: /)
  expect(plain.stderr).toContain('missing.mjs')
  const json = await thaw(['deploy', dir, '--name', 'cli-broken', '--json'])
  expect(json).toMatchObject({ code: 1, stdout: '' })
  expect(JSON.parse(json.stderr)).toMatchObject({ error: { code: 'handler_invalid', details: { log: expect.stringContaining('failed') } } })
})

test('a build that fails leaves nothing: no function of its first version, and no version of a function that serves', async () => {
  const dir = await folderOf({ 'main.mjs': "import './missing.mjs'" })
  expect((await thaw(['deploy', dir, '--name', 'cli-nothing', '--handler', 'main.handler'])).code).toBe(1)
  expect((await thaw(['inspect', 'cli-nothing'])).stderr).toContain('no function named cli-nothing')
  const name = await deployed("export const handler = () => 'old'")
  expect((await thaw(['deploy', dir, '--name', name, '--handler', 'main.handler'])).code).toBe(1)
  const versions = JSON.parse((await thaw(['versions', name, '--json'])).stdout)
  expect(versions.map((version: { version: number }) => version.version)).toEqual([1])
  expect((await thaw(['invoke', name])).stdout).toBe('old\n')
})

test('--handler file.function means a function, and nothing is said to be guessed that was given', async () => {
  const dir = await folderOf({ 'main.mjs': "export const slow = () => 'slow'\nexport const handler = () => 'other'" })
  const { code, stderr } = await thaw(['deploy', dir, '--name', 'cli-slow', '--handler', 'main.slow'])
  expect(code, stderr).toBe(0)
  expect(stderr).toContain('guessed: node function, because main.slow means slow of main.mjs')
  expect(stderr).not.toContain('main.handler')
  expect((await thaw(['invoke', 'cli-slow'])).stdout).toBe('slow\n')
})

test('what deploy tells to type next is what works here', async () => {
  const dir = await folderOf({ 'main.mjs': 'export const handler = (event) => event' })
  const { stdout } = await thaw(['deploy', dir, '--name', 'cli-next', '--url', server.url])
  expect(stdout).toContain(`call it: npx thaw invoke cli-next 'JSON' --url ${server.url}`)
  expect(stdout).not.toContain('/fn/')
  expect((await thaw(['help', 'ls'])).stdout).toMatch(/^ {2}npx thaw ls$/m)
  expect((await thaw(['invoke', 'nobody'])).stderr).toContain('`npx thaw ls`')
})

test('the log of a build can be read afterwards, of the newest version or of an earlier one', async () => {
  const name = await deployed('export const handler = () => 1')
  expect((await thaw(['logs', name, '--build'])).stdout).toContain('loading the handler')
  expect((await thaw(['logs', name, '--build', '1', '--follow'])).stdout).toContain('loaded in')
  const [line] = (await thaw(['logs', name, '--build', '--json'])).stdout.split('\n')
  expect(JSON.parse(line ?? '')).toMatchObject({ version: 1, message: expect.any(String) })
  const missing = await thaw(['logs', name, '--build', '9'])
  expect(missing.code).toBe(1)
  expect(missing.stderr).toContain(`npx thaw versions ${name}`)
})

test.each([
  ['a duration without a unit', ['deploy', '--timeout', '5'], '5s, 5ms or 5m'],
  ['an empty name', ['deploy', '--name', ''], 'Use 1 to 63 letters'],
  ['an empty name of something else', ['rm', ''], 'Use 1 to 63 letters'],
  ['a variable that cannot be one', ['deploy', examples, '--runtime', 'python', '--env', 'A-B=1'], '--env A-B: use letters, digits and _.'],
  ['an option that is a typing error', ['up', '--quikstart'], 'Did you mean --quickstart?'],
  ['another option of a command', ['image', 'ls', '--nope'], '`npx thaw image ls --help`'],
])('%s is an error of usage that says what would be right', async (_what, args, message) => {
  const { code, stderr } = await thaw(args)
  expect(code).toBe(2)
  expect(stderr).toContain(message)
})

test('an option that resembles none is not taken for another', async () => {
  expect((await thaw(['up', '--nope'])).stderr).not.toContain('Did you mean')
})

test('a content type with a line break is refused as what it is', async () => {
  const { code, stderr } = await thaw(['invoke', 'cli-guessed', 'x', '--content-type', 'text/plain\nx: y'])
  expect(code).toBe(1)
  expect(stderr).toContain('no content type')
})

test('a stream that fails midway prints its pieces, and which invocation it was', async () => {
  const name = await deployed("export async function* handler() { yield 'one'; throw new Error('midway') }")
  const { code, stdout, stderr } = await thaw(['invoke', name, '--stream'])
  expect(code).toBe(4)
  expect(stdout).toBe('one')
  expect(stderr).toMatch(/^ {2}invocation: inv-/m)
})

test('the payload comes from the argument, a file or standard input', async () => {
  const name = await deployed('export const handler = (event) => event')
  const file = join(await folderOf({ 'event.json': '{"from": "file"}' }), 'event.json')
  expect((await thaw(['invoke', name, 'plain text'])).stdout).toBe('plain text\n')
  expect((await thaw(['invoke', name, '{"a":1}'])).stdout).toBe('{"a":1}\n')
  expect((await thaw(['invoke', name, `@${file}`])).stdout).toBe('{"from":"file"}\n')
  expect((await thaw(['invoke', name, '-'], { input: '[1,2]' })).stdout).toBe('[1,2]\n')
  expect((await thaw(['invoke', name, '-', '--json'], { input: new Uint8Array([255, 0]) })).stdout).toContain('"base64":"/wA="')
  expect((await thaw(['invoke', name, '@/no/such/file'])).code).toBe(2)
})

test('invoke --json gives the answer, the invocation and its timing, and nothing else', async () => {
  const name = await deployed('export const handler = () => ({ ok: true })')
  const { stdout, stderr } = await thaw(['invoke', name, '--json'])
  expect(stderr).toBe('')
  expect(JSON.parse(stdout)).toMatchObject({
    value: { ok: true },
    invocation_id: expect.stringMatching(/^inv-/),
    timing: { run_ms: expect.any(Number) },
  })
})

test('invoke --stream prints each piece as it comes', async () => {
  const name = await deployed('export async function* handler() { for (const n of [1, 2]) yield { n } }')
  expect((await thaw(['invoke', name, '--stream'])).stdout).toBe('{"n":1}\n{"n":2}\n')
})

test('a function that fails ends invoke with 4, and its own error is shown', async () => {
  const name = await deployed("export const handler = () => { throw new RangeError('too far') }")
  const plain = await thaw(['invoke', name])
  expect(plain).toMatchObject({ code: 4, stdout: '' })
  expect(plain.stderr).toContain('RangeError')
  expect(plain.stderr).toMatch(/^fix: /m)
  const json = await thaw(['invoke', name, '--json'])
  expect(JSON.parse(json.stderr)).toMatchObject({ error: { code: 'function_failed', details: { message: 'too far' } } })
})

test('a function that does not exist ends with 1, a server that is not there with 3, a wrong command with 2', async () => {
  expect((await thaw(['invoke', 'nobody'])).code).toBe(1)
  const free = await freePort()
  const nowhere = await thaw(['ls', '--json'], { env: { THAW_URL: `http://127.0.0.1:${free}` } })
  expect(nowhere).toMatchObject({ code: 3, stdout: '' })
  expect(JSON.parse(nowhere.stderr)).toMatchObject({
    error: { code: 'unreachable', message: expect.stringContaining(`127.0.0.1:${free}`) },
  })
  expect((await thaw(['frobnicate'])).code).toBe(2)
  expect((await thaw(['deploy', '--memory', 'lots'])).code).toBe(2)
  const json = await thaw(['logs', '--json'])
  expect(json).toMatchObject({ code: 2, stdout: '' })
  expect(JSON.parse(json.stderr)).toHaveProperty('error.fix')
})

test('--url wins over THAW_URL', async () => {
  const { code } = await thaw(['ls', '--url', server.url], { env: { THAW_URL: 'http://127.0.0.1:9' } })
  expect(code).toBe(0)
})

test('ls lists functions, and rm removes them, the others also when one does not exist', async () => {
  const names = [await deployed('export const handler = () => 1'), await deployed('export const handler = () => 1')]
  expect((await thaw(['ls'])).stdout).toMatch(/^NAME +VERSION +STATE/)
  expect((await thaw(['ls', '--quiet'])).stdout.split('\n')).toEqual(expect.arrayContaining(names))
  const removed = await thaw(['rm', names[0] ?? '', 'nobody', names[1] ?? ''])
  expect(removed.code).toBe(1)
  expect(removed.stdout).toBe(names.map((name) => `removed ${name}\n`).join(''))
  expect((await thaw(['ls', '--quiet'])).stdout.split('\n')).not.toContain(names[0])
})

test('logs prints what a function wrote, with control characters made harmless', async () => {
  const name = await deployed("export const handler = () => console.log('red \\u001b[31m alert')")
  await thaw(['invoke', name])
  const { stdout } = await thaw(['logs', name])
  expect(stdout).toContain('red \\x1b[31m alert')
  const entries = (await thaw(['logs', name, '--json'])).stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(entries).toContainEqual(expect.objectContaining({ source: 'stdout', message: expect.stringContaining('alert') }))
})

test('logs -f goes on until Ctrl-C, which is no failure', async () => {
  const name = await deployed('export const handler = (event) => console.log(event)')
  await thaw(['invoke', name, 'before'])
  const child = start(['logs', name, '-f'])
  const end = ended(child)
  const client = new Thaw({ url: server.url })
  for await (const line of createInterface(child.stdout)) {
    if (line.includes('before')) await client.functions.invoke(name, 'after')
    if (line.includes('after')) break
  }
  child.kill('SIGINT')
  expect((await end).code).toBe(0)
})

test('Ctrl-C during invoke cancels the invocation', async () => {
  const name = await deployed(
    "export const handler = () => { console.log('began'); return new Promise(() => setTimeout(() => {}, 60_000)) }",
  )
  const child = start(['invoke', name])
  const client = new Thaw({ url: server.url })
  for await (const entry of client.functions.logs(name, { follow: true })) if (entry.message.includes('began')) break
  child.kill('SIGINT')
  expect((await ended(child)).code).toBe(130)
  await expect
    .poll(async () => (await client.invocations.list({ function: name }).page()).items[0]?.status, { timeout: 5_000 })
    .toBe('cancelled')
})

test('thaw.json configures a deploy, and a field that does not exist is named', async () => {
  const files = { 'main.mjs': 'export const handler = () => process.env.WHO' }
  const good = await folderOf({ ...files, 'thaw.json': '{"name": "cli-file", "env": {"WHO": "file"}, "resources": {"memory_mib": 64}}' })
  expect((await thaw(['deploy', good])).code).toBe(0)
  expect((await thaw(['invoke', 'cli-file'])).stdout).toBe('file\n')
  const bad = await thaw(['deploy', await folderOf({ ...files, 'thaw.json': '{"name": "cli-file", "timeout": 5}' })])
  expect(bad.code).toBe(2)
  expect(bad.stderr).toContain('thaw.json: there is no key timeout; did you mean timeout_ms?')
})

test('image ls lists what functions can start from', async () => {
  expect((await thaw(['image', 'ls'])).stdout).toMatch(/^IMAGE .*NEWEST[\s\S]*^host /m)
})

test('config show names the origin of each value', async () => {
  const { stdout } = await thaw(['config', 'show', '--driver', 'process', '--json'], { env: { THAW_PORT: '9123' } })
  const entries = JSON.parse(stdout) as { key: string; value: unknown; origin: string }[]
  expect(entries).toContainEqual({ key: 'port', value: 9123, origin: 'environment' })
  expect(entries).toContainEqual({ key: 'driver', value: 'process', origin: 'flag' })
  expect(entries).toContainEqual(expect.objectContaining({ key: 'host', origin: 'default' }))
})

test('doctor lists the drivers of a server, and what they isolate', async () => {
  const { code, stdout } = await thaw(['doctor'])
  expect(code).toBe(0)
  expect(stdout).toMatch(/^process +yes/m)
  expect(stdout).toContain('No isolation')
})

test('version and help work without a server', async () => {
  expect((await thaw(['version'])).stdout).toMatch(/^thaw \d+\.\d+\.\d+/)
  const help = await thaw(['help', 'deploy'])
  expect(help).toMatchObject({ code: 0 })
  expect(help.stdout).toContain('Examples:')
})

test('the completion script of bash completes commands, values and the names of functions', async () => {
  await deployed('export const handler = () => 1')
  const name = `cli-${made}`
  const { stdout } = await thaw(['completion', 'bash'])
  const complete = async (...words: string[]) => {
    const probe = `thaw() { "${process.execPath}" "${script}" "$@"; }\n${stdout}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _thaw; echo "\${COMPREPLY[*]}"`
    const shell = spawn('bash', ['-c', probe, 'bash', 'thaw', ...words], { env: { ...process.env, THAW_URL: server.url } })
    return (await ended(shell)).stdout.trim().split(' ')
  }
  expect(await complete('inv')).toEqual(['invoke'])
  expect(await complete('image', '')).toEqual(['ls', 'pull', 'build', 'rm', 'prune'])
  expect(await complete('deploy', '--runtime', 'p')).toEqual(['python'])
  expect(await complete('invoke', '')).toContain(name)
})

test('up serves until it is asked to stop, and leaves nothing that answers', async () => {
  const child = start(['up', '--port', '0', '--data-dir', join(root, 'up'), '--driver', 'process', '--json'])
  const end = ended(child)
  const [first] = await once(child.stdout, 'data')
  const { url } = JSON.parse(String(first)) as { url: string }
  await new Thaw({ url }).health()
  child.kill('SIGTERM')
  expect((await end).code).toBe(0)
  await expect(new Thaw({ url }).health()).rejects.toMatchObject({ code: 'unreachable' })
})

test('up on a port that is taken says so and how to take another', async () => {
  const port = new URL(server.url).port
  const { code, stderr } = await thaw(['up', '--port', port, '--data-dir', join(root, 'taken'), '--driver', 'process'])
  expect(code).toBe(1)
  expect(stderr).toContain(`Port ${port}`)
  expect(stderr).toContain('--port')
  expect(stderr).not.toContain('listening on')
})

test('up with the data directory of a running server says so', async () => {
  const { code, stderr } = await thaw(['up', '--port', '0', '--data-dir', join(root, 'data'), '--driver', 'process', '--json'])
  expect(code).toBe(1)
  expect(stderr).toContain('data_dir_in_use')
})

const hasGo = spawnSync('go', ['version']).status === 0

test.skipIf(!hasGo)(
  'the quickstart deploys Python, Node.js and Go, twice over, and all answers are right',
  { timeout: 300_000 },
  async () => {
    const args = ['up', '--quickstart', '--once', '--port', '0', '--data-dir', join(root, 'quickstart'), '--driver', 'process']
    const first = await thaw([...args, '--json'])
    expect(first.code, first.stdout + first.stderr).toBe(0)
    const { ok, functions } = JSON.parse(first.stdout)
    expect(ok).toBe(true)
    expect(functions.map((row: { runtime: string }) => row.runtime)).toEqual(['python', 'node', 'go', 'node'])
    const second = await thaw(args)
    expect(second.code).toBe(0)
    expect(second.stdout).toMatch(/^quickstart-go +go +process +\{"primes":9592,"largest":99991\}/m)
  },
)

async function freePort(): Promise<number> {
  const probe = createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address() as { port: number }
  probe.close()
  await once(probe, 'close')
  return port
}
