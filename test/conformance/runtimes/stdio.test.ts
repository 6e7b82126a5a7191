import { execFile, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { frameTypes, type LoadMessage } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../../support/eventually.ts'
import { Gate, type InvokeOptions, RuntimeProcess } from './harness.ts'

const run = promisify(execFile)
const source = join(import.meta.dirname, '../../../runtimes/custom')
const text = 'text/plain; charset=utf-8'

let dir: string
let launcher: string
let codeDir: string

const files = {
  'run.sh': '#!/bin/sh\necho "run.sh in $PWD with $1"\n',
  'plain.sh': '#!/bin/sh\necho never\n',
  'main.mjs': `
let size = 0
for await (const bytes of process.stdin) size += bytes.length
console.log(JSON.stringify({ size, argument: process.argv[2] }))
`,
  'gate.py': `
import os, socket, sys
with socket.create_connection(('127.0.0.1', int(os.environ['GATE_PORT']))) as connection:
    connection.recv(1)
sys.stdout.write(sys.stdin.read())
`,
  // Holds a connection, in itself or in a child that outlives it.
  'hold.py': `
import os, socket, sys
connection = socket.create_connection(('127.0.0.1', int(os.environ['WITNESS_PORT'])))
print(os.environ['FUNCTION_PAYLOAD_FILE'], file=sys.stderr, flush=True)
reader, writer = os.pipe()
if sys.argv[1] in ('child', 'daemon') and os.fork() > 0:
    os.close(writer)
    os.read(reader, 1)
    print('parent')
    sys.exit(0)
if sys.argv[1] == 'daemon':
    os.setsid()
os.close(writer)
if sys.argv[1] == 'both' and os.fork() > 0:
    os.wait()
connection.recv(1)
`,
  // Leaves orphans behind, and waits until none of them is a zombie: the test's time limit is the only clock.
  'orphans.py': `
import glob, os, sys
reader, writer = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os.close(reader)
            os._exit(0)
        os._exit(0)
    os.wait()
os.close(writer)
os.read(reader, 1)
def zombies():
    found = 0
    for path in glob.glob('/proc/[0-9]*/stat'):
        try:
            found += open(path).read().rsplit(')', 1)[1].split()[0] == 'Z'
        except OSError:
            pass
    return found
while zombies() > 0:
    pass
sys.exit(17)
`,
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'thaw-stdio-'))
  launcher = join(dir, 'launcher')
  codeDir = join(dir, 'code')
  await mkdir(join(codeDir, 'folder'), { recursive: true })
  for (const [name, content] of Object.entries(files)) await writeFile(join(codeDir, name), content)
  await chmod(join(codeDir, 'run.sh'), 0o755)
  await run('go', ['build', '-trimpath', '-ldflags=-s -w', '-o', launcher, '.'], {
    cwd: source,
    env: { ...process.env, PATH: `${process.env.PATH}:/usr/local/go/bin`, CGO_ENABLED: '0', GOTOOLCHAIN: 'local' },
  })
})
afterAll(() => rm(dir, { recursive: true, force: true }))

/** A launcher that was told to load, but did not answer yet. */
async function loading(command: string[], load: Partial<LoadMessage> = {}, start = [launcher]): Promise<RuntimeProcess> {
  const runtime = await RuntimeProcess.start(start, { runtimeDir: dir, cwd: '/' })
  await runtime.hello()
  runtime.sendLoad({ contract: 'stdio', handler: 'main', code_dir: codeDir, command, ...load })
  return runtime
}

async function loaded(command: string[], load: Partial<LoadMessage> = {}, start = [launcher]): Promise<RuntimeProcess> {
  const runtime = await loading(command, load, start)
  await runtime.ready()
  return runtime
}

/** What one invocation of a shell script answers. */
async function answerOf(script: string, body: Buffer | string = '', options: InvokeOptions = {}, load: Partial<LoadMessage> = {}) {
  await using runtime = await loaded(['sh', '-c', script], load)
  return await runtime.invoke(body, options).answer()
}

/** Sees programs live and die: they hold a connection to it, in `WITNESS_PORT`. */
class Witness implements AsyncDisposable {
  readonly port: number
  readonly #server: Server
  readonly #peers: Socket[] = []
  readonly connected: Promise<void>
  /** The one that connected has ended, and all that inherited its connection. */
  readonly ended: Promise<void>

  private constructor(server: Server) {
    this.#server = server
    this.port = (server.address() as AddressInfo).port
    const socket = once(server, 'connection')
    this.connected = socket.then(() => {})
    server.on('connection', (peer) => this.#peers.push(peer))
    this.ended = socket.then(async ([peer]) => {
      peer.on('error', () => {}).resume()
      await once(peer, 'close')
    })
  }

  static async open(): Promise<Witness> {
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new Witness(server)
  }

  get env(): Record<string, string> {
    return { WITNESS_PORT: String(this.port) }
  }

  /** Lets go of whoever still holds a connection: the program then ends by itself. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const peer of this.#peers) peer.destroy()
    this.#server.close()
  }
}

describe('what the program is given', () => {
  test('the payload is on stdin, in a variable and in a file', async () => {
    const { body } = await answerOf(
      'cat; printf "|$FUNCTION_PAYLOAD|"; cat "$FUNCTION_PAYLOAD_FILE"; stat -c "|%a" "$FUNCTION_PAYLOAD_FILE"',
      'pay ü',
    )
    expect(body.toString()).toBe('pay ü|pay ü|pay ü|600\n')
  })

  test('a payload of 128 KiB or with zero bytes is in no variable', async () => {
    const script = 'printenv FUNCTION_PAYLOAD || echo unset; wc -c < "$FUNCTION_PAYLOAD_FILE"; wc -c'
    const large = await answerOf(script, Buffer.alloc(128 * 1024, 'x'))
    expect(large.body.toString()).toBe('unset\n131072\n131072\n')
    expect((await answerOf(script, Buffer.from([1, 0, 2]))).body.toString()).toBe('unset\n3\n3\n')
    const fits = 128 * 1024 - 'FUNCTION_PAYLOAD='.length - 1
    expect((await answerOf('printf "$FUNCTION_PAYLOAD" | wc -c', Buffer.alloc(fits, 'x'))).body.toString().trim()).toBe(String(fits))
  })

  test('the payload file is gone when the answer is there', async () => {
    const { body } = await answerOf('printf "$FUNCTION_PAYLOAD_FILE"', 'x')
    expect(body.toString()).toMatch(/^\/.+/)
    expect(existsSync(body.toString())).toBe(false)
  })

  test('without room for files the payload is on stdin and in the variable', async () => {
    const script = 'printenv FUNCTION_PAYLOAD_FILE || echo none; echo "$FUNCTION_PAYLOAD"; cat'
    const { body } = await answerOf(script, 'x', {}, { env: { TMPDIR: '/proc/nowhere' } })
    expect(body.toString()).toBe('none\nx\nx')
  })

  test('the environment is that of the function and the invocation, without the runtime’s own', async () => {
    const answer = await answerOf(
      'env; pwd',
      '',
      { id: 'inv_7', attempt: 2, deadlineMs: 4102444800000 },
      { env: { GREETING: 'hi there', HOME: '/elsewhere' } },
    )
    const lines = answer.body.toString().split('\n')
    expect(lines).toEqual(
      expect.arrayContaining([
        'GREETING=hi there',
        'HOME=/elsewhere',
        'THAW_INVOCATION_ID=inv_7',
        'THAW_ATTEMPT=2',
        'THAW_DEADLINE_MS=4102444800000',
        'THAW_FUNCTION_NAME=subject',
        'FUNCTION_PAYLOAD=',
        codeDir,
      ]),
    )
    expect(lines.filter((line) => /^THAW_(RUNTIME|HTTP)_/.test(line))).toEqual([])
  })

  test('an HTTP request is in the environment, its body on stdin', async () => {
    const http = { method: 'PATCH', path: '/a b/ü', query: 'x=1&y=%20', headers: {} }
    const { body } = await answerOf('echo "$THAW_HTTP_METHOD $THAW_HTTP_PATH $THAW_HTTP_QUERY"; cat', 'body', { http })
    expect(body.toString()).toBe('PATCH /a b/ü x=1&y=%20\nbody')
  })
})

describe('the answer', () => {
  test('what parses as JSON is JSON, other UTF-8 is text, the rest bytes', async () => {
    const typeOf = async (script: string) => (await answerOf(script)).meta?.content_type
    expect(await typeOf('echo \'{"a": [1, "ü"]}\'')).toBe('application/json')
    expect(await typeOf('echo 42')).toBe('application/json')
    expect(await typeOf('echo "{a}"')).toBe(text)
    expect(await typeOf('true')).toBe(text)
    expect(await typeOf("printf '\\377\\376'")).toBe('application/octet-stream')
    expect(await typeOf('printf \'"\\377"\'')).toBe('application/octet-stream')
  })

  test('3 MiB go in and out', async () => {
    const bytes = Buffer.alloc(3 * 1024 * 1024 + 1, 'thaw ü! ')
    const answer = await answerOf('cat', bytes)
    expect(answer.meta).toMatchObject({ content_type: text, more: true })
    expect(answer.body.equals(bytes)).toBe(true)
    for (const chunk of answer.chunks) expect(chunk.length).toBeLessThanOrEqual(256 * 1024)
    const binary = await answerOf('cat', Buffer.alloc(3 * 1024 * 1024, 0xff))
    expect(binary.meta?.content_type).toBe('application/octet-stream')
    expect(binary.body.length).toBe(3 * 1024 * 1024)
  })

  test('JSON of less than 1 MiB stays JSON in several pieces', async () => {
    const value = JSON.stringify('x'.repeat(900_000))
    const answer = await answerOf('cat', value)
    expect(answer.meta).toMatchObject({ content_type: 'application/json', more: true })
    expect(answer.body.toString()).toBe(value)
  })

  test('a program that does not read its input answers', async () => {
    expect((await answerOf('echo done', Buffer.alloc(3 * 1024 * 1024))).body.toString()).toBe('done\n')
    expect((await answerOf('exec <&-; echo done', Buffer.alloc(3 * 1024 * 1024))).body.toString()).toBe('done\n')
  })

  test('programs in other languages answer, again and again', async () => {
    await using runtime = await loaded(['node', 'main.mjs', 'argument'])
    for (const size of [0, 1, 100_000]) {
      const { body } = await runtime.invoke(Buffer.alloc(size)).answer()
      expect(JSON.parse(body.toString())).toEqual({ size, argument: 'argument' })
    }
  })
})

describe('failures', () => {
  test('an exit code other than 0 is an ExitError with the end of stderr', async () => {
    const { failed, meta } = await answerOf('echo ignored; echo "no such order" >&2; exit 3')
    expect(meta).toBeUndefined()
    expect(failed).toEqual({ reason: 'error', type: 'ExitError', message: 'sh exited with code 3.', stack: 'no such order\n' })
  })

  test('a signal is named', async () => {
    expect((await answerOf('kill -TERM $$')).failed).toMatchObject({
      type: 'ExitError',
      message: 'sh was ended by signal 15 (terminated).',
    })
  })

  test('of a long stderr the last 8 KiB are the stack', async () => {
    const { failed, logs } = await answerOf('for n in $(seq 1 2000); do echo "line $n ü" >&2; done; exit 1')
    expect(Buffer.byteLength(failed?.stack ?? '')).toBeGreaterThan(8 * 1024 - 4)
    expect(Buffer.byteLength(failed?.stack ?? '')).toBeLessThanOrEqual(8 * 1024)
    expect(failed?.stack?.endsWith('line 1999 ü\nline 2000 ü\n')).toBe(true)
    expect(logs.length).toBe(2000)
  })

  test('a large answer breaks off when the program fails after all', async () => {
    const answer = await answerOf('head -c 2097152 /dev/zero; exit 9')
    expect(answer.body.length).toBe(2 * 1024 * 1024)
    expect(answer.failed).toMatchObject({ type: 'ExitError', message: 'sh exited with code 9.' })
  })

  test('a program that cannot be started fails its invocation', async () => {
    await writeFile(join(codeDir, 'broken'), '#!/nowhere/interpreter\n', { mode: 0o755 })
    await using runtime = await loaded(['broken'])
    expect((await runtime.invoke().answer()).failed).toMatchObject({
      type: 'StartError',
      message: expect.stringContaining('no such file or directory'),
    })
  })
})

describe('finding the program', () => {
  test('a file of the code is preferred, by name, by ./name and by its whole path', async () => {
    for (const name of ['run.sh', './run.sh', join(codeDir, 'run.sh')]) {
      await using runtime = await loaded([name, 'words'])
      expect((await runtime.invoke().answer()).body.toString()).toBe(`run.sh in ${codeDir} with words\n`)
    }
  })

  test('the search path is that of the function', async () => {
    await mkdir(join(codeDir, 'bin'), { recursive: true })
    await writeFile(join(codeDir, 'bin/tool'), '#!/bin/sh\necho tool\n', { mode: 0o755 })
    await using runtime = await loaded(['tool'], { env: { PATH: `${codeDir}/bin:/usr/bin:/bin` } })
    expect((await runtime.invoke().answer()).body.toString()).toBe('tool\n')
  })

  test('what is missing, not executable, a folder, or no command at all is a load failure', async () => {
    for (const [command, load, type, message] of [
      [['no-such-program'], {}, 'NotFound', 'no program no-such-program'],
      [['./no-such-file'], {}, 'NotFound', 'no program ./no-such-file'],
      [['plain.sh'], {}, 'NotExecutable', 'plain.sh is not executable'],
      [['folder'], {}, 'NotExecutable', 'is a folder'],
      [[], {}, 'NotFound', 'no command'],
      [['sh'], { code_dir: '/nowhere' }, 'NotFound', 'no code folder /nowhere'],
      [['sh'], { contract: 'handler' as const }, 'ContractError', 'not handler'],
    ] as const) {
      await using runtime = await loading([...command], load)
      expect(await runtime.loadFailed()).toMatchObject({ type, message: expect.stringContaining(message) })
    }
  })
})

describe('logs', () => {
  test('stderr is logged line by line with its invocation, a partial line too, before the answer', async () => {
    const { logs, body } = await answerOf('echo one >&2; echo out; printf "two\\nthree" >&2')
    expect(body.toString()).toBe('out\n')
    expect(logs).toEqual(['one\n', 'two\n', 'three'].map((line) => ({ source: 'stderr', text: line })))
  })

  test('a line is logged while the program runs', async () => {
    await using gate = await Gate.open()
    await using runtime = await loaded(['sh', '-c', 'echo early >&2; exec python3 gate.py'], { env: { GATE_PORT: String(gate.port) } })
    const invocation = runtime.invoke('x')
    expect((await invocation.next()).payload.toString('utf8', 1)).toBe('early\n')
    await gate.arrived(1)
    gate.release()
    expect((await invocation.answer()).body.toString()).toBe('x')
  })

  test('lines of more than 16 KiB are cut between characters, and what is not UTF-8 is replaced', async () => {
    const { logs } = await answerOf("python3 -c \"print('xü' * 10000)\" >&2; printf '\\377\\n' >&2")
    expect(logs.map((line) => line.text).join('')).toBe(`${'xü'.repeat(10_000)}\n\uFFFD\n`)
    expect(logs.length).toBe(3)
    for (const line of logs) expect(Buffer.byteLength(line.text)).toBeLessThanOrEqual(16 * 1024)
  })
})

describe('processes', () => {
  test('two invocations run at once', async () => {
    await using gate = await Gate.open()
    await using runtime = await loaded(['python3', 'gate.py'], { env: { GATE_PORT: String(gate.port) }, concurrency: 2 })
    const [one, two] = [runtime.invoke('first'), runtime.invoke('second')]
    await gate.arrived(2)
    gate.release()
    expect((await two.answer()).body.toString()).toBe('second')
    expect((await one.answer()).body.toString()).toBe('first')
  })

  test('a child that stays in the background is killed when the program ends', async () => {
    await using witness = await Witness.open()
    await using runtime = await loaded(['python3', 'hold.py', 'child'], { env: witness.env })
    expect((await runtime.invoke().answer()).body.toString()).toBe('parent\n')
    await witness.ended
  })

  test('a child that left the group and holds stdout open does not delay the answer', async () => {
    await using witness = await Witness.open()
    await using runtime = await loaded(['python3', 'hold.py', 'daemon'], { env: witness.env })
    expect((await runtime.invoke().answer()).body.toString()).toBe('parent\n')
  })

  test('a cancel kills the program and its children', async () => {
    await using witness = await Witness.open()
    await using runtime = await loaded(['python3', 'hold.py', 'both'], { env: witness.env })
    const invocation = runtime.invoke()
    await witness.connected
    invocation.cancel()
    expect((await invocation.answer()).failed).toMatchObject({ reason: 'cancelled' })
    await witness.ended
  })

  test('a cancel of an answer that streams without end stops it', async () => {
    await using runtime = await loaded(['sh', '-c', 'yes'])
    const invocation = runtime.invoke()
    await invocation.next()
    invocation.cancel()
    let last = await invocation.next()
    while (last.type === frameTypes.chunk) last = await invocation.next()
    expect([last.type, JSON.parse(last.payload.toString()).reason]).toEqual([frameTypes.failed, 'cancelled'])
  })

  test('the end of the connection ends the launcher and all programs, and removes their files', async () => {
    await using witness = await Witness.open()
    await using runtime = await loaded(['python3', 'hold.py', 'both'], { env: witness.env })
    const file = (await runtime.invoke('payload').next()).payload.toString('utf8', 1).trim()
    expect(existsSync(file)).toBe(true)
    runtime.disconnect()
    expect(await runtime.exited).toEqual({ code: 0, signal: null })
    await witness.ended
    expect(existsSync(file)).toBe(false)
  })

  const unshare = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc']
  const mayUnshare = spawnSync(unshare[0] as string, [...unshare.slice(1), 'true']).status === 0

  test.skipIf(!mayUnshare)('as process 1 it reaps orphans, and takes no exit code from its own programs', async () => {
    await using runtime = await loaded(['python3', 'orphans.py'], { concurrency: 4 }, [...unshare, launcher])
    for (let round = 0; round < 3; round++) {
      const answers = await Promise.all([1, 2, 3, 4].map(() => runtime.invoke().answer()))
      for (const { failed } of answers) expect(failed?.message).toBe('python3 exited with code 17.')
    }
  })

  test('hundreds of programs in a row leave no open file behind', async () => {
    await using runtime = await loaded(['sh', '-c', 'ls /proc/$PPID/fd | wc -l'])
    const count = async () => Number((await runtime.invoke('x').answer()).body.toString())
    const before = await count()
    for (let n = 0; n < 300; n++) await count()
    // The goroutine that fed the last program may not have closed its end yet.
    expect(await eventually(async () => (await count()) <= before + 2)).toBe(true)
  })
})
