import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { frameTypes, type LoadMessage } from '@thaw/protocol'
import { afterAll, describe, expect, test } from 'vitest'
import { Gate, RuntimeProcess } from './harness.ts'

/**
 * The programs that the suite runs, and what each does. A program that a language cannot write is left out by its
 * adapter, and with it the behaviours that need it.
 *
 * `gate` means: connect to 127.0.0.1 at the port in the environment's `GATE_PORT`, and wait until one byte comes.
 */
export interface Programs {
  /** Returns its event. */
  echo: Program
  /** Returns its event, from asynchronous code. */
  asyncEcho: Program
  /** Takes no arguments; returns the text `none`. */
  withoutArguments: Program
  /** Streams the texts `one`, `two`, `three`. */
  stream: Program
  /** The same from asynchronous code. */
  asyncStream: Program
  /** Streams the objects `{"n":1}` and `{"n":2}`. */
  lines: Program
  /** Streams the text `before`, waits at the gate, streams `after`. */
  gatedStream: Program
  /** Streams the text `one`, then fails with the message `broken off`. */
  failingStream: Program
  /** Fails with the message `no such order`, of the type `errorType` of the adapter, in a function named `find_order`. */
  error: Program
  /** Returns what cannot be encoded. */
  unencodable: Program
  /** Ends as if the program should end (sys.exit, process.exit where that is held back). */
  exit: Program
  /** Names a file that is not there. */
  missingFile: Program
  /** Names an export that the file does not have. */
  missingExport: Program
  /** Names an export that cannot be called. */
  notCallable: Program
  /** Cannot be parsed or compiled. */
  syntaxError: Program
  /** Fails while it is loaded, with the message `no database`. */
  failsAtLoad: Program
  /** Prints `out\n` to stdout, `err\n` to stderr, `partial` to stdout without a line end; returns `done`. */
  logs: Program
  /** Prints `loading\n` to stdout while it is loaded; otherwise like echo. */
  logsAtLoad: Program
  /** Prints its event (text) as a line, waits at the gate, prints it again, returns it. */
  gatedLogs: Program
  /** Waits at the gate, then returns its event. */
  gated: Program
  /** The same from asynchronous code, which a cancel stops. */
  gatedAsync: Program
  /** Returns status 201, the headers `content-type: text/html` and `x-answer: yes`, and the body `<p>made</p>`. */
  httpAnswer: Program
  /** Returns statusCode 200, isBase64Encoded true, and the body `AAEC/w==`. */
  httpBase64: Program
  /** Returns `[invocation id, attempt, function, version, memory in MiB, remaining ms]`. */
  context: Program
  /** Writes the file named by the environment's `MARKER` while it is loaded; otherwise like echo. */
  marker: Program
  /** Returns the environment's `GREETING`, read while it is loaded. */
  env: Program
  /** Returns the names of the hooks that were called, in order. */
  hooks: Program
  /** Its hook before_snapshot fails with the message `cannot close`. */
  failingHook: Program
}

/** The content of the adapter's `file`, or all files and the handler to load from them. */
export type Program = string | { files: Record<string, string>; handler?: string }

export interface RuntimeAdapter {
  name: string
  /** What the runtime says of itself in hello. */
  runtime: string
  runtimeDir: string
  /** Where a program of one string is written to. */
  file: string
  /** What is loaded unless a program says otherwise. */
  handler: string
  /** The type of the failure of the program `error`. */
  errorType: string
  /** The program and arguments that start the runtime for the code in this folder. */
  command(codeDir: string): string[]
  /** Compiles the code in this folder, once per program, before it is started. */
  prepare?(codeDir: string): Promise<void>
  programs: Partial<Programs>
}

interface Subject {
  runtime: RuntimeProcess
  gate: Gate
  codeDir: string
  handler: string
  adapter: RuntimeAdapter
}

interface Behaviour {
  name: string
  program: keyof Programs
  /** `started`: the test itself sends load. `loaded`: hello, load and ready are behind it. */
  from: 'started' | 'loaded'
  concurrency?: number
  env?: Record<string, string>
  run(subject: Subject): Promise<void>
}

const json = 'application/json'
const text = 'text/plain; charset=utf-8'
const binary = 'application/octet-stream'
const http = { method: 'POST', path: '/orders/7', query: 'a=1&b=x%20y+z&c', headers: { 'content-type': text, 'x-from': 'test' } }
const deepJson = '['.repeat(200_000) + ']'.repeat(200_000)

const behaviours: Behaviour[] = [
  // Start
  {
    name: 'runs no code of the user before load, and answers pings meanwhile',
    program: 'marker',
    from: 'started',
    async run({ runtime, codeDir, handler }) {
      const marker = join(dirname(runtime.socketPath), 'marker')
      await runtime.hello()
      expect((await runtime.ping(Buffer.from('still there'))).toString()).toBe('still there')
      expect(existsSync(marker)).toBe(false)
      runtime.sendLoad({ code_dir: codeDir, handler, env: { MARKER: marker } })
      await runtime.ready()
      expect(existsSync(marker)).toBe(true)
    },
  },
  {
    name: 'says who it is in hello and how long loading took in ready',
    program: 'echo',
    from: 'started',
    async run({ runtime, codeDir, handler, adapter }) {
      const hello = await runtime.hello()
      expect(hello).toMatchObject({ protocol: 1, runtime: adapter.runtime })
      expect(hello.runtime_version).not.toBe('')
      runtime.sendLoad({ code_dir: codeDir, handler })
      expect((await runtime.ready()).init_ms).toBeGreaterThanOrEqual(0)
    },
  },
  {
    name: 'refuses a second connection',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const second = connect(runtime.socketPath)
      const [error] = await once(second, 'error')
      expect(error).toMatchObject({ code: expect.stringMatching(/^(ECONNREFUSED|ENOENT)$/) })
      expect((await runtime.invokeJson(1).answer()).body.toString()).toBe('1')
    },
  },
  {
    name: 'ends its process when the connection ends',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      runtime.disconnect()
      await runtime.exited
    },
  },
  {
    name: 'ends its process when the connection ends while a handler runs',
    program: 'gated',
    from: 'loaded',
    async run({ runtime, gate }) {
      runtime.invokeJson(1)
      await gate.arrived(1)
      runtime.disconnect()
      await runtime.exited
    },
  },
  {
    name: 'gives the code its environment before it is loaded',
    program: 'env',
    from: 'loaded',
    env: { GREETING: 'good morning' },
    async run({ runtime }) {
      expect((await runtime.invoke().answer()).body.toString()).toBe('good morning')
    },
  },

  // Load failures
  ...(
    [
      ['a file that is not there', 'missingFile', ''],
      ['an export that the file does not have', 'missingExport', ''],
      ['an export that cannot be called', 'notCallable', ''],
      ['code that cannot be parsed', 'syntaxError', ''],
      ['code that fails while it is loaded', 'failsAtLoad', 'no database'],
    ] as const
  ).map(
    ([what, program, message]): Behaviour => ({
      name: `answers load_failed with type and message for ${what}`,
      program,
      from: 'started',
      async run({ runtime, codeDir, handler }) {
        await runtime.hello()
        runtime.sendLoad({ code_dir: codeDir, handler })
        const failure = await runtime.loadFailed()
        expect(failure.type).not.toBe('')
        expect(failure.message).not.toBe('')
        expect(failure.message).toContain(message)
      },
    }),
  ),

  // Events and answers
  ...(['echo', 'asyncEcho'] as const).flatMap((program): Behaviour[] => {
    const kind = program === 'echo' ? 'a handler' : 'an asynchronous handler'
    return [
      {
        name: `hands JSON to ${kind} and answers with JSON`,
        program,
        from: 'loaded',
        async run({ runtime }) {
          const value = { text: 'grüße 🧊 \u2028', list: [1, 2.5, -3e-7, true, false, null], nested: { empty: {}, '': [] } }
          const answer = await runtime.invokeJson(value).answer()
          expect(answer.meta).toMatchObject({ content_type: json, more: false })
          expect(JSON.parse(answer.body.toString())).toEqual(value)
        },
      },
      {
        name: `serves ${kind} again and again on one connection`,
        program,
        from: 'loaded',
        async run({ runtime }) {
          for (let n = 0; n < 100; n++) expect((await runtime.invokeJson(n).answer()).body.toString()).toBe(String(n))
        },
      },
    ]
  }),
  {
    name: 'takes a +json type with parameters for JSON',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke(' {"a": 1}\n', { contentType: 'Application/Vnd.Order+JSON; charset=utf-8' }).answer()
      expect(answer.meta?.content_type).toBe(json)
      expect(JSON.parse(answer.body.toString())).toEqual({ a: 1 })
    },
  },
  {
    name: 'hands text to the handler and answers with text',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke('{"not": "parsed"} ü', { contentType: 'text/plain' }).answer()
      expect(answer.meta).toMatchObject({ content_type: text, more: false })
      expect(answer.body.toString()).toBe('{"not": "parsed"} ü')
    },
  },
  {
    name: 'hands bytes to the handler and answers with bytes',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const bytes = Buffer.from([0, 1, 2, 0xff, 0xfe, 0x80])
      const answer = await runtime.invoke(bytes, { contentType: 'image/png' }).answer()
      expect(answer.meta).toMatchObject({ content_type: binary, more: false })
      expect(answer.body).toEqual(bytes)
    },
  },
  {
    name: 'hands null for an empty body and answers with null',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      for (const contentType of ['', json, 'text/plain', 'image/png']) {
        const answer = await runtime.invoke('', { contentType }).answer()
        expect(answer.meta?.content_type).toBe(json)
        expect(answer.body.toString()).toBe('null')
      }
    },
  },
  {
    name: 'parses a body without a type, or with the type that curl sends, if it is JSON',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      for (const contentType of ['', 'application/x-www-form-urlencoded']) {
        const parsed = await runtime.invoke('[1]', { contentType }).answer()
        expect([parsed.meta?.content_type, parsed.body.toString()]).toEqual([json, '[1]'])
        const plain = await runtime.invoke('name=value', { contentType }).answer()
        expect([plain.meta?.content_type, plain.body.toString()]).toEqual([text, 'name=value'])
      }
    },
  },
  {
    name: 'answers invalid_payload for what strict JSON is not, and goes on',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      for (const body of [
        '{',
        '[1,]',
        'NaN',
        '[Infinity]',
        '-Infinity',
        '{"a":1} x',
        "{'a':1}",
        '01',
        '"\t"',
        Buffer.from([0x22, 0xff, 0x22]),
      ]) {
        const { failed } = await runtime.invoke(body, { contentType: json }).answer()
        expect(failed?.reason, String(body)).toBe('invalid_payload')
        expect(failed?.type).not.toBe('')
        expect(failed?.message).not.toBe('')
      }
      expect((await runtime.invokeJson('alive').answer()).body.toString()).toBe('alive')
    },
  },
  {
    name: 'survives JSON that is nested too deep',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      await runtime.invoke(deepJson, { contentType: json }).answer()
      expect((await runtime.invokeJson('alive').answer()).body.toString()).toBe('alive')
    },
  },
  {
    name: 'takes and gives a body of 3 MiB in pieces of at most 256 KiB',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const bytes = Buffer.alloc(3 * 1024 * 1024 + 1, 'thaw!')
      const answer = await runtime.invoke(bytes, { contentType: binary }).answer()
      expect(answer.meta).toMatchObject({ content_type: binary, more: true })
      expect(answer.body.equals(bytes)).toBe(true)
      for (const chunk of answer.chunks) expect(chunk.length).toBeLessThanOrEqual(256 * 1024)
    },
  },
  {
    name: 'keeps apart two bodies whose pieces arrive mixed',
    program: 'echo',
    from: 'loaded',
    concurrency: 2,
    async run({ runtime }) {
      const [one, two] = [runtime.invokeInPieces({ contentType: 'text/plain' }), runtime.invokeInPieces({ contentType: 'text/plain' })]
      for (const piece of ['a', 'b', 'c']) {
        one.sendBody(Buffer.from(piece))
        two.sendBody(Buffer.from(piece.toUpperCase()))
      }
      two.endBody()
      expect((await two.answer()).body.toString()).toBe('ABC')
      one.endBody()
      expect((await one.answer()).body.toString()).toBe('abc')
    },
  },
  {
    name: 'calls a handler that takes no arguments',
    program: 'withoutArguments',
    from: 'loaded',
    async run({ runtime }) {
      expect((await runtime.invokeJson({ a: 1 }).answer()).body.toString()).toBe('none')
    },
  },
  {
    name: 'tells the handler of its invocation in the context',
    program: 'context',
    from: 'loaded',
    async run({ runtime }) {
      const deadlineMs = Date.now() + 30_000
      const answer = await runtime.invoke('', { id: 'inv_abc', attempt: 3, deadlineMs }).answer()
      const [id, attempt, name, version, memoryMib, remainingMs] = JSON.parse(answer.body.toString())
      expect([id, attempt, name, version, memoryMib]).toEqual(['inv_abc', 3, 'subject', '1', 256])
      expect(remainingMs).toBeGreaterThan(0)
      expect(remainingMs).toBeLessThanOrEqual(30_000)
    },
  },

  // Streams
  ...(['stream', 'asyncStream'] as const).map(
    (program): Behaviour => ({
      name: `sends each piece of ${program === 'stream' ? 'a generator' : 'an asynchronous generator'} as a chunk of its own`,
      program,
      from: 'loaded',
      async run({ runtime }) {
        const answer = await runtime.invoke().answer()
        expect(answer.meta).toMatchObject({ content_type: text, more: true })
        expect(answer.chunks.map(String)).toEqual(['one', 'two', 'three'])
        expect(answer.body.toString()).toBe('onetwothree')
      },
    }),
  ),
  {
    name: 'streams objects as lines of JSON',
    program: 'lines',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke().answer()
      expect(answer.meta?.content_type).toBe('application/x-ndjson')
      expect(answer.chunks.map(String)).toEqual(['{"n":1}\n', '{"n":2}\n'])
    },
  },
  {
    name: 'sends a chunk before the handler ends',
    program: 'gatedStream',
    from: 'loaded',
    async run({ runtime, gate }) {
      const invocation = runtime.invoke()
      expect((await invocation.next()).type).toBe(frameTypes.result)
      const first = await invocation.next()
      expect([first.type, first.payload.toString()]).toEqual([frameTypes.chunk, 'before'])
      await gate.arrived(1)
      gate.release()
      const second = await invocation.next()
      expect([second.type, second.payload.toString()]).toEqual([frameTypes.chunk, 'after'])
      expect((await invocation.next()).type).toBe(frameTypes.end)
    },
  },
  {
    name: 'fails a stream that breaks off, after the chunks that it gave',
    program: 'failingStream',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke().answer()
      expect(answer.body.toString()).toBe('one')
      expect(answer.failed).toMatchObject({ reason: 'error', message: 'broken off' })
    },
  },

  // Failures
  {
    name: 'answers failed with type, message and a stack of only the code of the user',
    program: 'error',
    from: 'loaded',
    async run({ runtime, adapter }) {
      const { failed } = await runtime.invoke().answer()
      expect(failed).toMatchObject({ reason: 'error', type: adapter.errorType, message: 'no such order' })
      expect(failed?.stack).toContain('find_order')
      expect(failed?.stack).not.toContain(adapter.runtimeDir)
      expect((await runtime.invoke().answer()).failed?.message).toBe('no such order')
    },
  },
  {
    name: 'answers failed for a value that cannot be encoded',
    program: 'unencodable',
    from: 'loaded',
    async run({ runtime }) {
      const { failed } = await runtime.invoke().answer()
      expect(failed?.reason).toBe('error')
      expect(failed?.type).not.toBe('')
      expect(failed?.message).not.toBe('')
    },
  },
  {
    name: 'answers failed for a handler that wants to end the program, and goes on',
    program: 'exit',
    from: 'loaded',
    async run({ runtime }) {
      for (const _ of [1, 2]) expect((await runtime.invoke().answer()).failed?.reason).toBe('error')
    },
  },

  // Logs
  {
    name: 'tags output with its invocation and sends it before the result, a partial line too',
    program: 'logs',
    from: 'loaded',
    async run({ runtime }) {
      const { logs, body } = await runtime.invoke().answer()
      expect(body.toString()).toBe('done')
      const joined = (source: string) =>
        logs
          .filter((line) => line.source === source)
          .map((line) => line.text)
          .join('')
      expect(joined('stdout')).toBe('out\npartial')
      expect(joined('stderr')).toBe('err\n')
      expect(runtime.instanceLogs).toEqual([])
    },
  },
  {
    name: 'sends output of the load as output of the instance, before ready',
    program: 'logsAtLoad',
    from: 'loaded',
    async run({ runtime }) {
      expect(runtime.instanceLogs).toEqual([{ source: 'stdout', text: 'loading\n' }])
    },
  },
  {
    name: 'keeps the output of two invocations at once apart',
    program: 'gatedLogs',
    from: 'loaded',
    concurrency: 2,
    async run({ runtime, gate }) {
      const calls = ['alpha', 'beta'].map((name) => ({ name, invocation: runtime.invoke(name, { contentType: 'text/plain' }) }))
      await gate.arrived(2)
      gate.release()
      for (const { name, invocation } of calls) {
        const { logs, body } = await invocation.answer()
        expect(body.toString()).toBe(name)
        expect(logs.map((line) => line.text).join('')).toBe(`${name}\n${name}\n`)
      }
    },
  },

  // Concurrency and cancel
  ...(['gated', 'gatedAsync'] as const).map(
    (program): Behaviour => ({
      name: `runs two invocations of ${program === 'gated' ? 'a handler' : 'an asynchronous handler'} at once with concurrency 2`,
      program,
      from: 'loaded',
      concurrency: 2,
      async run({ runtime, gate }) {
        const [one, two] = [runtime.invokeJson(1), runtime.invokeJson(2)]
        await gate.arrived(2)
        gate.release()
        expect((await two.answer()).body.toString()).toBe('2')
        expect((await one.answer()).body.toString()).toBe('1')
      },
    }),
  ),
  ...[1, 2].map(
    (concurrency): Behaviour => ({
      name: `stops an asynchronous handler that is cancelled, with concurrency ${concurrency}`,
      program: 'gatedAsync',
      from: 'loaded',
      concurrency,
      async run({ runtime, gate }) {
        const invocation = runtime.invokeJson(1)
        await gate.arrived(1)
        invocation.cancel()
        expect((await invocation.answer()).failed?.reason).toBe('cancelled')
        const next = runtime.invokeJson(2)
        await gate.arrived(2)
        gate.release()
        expect((await next.answer()).body.toString()).toBe('2')
      },
    }),
  ),
  {
    name: 'answers the cancel of an invocation whose body is not complete',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const invocation = runtime.invokeInPieces({ contentType: 'text/plain' })
      invocation.sendBody(Buffer.from('half'))
      invocation.cancel()
      expect((await invocation.answer()).failed?.reason).toBe('cancelled')
      invocation.sendBody(Buffer.from('on its way already'))
      invocation.endBody()
      expect((await runtime.invokeJson('next').answer()).body.toString()).toBe('next')
    },
  },
  {
    name: 'ignores the cancel of an invocation that is answered',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const invocation = runtime.invokeJson(1)
      await invocation.answer()
      invocation.cancel()
      expect((await runtime.invokeJson(2).answer()).body.toString()).toBe('2')
    },
  },

  // HTTP
  {
    name: 'hands an HTTP request to the handler as method, path, query, headers and body',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke('seven', { contentType: text, http }).answer()
      expect(answer.meta?.content_type).toBe(json)
      expect(JSON.parse(answer.body.toString())).toEqual({
        method: 'POST',
        path: '/orders/7',
        query: { a: '1', b: 'x y z', c: '' },
        headers: http.headers,
        body: 'seven',
      })
    },
  },
  {
    name: 'answers HTTP with the status, headers and body that the handler returned',
    program: 'httpAnswer',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke('', { http }).answer()
      expect(answer.meta).toMatchObject({ status: 201, content_type: 'text/html', more: false })
      expect(answer.meta?.headers).toMatchObject({ 'x-answer': 'yes' })
      expect(answer.body.toString()).toBe('<p>made</p>')
    },
  },
  {
    name: 'decodes the body of an HTTP answer that is marked as base64',
    program: 'httpBase64',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke('', { http }).answer()
      expect(answer.meta).toMatchObject({ status: 200 })
      expect(answer.body).toEqual(Buffer.from([0, 1, 2, 0xff]))
    },
  },
  {
    name: 'answers with the object itself when the trigger is not HTTP',
    program: 'httpAnswer',
    from: 'loaded',
    async run({ runtime }) {
      const answer = await runtime.invoke().answer()
      expect(answer.meta?.status).toBeUndefined()
      expect(JSON.parse(answer.body.toString())).toMatchObject({ status: 201, body: '<p>made</p>' })
    },
  },

  // Hooks
  {
    name: 'runs the hooks of the code before a snapshot and after a restore',
    program: 'hooks',
    from: 'loaded',
    async run({ runtime }) {
      expect(await runtime.hook('before_snapshot')).toEqual({ hook: 'before_snapshot' })
      expect(await runtime.hook('after_restore')).toEqual({ hook: 'after_restore' })
      expect(JSON.parse((await runtime.invoke().answer()).body.toString())).toEqual(['before_snapshot', 'after_restore'])
    },
  },
  {
    name: 'goes on with another worker after a snapshot, and as often as that happens',
    program: 'hooks',
    from: 'loaded',
    async run({ runtime }) {
      for (const round of [1, 2]) {
        expect(await runtime.hook('before_snapshot')).toEqual({ hook: 'before_snapshot' })
        await runtime.succeed()
        expect(await runtime.hello()).toMatchObject({ protocol: 1 })
        expect(await runtime.hook('after_restore')).toEqual({ hook: 'after_restore' })
        expect(JSON.parse((await runtime.invoke().answer()).body.toString())).toHaveLength(round * 2)
      }
    },
  },
  {
    name: 'ends with a connection that it goes on with after a snapshot',
    program: 'hooks',
    from: 'loaded',
    async run({ runtime }) {
      await runtime.hook('before_snapshot')
      await runtime.hook('after_restore')
      runtime.disconnect()
      await runtime.exited
    },
  },
  {
    name: 'reports a hook that fails',
    program: 'failingHook',
    from: 'loaded',
    async run({ runtime }) {
      expect(await runtime.hook('before_snapshot')).toMatchObject({ hook: 'before_snapshot', error: { message: 'cannot close' } })
    },
  },
  {
    name: 'answers a hook that the code does not have',
    program: 'echo',
    from: 'loaded',
    async run({ runtime }) {
      expect(await runtime.hook('after_restore')).toEqual({ hook: 'after_restore' })
    },
  },
]

/** Writes programs of a language to folders of their own, each once. */
export class CodeFolders implements AsyncDisposable {
  readonly #adapter: RuntimeAdapter
  readonly #folders = new Map<Program, Promise<string>>()

  constructor(adapter: RuntimeAdapter) {
    this.#adapter = adapter
  }

  of(program: Program): Promise<string> {
    let folder = this.#folders.get(program)
    if (folder === undefined) {
      folder = this.#write(program)
      this.#folders.set(program, folder)
    }
    return folder
  }

  async #write(program: Program): Promise<string> {
    const dir = await mkdtemp(join(tmpdir(), 'thaw-code-'))
    const files = typeof program === 'string' ? { [this.#adapter.file]: program } : program.files
    for (const [name, content] of Object.entries(files)) {
      await mkdir(dirname(join(dir, name)), { recursive: true })
      await writeFile(join(dir, name), content)
    }
    await this.#adapter.prepare?.(dir)
    return dir
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const folder of await Promise.allSettled(this.#folders.values())) {
      if (folder.status === 'fulfilled') await rm(folder.value, { recursive: true, force: true })
    }
  }
}

/** Starts the runtime and loads a program into it. For behaviours that only one language has. */
export async function startLoaded(adapter: RuntimeAdapter, codeDir: string, load: Partial<LoadMessage> = {}): Promise<RuntimeProcess> {
  const runtime = await RuntimeProcess.start(adapter.command(codeDir), { runtimeDir: adapter.runtimeDir, cwd: codeDir })
  try {
    await runtime.hello()
    runtime.sendLoad({ code_dir: codeDir, handler: adapter.handler, ...load })
    await runtime.ready()
    return runtime
  } catch (error) {
    await runtime[Symbol.asyncDispose]()
    throw error
  }
}

/** Defines the tests of all behaviours that the adapter has programs for. */
export function describeRuntime(adapter: RuntimeAdapter): void {
  describe(`the ${adapter.name} runtime`, () => {
    const folders = new CodeFolders(adapter)
    afterAll(() => folders[Symbol.asyncDispose]())

    for (const behaviour of behaviours) {
      const program = adapter.programs[behaviour.program]
      if (program === undefined) continue
      test(behaviour.name, async () => {
        const codeDir = await folders.of(program)
        const handler = (typeof program === 'string' ? undefined : program.handler) ?? adapter.handler
        await using gate = await Gate.open()
        const env = { GATE_PORT: String(gate.port), ...behaviour.env }
        await using runtime =
          behaviour.from === 'loaded'
            ? await startLoaded(adapter, codeDir, { handler, env, concurrency: behaviour.concurrency ?? 1 })
            : await RuntimeProcess.start(adapter.command(codeDir), { runtimeDir: adapter.runtimeDir, cwd: codeDir })
        await behaviour.run({ runtime, gate, codeDir, handler, adapter })
      })
    }
  })
}
