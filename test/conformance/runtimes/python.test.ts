import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { CodeFolders, describeRuntime, type RuntimeAdapter, startLoaded } from './suite.ts'

const runtimeDir = join(import.meta.dirname, '../../../runtimes/python')

const gate = `
import os, socket

def gate():
    with socket.create_connection(('127.0.0.1', int(os.environ['GATE_PORT']))) as connection:
        connection.recv(1)
`
const asyncGate = `
import asyncio, os

async def gate():
    reader, writer = await asyncio.open_connection('127.0.0.1', int(os.environ['GATE_PORT']))
    await reader.read(1)
    writer.close()
`

const python: RuntimeAdapter = {
  name: 'Python',
  runtime: 'python',
  runtimeDir,
  file: 'main.py',
  handler: 'main.handler',
  errorType: 'LookupError',
  command: () => [process.env.THAW_TEST_PYTHON ?? 'python3', '-u', join(runtimeDir, 'bootstrap.py')],
  programs: {
    echo: 'def handler(event, context):\n    return event\n',
    asyncEcho: 'async def handler(event, context):\n    return event\n',
    withoutArguments: "def handler():\n    return 'none'\n",
    stream: "def handler(event):\n    yield 'one'\n    yield 'two'\n    yield 'three'\n",
    asyncStream: `
import asyncio

async def handler(event):
    for word in ('one', 'two', 'three'):
        await asyncio.sleep(0)
        yield word
`,
    lines: "def handler(event):\n    yield {'n': 1}\n    yield {'n': 2}\n",
    gatedStream: `${gate}
def handler(event):
    yield 'before'
    gate()
    yield 'after'
`,
    failingStream: "def handler(event):\n    yield 'one'\n    raise ValueError('broken off')\n",
    error: `
def find_order():
    raise LookupError('no such order')

def handler(event, context):
    return find_order()
`,
    unencodable: 'def handler(event):\n    return {"value": object()}\n',
    exit: 'import sys\n\ndef handler(event):\n    sys.exit(3)\n',
    missingFile: { files: { 'other.py': '' } },
    missingExport: 'def other():\n    pass\n',
    notCallable: 'handler = 1\n',
    syntaxError: 'def handler(:\n',
    failsAtLoad: "raise RuntimeError('no database')\n",
    logs: `
import sys

def handler(event):
    print('out')
    print('err', file=sys.stderr)
    print('partial', end='')
    return 'done'
`,
    logsAtLoad: "print('loading')\n\ndef handler(event):\n    return event\n",
    gatedLogs: `${gate}
def handler(event):
    print(event)
    gate()
    print(event)
    return event
`,
    gated: `${gate}
def handler(event):
    gate()
    return event
`,
    gatedAsync: `${asyncGate}
async def handler(event):
    await gate()
    return event
`,
    httpAnswer: `
def handler(event):
    return {'status': 201, 'headers': {'content-type': 'text/html', 'x-answer': 'yes'}, 'body': '<p>made</p>'}
`,
    httpBase64: "def handler(event):\n    return {'statusCode': 200, 'isBase64Encoded': True, 'body': 'AAEC/w=='}\n",
    context: `
def handler(event, context):
    return [context.invocation_id, context.attempt, context.function_name, context.function_version,
            context.memory_limit_mib, context.remaining_ms()]
`,
    marker: "import os\nopen(os.environ['MARKER'], 'w').close()\n\ndef handler(event):\n    return event\n",
    env: "import os\ngreeting = os.environ['GREETING']\n\ndef handler():\n    return greeting\n",
    hooks: `
import thaw

called = []

@thaw.before_snapshot
def before():
    called.append('before_snapshot')

@thaw.after_restore
async def after():
    called.append('after_restore')

def handler(event):
    return called
`,
    failingHook: `
import thaw

@thaw.before_snapshot
def before():
    raise RuntimeError('cannot close')

def handler(event):
    return event
`,
  },
}

describeRuntime(python)

describe('Python alone', () => {
  const folders = new CodeFolders(python)
  afterAll(() => folders[Symbol.asyncDispose]())

  /** What `handler` answers to an empty event, read as text. */
  async function answerOf(files: Record<string, string>, handler = 'main.handler', concurrency = 1): Promise<string> {
    await using runtime = await startLoaded(python, await folders.of({ files }), { handler, concurrency })
    const answer = await runtime.invoke().answer()
    return answer.failed === undefined ? answer.body.toString() : `failed: ${answer.failed.type}: ${answer.failed.message}`
  }

  test('a handler in a package is found by slashes and by dots', async () => {
    const files = { 'pkg/mod.py': 'from . import other\ndef func():\n    return other.name\n', 'pkg/other.py': "name = 'found'\n" }
    expect(await answerOf(files, 'pkg/mod.func')).toBe('found')
    expect(await answerOf(files, 'pkg.mod.func')).toBe('found')
    expect(await answerOf(files, './pkg/mod.func')).toBe('found')
  })

  test('dependencies are found in .thaw/python', async () => {
    const files = { 'main.py': 'from dep import handler\n', '.thaw/python/dep.py': "def handler():\n    return 'dep'\n" }
    expect(await answerOf(files)).toBe('dep')
  })

  test('a file named like a module of the standard library is loaded, and the library still works', async () => {
    expect(await answerOf({ 'time.py': "import json\ndef handler():\n    return 'mine'\n" }, 'time.handler')).toBe('mine')
    expect(await answerOf({ 'os.py': "def handler():\n    return 'mine'\n" }, 'os.handler')).toBe('mine')
  })

  test('methods, partials and callable objects are handlers', async () => {
    const main = `
import functools

class Service:
    def method(self, event):
        return 'method'
    def __call__(self, event, context):
        return 'call %s' % context.attempt

def three(prefix, event, context):
    return prefix

def decorate(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

@decorate
def decorated(event):
    return 'decorated'

method = Service().method
instance = Service()
partial = functools.partial(three, 'partial')
builtin = print
`
    for (const [name, answer] of [
      ['method', 'method'],
      ['instance', 'call 1'],
      ['partial', 'partial'],
      ['decorated', 'decorated'],
    ]) {
      expect(await answerOf({ 'main.py': main }, `main.${name}`)).toBe(answer)
    }
  })

  test('a handler that returns an awaitable or an asynchronous generator is answered', async () => {
    for (const concurrency of [1, 2]) {
      expect(
        await answerOf({ 'main.py': "async def work():\n    return 'later'\nhandler = lambda: work()\n" }, undefined, concurrency),
      ).toBe('later')
      expect(
        await answerOf(
          { 'main.py': "async def work():\n    yield 'a'\n    yield 'b'\nhandler = lambda: work()\n" },
          undefined,
          concurrency,
        ),
      ).toBe('ab')
    }
  })

  test('values that JSON has no word for fail with type and message', async () => {
    const fails = (expression: string) => answerOf({ 'main.py': `def handler():\n    return ${expression}\n` })
    expect(await fails("float('nan')")).toMatch(/^failed: ValueError: /)
    expect(await fails('{1, 2}')).toBe('failed: TypeError: Object of type set is not JSON serializable')
    expect(await fails('(lambda a: a.append(a) or a)([])')).toMatch(/^failed: (ValueError|RecursionError): /)
  })

  test('logging, os-level names of the streams and bytes written to their buffer behave', async () => {
    const main = `
import logging, sys

def handler():
    logging.warning('warned')
    sys.stdout.buffer.write('bytes ü\\n'.encode())
    sys.stdout.flush()
    return [sys.stdout.isatty(), sys.stdout.encoding, sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.writable()]
`
    await using runtime = await startLoaded(python, await folders.of(main))
    const { logs, body } = await runtime.invoke().answer()
    expect(logs).toEqual([
      { source: 'stderr', text: 'WARNING:root:warned\n' },
      { source: 'stdout', text: 'bytes ü\n' },
    ])
    expect(JSON.parse(body.toString())).toEqual([false, 'utf-8', 1, 2, true])
  })

  test('a child that the handler forks does not write to the connection', async () => {
    const main = `
import os

def handler():
    child = os.fork()
    if child == 0:
        print('of the child')
        os._exit(0)
    os.waitpid(child, 0)
    return 'parent'
`
    await using runtime = await startLoaded(python, await folders.of(main))
    const { logs, body } = await runtime.invoke().answer()
    expect([logs, body.toString()]).toEqual([[], 'parent'])
  })

  test('a stack shows the cause of an error and nothing of the runtime', async () => {
    const main = `
def handler():
    try:
        {}['key']
    except KeyError as error:
        raise ValueError('outer') from error
`
    await using runtime = await startLoaded(python, await folders.of(main), { concurrency: 2 })
    const { failed } = await runtime.invoke().answer()
    expect(failed).toMatchObject({ type: 'ValueError', message: 'outer' })
    expect(failed?.stack).toMatch(/KeyError: 'key'[\s\S]*direct cause[\s\S]*ValueError: outer/)
    expect(failed?.stack).not.toContain('_thaw')
  })

  test('a cancelled generator is closed at its next piece', async () => {
    const main = `
def handler():
    try:
        while True:
            yield 'x' * 1000
    finally:
        print('closed')
`
    for (const concurrency of [1, 2]) {
      await using runtime = await startLoaded(python, await folders.of(main), { concurrency })
      const invocation = runtime.invoke()
      await invocation.next()
      invocation.cancel()
      const { failed, logs } = await drain(invocation)
      expect([failed, logs]).toEqual(['cancelled', ['closed\n']])
    }
  })

  test('numbers differ after a restore', async () => {
    const main = `
import random
random.seed(1)
expected = random.Random(1).random()

def handler():
    return random.random() == expected
`
    await using runtime = await startLoaded(python, await folders.of(main))
    await runtime.hook('after_restore')
    expect((await runtime.invoke().answer()).body.toString()).toBe('false')
  })
})

/** Reads an endless stream to its end. */
async function drain(invocation: ReturnType<Awaited<ReturnType<typeof startLoaded>>['invoke']>) {
  const logs: string[] = []
  for (;;) {
    const frame = await invocation.next()
    if (frame.type === 0x87) logs.push(frame.payload.toString('utf8', 1))
    if (frame.type === 0x86) return { failed: JSON.parse(frame.payload.toString()).reason as string, logs }
  }
}
