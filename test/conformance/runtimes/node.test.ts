import { cpSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { frameTypes } from '@thaw/protocol'
import { afterAll, describe, expect, test } from 'vitest'
import { reseedLibrary } from '../../../packages/server/src/runtimes/reseed-library.ts'
import { tempDir } from '../../support/temp.ts'
import { Gate, type Invocation, RuntimeProcess } from './harness.ts'
import { CodeFolders, describeRuntime, type Program, type RuntimeAdapter, startLoaded } from './suite.ts'

// As the server stages it: with the library that seeds OpenSSL anew.
const staged = tempDir()
const runtimeDir = join(staged.path, 'node')
cpSync(join(import.meta.dirname, '../../../runtimes/node'), runtimeDir, { recursive: true })
writeFileSync(join(runtimeDir, 'reseed.node'), reseedLibrary(process.arch as 'x64' | 'arm64'))
afterAll(() => staged[Symbol.dispose]())
const program = process.env.THAW_TEST_NODE ?? process.execPath

const gate = `
import { connect } from 'node:net'

const gate = (signal) => new Promise((resolve, reject) => {
  const socket = connect(process.env.GATE_PORT, '127.0.0.1').once('data', () => resolve(socket.destroy()))
  signal?.addEventListener('abort', () => reject(socket.destroy() && signal.reason))
})
`

const node: RuntimeAdapter = {
  name: 'Node.js',
  runtime: 'node',
  runtimeDir,
  file: 'main.mjs',
  handler: 'main.handler',
  errorType: 'OrderError',
  command: () => [program, join(runtimeDir, 'bootstrap.mjs')],
  programs: {
    echo: 'export const handler = (event) => event\n',
    asyncEcho: 'export async function handler(event) {\n  return event\n}\n',
    withoutArguments: "export const handler = () => 'none'\n",
    stream: "export function* handler() {\n  yield 'one'\n  yield 'two'\n  yield 'three'\n}\n",
    asyncStream: `
import { setImmediate } from 'node:timers/promises'

export async function* handler() {
  for (const word of ['one', 'two', 'three']) {
    await setImmediate()
    yield word
  }
}
`,
    lines: 'export function* handler() {\n  yield { n: 1 }\n  yield { n: 2 }\n}\n',
    gatedStream: `${gate}
export async function* handler() {
  yield 'before'
  await gate()
  yield 'after'
}
`,
    failingStream: "export async function* handler() {\n  yield 'one'\n  throw new Error('broken off')\n}\n",
    error: `
class OrderError extends Error {}

function find_order() {
  throw new OrderError('no such order')
}

export const handler = async () => find_order()
`,
    unencodable: 'export const handler = () => ({ value: 1n })\n',
    missingFile: { files: { 'other.mjs': '' } },
    missingExport: 'export const other = () => {}\n',
    notCallable: 'export const handler = 1\n',
    syntaxError: 'export const handler = (\n',
    failsAtLoad: "await Promise.reject(new Error('no database'))\n",
    logs: `
export function handler() {
  console.log('out')
  console.error('err')
  process.stdout.write('partial')
  return 'done'
}
`,
    logsAtLoad: "console.log('loading')\nexport const handler = (event) => event\n",
    gatedLogs: `${gate}
export async function handler(event) {
  console.log(event)
  await gate()
  console.log(event)
  return event
}
`,
    gated: `${gate}
export const handler = (event) => gate().then(() => event)
`,
    gatedAsync: `${gate}
export async function handler(event, context) {
  await gate(context.signal)
  return event
}
`,
    httpAnswer: `
export const handler = () => ({ status: 201, headers: { 'Content-Type': 'text/html', 'X-Answer': 'yes' }, body: '<p>made</p>' })
`,
    httpBase64: "export const handler = () => ({ statusCode: 200, isBase64Encoded: true, body: 'AAEC/w==' })\n",
    context: `
export const handler = (_event, context) => [
  context.invocationId, context.attempt, context.functionName, context.functionVersion, context.memoryLimitMib, context.remainingMs(),
]
`,
    marker: "import { writeFileSync } from 'node:fs'\nwriteFileSync(process.env.MARKER, '')\nexport const handler = (event) => event\n",
    env: 'const greeting = process.env.GREETING\nexport const handler = () => greeting\n',
    hooks: `
import { afterRestore, beforeSnapshot } from 'thaw'

const called = []
beforeSnapshot(() => called.push('before_snapshot'))
afterRestore(async () => called.push('after_restore'))

export const handler = () => called
`,
    failingHook: `
import { beforeSnapshot } from 'thaw'

beforeSnapshot(() => {
  throw new Error('cannot close')
})

export const handler = (event) => event
`,
  },
}

describeRuntime(node)

const http = { method: 'GET', path: '/', query: '', headers: {} }

describe('Node.js alone', () => {
  const folders = new CodeFolders(node)
  afterAll(() => folders[Symbol.asyncDispose]())

  const start = async (main: Program, load: { handler?: string; env?: Record<string, string>; concurrency?: number } = {}) =>
    startLoaded(node, await folders.of(main), load)

  /** What `handler` answers to an empty event, read as text. */
  async function answerOf(files: Record<string, string>, handler: string): Promise<string> {
    await using runtime = await start({ files }, { handler })
    const answer = await runtime.invoke().answer()
    return answer.failed === undefined ? answer.body.toString() : `failed: ${answer.failed.type}: ${answer.failed.message}`
  }

  async function loadFailureOf(files: Record<string, string>, handler = 'main.handler') {
    const codeDir = await folders.of({ files })
    await using runtime = await RuntimeProcess.start(node.command(codeDir), { runtimeDir, cwd: codeDir })
    await runtime.hello()
    runtime.sendLoad({ code_dir: codeDir, handler })
    return { ...(await runtime.loadFailed()), codeDir }
  }

  test('handlers are found in CommonJS modules, also when only running them shows their exports', async () => {
    expect(await answerOf({ 'main.cjs': "exports.handler = () => 'exports'" }, 'main.handler')).toBe('exports')
    expect(await answerOf({ 'main.js': "module.exports = { ['han' + 'dler']: () => 'computed' }" }, 'main.handler')).toBe('computed')
    expect(await answerOf({ 'main.cjs': "module.exports = () => 'function'" }, 'main.default')).toBe('function')
    expect(await answerOf({ 'main.cjs': "exports.__esModule = true\nexports.default = () => 'built'" }, 'main.default')).toBe('built')
  })

  test('handlers are found in folders, as default exports, and in packages of type module', async () => {
    expect(await answerOf({ 'a/b.mjs': "export const handler = () => 'nested'" }, 'a/b.handler')).toBe('nested')
    expect(await answerOf({ 'main.mjs': "export default () => 'default'" }, 'main.default')).toBe('default')
    const files = { 'package.json': '{"type":"module"}', 'main.js': "export const handler = () => 'module'" }
    expect(await answerOf(files, 'main.handler')).toBe('module')
  })

  test('TypeScript is stripped of its types, or refused by a Node.js that cannot', async () => {
    const files = { 'main.ts': 'export const handler = (event: unknown): string => String(event as null)\n' }
    const [major = 0] = (await helloVersion()).slice(1).split('.').map(Number)
    if (major >= 24) expect(await answerOf(files, 'main.handler')).toBe('null')
    else expect((await loadFailureOf(files)).message).toContain('strips types')
  })

  async function helloVersion(): Promise<string> {
    await using runtime = await RuntimeProcess.start(node.command(''), { runtimeDir, cwd: runtimeDir })
    return (await runtime.hello()).runtime_version
  }

  test('the hooks of thaw are there for require too', async () => {
    const main = "const called = []\nrequire('thaw').afterRestore(() => called.push(1))\nexports.handler = () => called\n"
    await using runtime = await start({ files: { 'main.cjs': main } })
    await runtime.hook('after_restore')
    expect((await runtime.invoke().answer()).body.toString()).toBe('[1]')
  })

  test('two copies of one state draw different random numbers after a restore', async () => {
    const codeDir = await folders.of('const { random } = Math\nexport const handler = () => [random(), Math.random()]\n')
    const sameState: RuntimeAdapter = { ...node, command: () => [program, '--random-seed=7', join(runtimeDir, 'bootstrap.mjs')] }
    await using one = await startLoaded(sameState, codeDir)
    await using two = await startLoaded(sameState, codeDir)
    const draw = async (runtime: RuntimeProcess): Promise<number[]> => JSON.parse((await runtime.invoke().answer()).body.toString())
    expect(await draw(one)).toEqual(await draw(two))
    for (const runtime of [one, two]) await runtime.hook('after_restore')
    const [ofOne, ofTwo] = [await draw(one), await draw(two)]
    expect(new Set([...ofOne, ...ofTwo]).size).toBe(4)
    for (const number of [...ofOne, ...ofTwo]) expect(number >= 0 && number < 1).toBe(true)
  })

  test('a syntax error names the file and the line', async () => {
    for (const file of ['main.mjs', 'main.cjs']) {
      const failure = await loadFailureOf({ [file]: 'const a = 1\nfoo bar\n' })
      expect(failure).toMatchObject({ type: 'SyntaxError', message: expect.stringContaining('Unexpected identifier') })
      expect(failure.stack).toContain(`${join(failure.codeDir, file)}:2\nfoo bar`)
    }
  })

  test('what fails at load without anyone waiting for it is a failed load', async () => {
    const main = "setImmediate(() => {\n  throw new TypeError('in the background')\n})\nawait new Promise(() => {})\n"
    expect(await loadFailureOf({ 'main.mjs': main })).toMatchObject({ type: 'TypeError', message: 'in the background' })
  })

  test('Readables and web streams are streamed', async () => {
    const main = `
import { Readable } from 'node:stream'

export const readable = () => Readable.from([Buffer.from('one'), Buffer.from('two')])
export const web = async () => new Blob(['three']).stream()
`
    await using readable = await start(main, { handler: 'main.readable' })
    const answer = await readable.invoke().answer()
    expect(answer.meta).toMatchObject({ content_type: 'application/octet-stream', more: true })
    expect(answer.chunks.map(String)).toEqual(['one', 'two'])
    await using web = await start(main, { handler: 'main.web' })
    expect((await web.invoke().answer()).chunks.map(String)).toEqual(['three'])
  })

  test('a stream without pieces is an empty answer', async () => {
    await using runtime = await start('export function* handler() {}\n')
    const answer = await runtime.invoke().answer()
    expect([answer.meta?.more, answer.body.length]).toEqual([false, 0])
  })

  test('a cancelled stream stops, whether code or a source gives its pieces', async () => {
    const main = `
import { Readable } from 'node:stream'

export async function* code() {
  try {
    for (;;) yield 'more'
  } finally {
    console.log('stopped')
  }
}
export const source = () => {
  const readable = new Readable({ read() {}, destroy: (error, done) => done(console.log('stopped')) })
  readable.push('first')
  return readable
}
export const web = () =>
  new ReadableStream({ start: (controller) => controller.enqueue('first'), cancel: () => console.log('stopped') })
`
    for (const name of ['code', 'source', 'web']) {
      await using runtime = await start(main, { handler: `main.${name}` })
      const invocation = runtime.invoke()
      expect((await invocation.next()).type).toBe(frameTypes.result)
      expect((await invocation.next()).type).toBe(frameTypes.chunk)
      invocation.cancel()
      const { failure, logs } = await failureAfterChunks(invocation)
      expect([failure.reason, logs], name).toEqual(['cancelled', ['stopped\n']])
    }
  })

  async function failureAfterChunks(invocation: Invocation): Promise<{ failure: { reason: string }; logs: string[] }> {
    const logs: string[] = []
    for (;;) {
      const { type, payload } = await invocation.next()
      if (type === frameTypes.log) logs.push(payload.toString('utf8', 1))
      else if (type === frameTypes.failed) return { failure: JSON.parse(payload.toString()), logs }
      else expect(type).toBe(frameTypes.chunk)
    }
  }

  test('context.signal is aborted by a cancel, also for code that asks for it later', async () => {
    const main = `${gate}
export async function handler(event, context) {
  if (event === 'early') context.signal.addEventListener('abort', () => console.log('aborted'))
  await gate()
  console.log(context.signal.aborted)
}
`
    await using waiting = await Gate.open()
    await using runtime = await start(main, { env: { GATE_PORT: String(waiting.port) }, concurrency: 2 })
    const calls = ['early', 'late'].map((event) => runtime.invokeJson(event))
    await waiting.arrived(2)
    for (const call of calls) call.cancel()
    await runtime.ping(Buffer.alloc(0))
    waiting.release()
    const [early, late] = await Promise.all(calls.map((call) => call.answer()))
    expect(early?.logs.map((line) => line.text)).toEqual(['aborted\n', 'true\n'])
    expect(late?.logs.map((line) => line.text)).toEqual(['true\n'])
    expect([early?.failed?.reason, late?.failed?.reason]).toEqual(['cancelled', 'cancelled'])
  })

  test('a rejection or an exception that nobody handles fails its invocation, and others go on', async () => {
    const main = `${gate}
export async function handler(event) {
  if (event === 'rejection') Promise.reject(new RangeError('nobody holds it'))
  if (event === 'exception') setImmediate(() => { throw new RangeError('nobody catches it') })
  if (event !== 'good') await new Promise(() => {})
  await gate()
  return event
}
`
    await using waiting = await Gate.open()
    await using runtime = await start(main, { env: { GATE_PORT: String(waiting.port) }, concurrency: 3 })
    const good = runtime.invokeJson('good')
    await waiting.arrived(1)
    const rejection = (await runtime.invokeJson('rejection').answer()).failed
    expect(rejection).toMatchObject({ reason: 'error', type: 'RangeError', message: 'nobody holds it' })
    expect(rejection?.stack).toMatch(/^RangeError: nobody holds it\n {4}at handler \(file:.*main\.mjs:\d+:\d+\)$/)
    const exception = (await runtime.invokeJson('exception').answer()).failed
    expect(exception).toMatchObject({ reason: 'error', type: 'RangeError', message: 'nobody catches it' })
    waiting.release()
    expect((await good.answer()).body.toString()).toBe('good')
  })

  test('what an answered invocation left behind fails into the log of the instance', async () => {
    const main = `${gate}
export function handler(event) {
  if (event === 'first') gate().then(() => { throw new Error('too late') }).finally(() => console.log('left'))
  return event
}
`
    await using waiting = await Gate.open()
    await using runtime = await start(main, { env: { GATE_PORT: String(waiting.port) } })
    expect((await runtime.invokeJson('first').answer()).body.toString()).toBe('first')
    await waiting.arrived(1)
    waiting.release()
    while (runtime.instanceLogs.length < 2) await runtime.ping(Buffer.alloc(0))
    expect(runtime.instanceLogs).toEqual([
      { source: 'stdout', text: 'left\n' },
      { source: 'stderr', text: expect.stringMatching(/^Error: too late\n/) },
    ])
    expect((await runtime.invokeJson('second').answer()).body.toString()).toBe('second')
  })

  test('an exception that belongs to no invocation ends the process, and the log says why', async () => {
    const main = `${gate}
gate().then(() => { throw new Error('in the background') })
export const handler = () => {}
`
    await using waiting = await Gate.open()
    await using runtime = await start(main, { env: { GATE_PORT: String(waiting.port) } })
    await waiting.arrived(1)
    waiting.release()
    expect(await runtime.exited).toEqual({ code: 1, signal: null })
    await expect(runtime.ping(Buffer.alloc(0))).rejects.toThrow('the connection ended')
    expect(runtime.instanceLogs).toEqual([{ source: 'stderr', text: expect.stringMatching(/^Error: in the background\n/) }])
  })

  test('code that listens for unhandled rejections itself is left to it', async () => {
    const main = `
process.on('unhandledRejection', (error) => console.log('heard', error.message))
export async function handler() {
  Promise.reject(new Error('mine'))
  await new Promise((resolve) => setImmediate(resolve))
  return 'done'
}
`
    await using runtime = await start(main)
    const { body, logs } = await runtime.invoke().answer()
    expect([body.toString(), logs.map((line) => line.text)]).toEqual(['done', ['heard mine\n']])
  })

  test('anything can be thrown, and causes are part of the stack', async () => {
    const main = `
const thrown = { text: 'plain', none: null, object: { code: 7 }, symbol: Symbol('s'), named: { name: 'Mine', message: 'own' } }
thrown.hostile = { get message() { throw new Error('no') } }
export function handler(event) {
  if (event === 'cause') throw new TypeError('outer', { cause: new Error('inner') })
  throw thrown[event]
}
`
    await using runtime = await start(main)
    const failureOf = async (event: string) => (await runtime.invokeJson(event).answer()).failed
    expect(await failureOf('text')).toEqual({ reason: 'error', type: 'Error', message: 'plain' })
    expect(await failureOf('none')).toEqual({ reason: 'error', type: 'Error', message: 'null' })
    expect(await failureOf('object')).toEqual({ reason: 'error', type: 'Error', message: '{"code":7}' })
    expect(await failureOf('symbol')).toEqual({ reason: 'error', type: 'Error', message: 'Symbol(s)' })
    expect(await failureOf('named')).toEqual({ reason: 'error', type: 'Mine', message: 'own' })
    expect(await failureOf('hostile')).toMatchObject({ reason: 'error', message: expect.stringContaining('cannot be read') })
    expect((await failureOf('cause'))?.stack).toMatch(/^TypeError: outer\n[\s\S]*\nCaused by: Error: inner\n/)
  })

  test('undefined is null, buffers of all kinds are bytes, and what JSON has no word for fails', async () => {
    const main = `
const cyclic = {}
cyclic.self = cyclic
const values = { undefined, buffer: new Uint8Array([104, 105]).buffer, view: new DataView(new Uint8Array([104, 105]).buffer), cyclic, function: () => {} }
export const handler = (event) => values[event]
`
    await using runtime = await start(main)
    const answerTo = (event: string) => runtime.invokeJson(event).answer()
    expect((await answerTo('undefined')).body.toString()).toBe('null')
    for (const event of ['buffer', 'view']) {
      const answer = await answerTo(event)
      expect([answer.meta?.content_type, answer.body.toString()]).toEqual(['application/octet-stream', 'hi'])
    }
    for (const event of ['cyclic', 'function']) expect((await answerTo(event)).failed).toMatchObject({ reason: 'error', type: 'TypeError' })
  })

  test('process.exit in a handler ends the process, after its output', async () => {
    await using runtime = await start("export function handler() {\n  process.stdout.write('last words')\n  process.exit(3)\n}\n")
    const invocation = runtime.invoke()
    const { type, payload } = await invocation.next()
    expect([type, payload.toString('utf8', 1)]).toEqual([frameTypes.log, 'last words'])
    await expect(invocation.next()).rejects.toThrow('the connection ended')
    expect((await runtime.exited).code).toBe(3)
  })

  test('bytes written to the streams are text again, and callbacks are called', async () => {
    const main = `
import { promisify } from 'node:util'

export async function handler() {
  const bytes = Buffer.from('grüße\\n')
  for (const byte of bytes) process.stdout.write(Buffer.of(byte))
  await promisify(process.stderr.write).call(process.stderr, '67c3bc0a', 'hex')
}
`
    await using runtime = await start(main)
    expect((await runtime.invoke().answer()).logs).toEqual([
      { source: 'stdout', text: 'grüße\n' },
      { source: 'stderr', text: 'gü\n' },
    ])
  })

  test('code that breaks the globals breaks its own answers at most', async () => {
    const main = `
JSON.stringify = JSON.parse = () => { throw new Error('broken') }
Date.now = () => 0
globalThis.process.exit = () => {}
export const handler = (event, context) => [event, context.remainingMs() < 120_000]
`
    await using runtime = await start(main)
    expect((await runtime.invokeJson({ a: 1 }).answer()).body.toString()).toBe('[{"a":1},true]')
    runtime.disconnect()
    await runtime.exited
  })

  test('a Response answers HTTP, with all its cookies', async () => {
    const main = `
export function handler() {
  const headers = new Headers({ 'content-type': 'text/csv', 'x-answer': 'yes' })
  headers.append('set-cookie', 'a=1')
  headers.append('set-cookie', 'b=2')
  return new Response('a,b', { status: 207, headers })
}
`
    await using runtime = await start(main)
    const answer = await runtime.invoke('', { http }).answer()
    expect(answer.meta).toMatchObject({
      status: 207,
      content_type: 'text/csv',
      headers: { 'x-answer': 'yes', 'set-cookie': ['a=1', 'b=2'] },
    })
    expect(answer.body.toString()).toBe('a,b')
  })

  test('an HTTP answer may stream, and a status alone has no body', async () => {
    const main = `
function* body() {
  yield 'data: 1\\n\\n'
}
export const handler = ({ path }) =>
  path === '/none' ? { status: 204 } : { status: 200, headers: { 'content-type': 'text/event-stream' }, body: body() }
`
    await using runtime = await start(main)
    const stream = await runtime.invoke('', { http }).answer()
    expect(stream.meta).toMatchObject({ status: 200, content_type: 'text/event-stream', more: true })
    expect(stream.chunks.map(String)).toEqual(['data: 1\n\n'])
    const none = await runtime.invoke('', { http: { ...http, path: '/none' } }).answer()
    expect([none.meta?.status, none.body.length]).toEqual([204, 0])
  })

  test('an HTTP answer that the worker would refuse is a failure of the code', async () => {
    const main = `
const answers = {
  '/status': { status: 42 },
  '/name': { status: 200, headers: { 'a b': 'c' } },
  '/value': { status: 200, headers: { a: 'b\\r\\nc: d' } },
  '/large': { status: 200, headers: { a: 'b'.repeat(10_000) } },
  '/type': { status: 200, headers: { 'content-type': 'ü' } },
}
export const handler = ({ path }) => answers[path]
`
    await using runtime = await start(main)
    for (const path of ['/status', '/name', '/value', '/large', '/type']) {
      expect((await runtime.invoke('', { http: { ...http, path } }).answer()).failed?.reason, path).toBe('error')
    }
  })

  test('programs that the code starts know nothing of the connection', async () => {
    await using runtime = await start("export const handler = () => Object.keys(process.env).filter((name) => name.startsWith('THAW_'))\n")
    expect((await runtime.invoke().answer()).body.toString()).toBe('["THAW_SECRETS_DIR"]')
  })
})
