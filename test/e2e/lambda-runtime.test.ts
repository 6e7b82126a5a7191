import { mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { bootstrap } from '../support/lambda.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const mib = 1024 * 1024

/** Programs that speak the Lambda Runtime API (the custom contract), over each driver. */
for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`the Lambda Runtime API over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let made = 0
    let shared: string

    beforeAll(async () => {
      server = await startServer({ driver })
      shared = await deploy()
    })
    afterAll(() => server[Symbol.asyncDispose]())

    async function deploy(config: object = {}): Promise<string> {
      const name = `lambda${++made}`
      await server.thaw.functions.create({
        name,
        runtime: 'custom',
        code: { inline: bootstrap },
        scaling: { max_instances: 1 },
        ...config,
      } as never)
      return name
    }
    const invoke = async <Value>(name: string, payload?: unknown) =>
      (await server.thaw.functions.invoke<Value>(name, payload as never)).value
    const raw = (name: string, init: RequestInit = {}) => fetch(`${server.url}/v1/functions/${name}/invoke`, { method: 'POST', ...init })
    const logs = async (id: string) =>
      ((await (await fetch(`${server.url}/v1/invocations/${id}/logs`)).json()) as { items: { source: string; message: string }[] }).items
        .map(({ source, message }) => `${source}: ${message}`)
        .sort()

    test('a bootstrap is the default of the runtime custom: it gets the event, and its response is the answer', async () => {
      expect(await server.thaw.functions.get(shared)).toMatchObject({ contract: 'custom', handler: 'bootstrap' })
      const answer = await raw(shared, { body: '{"do":"echo","a":[1,"ü"]}', headers: { 'content-type': 'application/json' } })
      expect(answer.headers.get('content-type')).toBe('application/json')
      expect(await answer.json()).toEqual({ do: 'echo', a: [1, 'ü'] })
    })

    test('the program is started once and answers one invocation after the other', async () => {
      const name = await deploy()
      for (const count of [1, 2, 3]) expect(await invoke(name, { do: 'count' })).toBe(count)
    })

    test('text becomes a JSON string, no payload an empty object, malformed JSON is the fault of the caller', async () => {
      const text = await raw(shared, { body: 'so "so"', headers: { 'content-type': 'text/plain' } })
      expect(await text.json()).toEqual({ event: 'so "so"' })
      expect(await (await raw(shared)).json()).toEqual({ event: {} })
      const answer = await raw(shared, { body: '{"a":', headers: { 'content-type': 'application/json' } })
      expect([answer.status, ((await answer.json()) as { error: { code: string } }).error.code]).toEqual([400, 'invalid_json'])
      expect(await invoke(shared, { do: 'echo' })).toEqual({ do: 'echo' })
    })

    test('an invocation is told by its headers: id, deadline and name', async () => {
      const { value, invocation_id } = await server.thaw.functions.invoke<{ headers: Record<string, string> }>(shared, {
        do: 'headers',
      } as never)
      expect(value.headers['Lambda-Runtime-Aws-Request-Id']).toBe(invocation_id)
      const left = Number(value.headers['Lambda-Runtime-Deadline-Ms']) - Date.now()
      expect(left).toBeGreaterThan(10_000)
      expect(left).toBeLessThanOrEqual(30_000)
      expect(value.headers['Lambda-Runtime-Invoked-Function-Arn']).toBe(`arn:aws:lambda:local:000000000000:function:${shared}`)
      expect(value.headers).not.toHaveProperty('Lambda-Runtime-Trace-Id')
    })

    test('the environment is that of Lambda; the region is for the function to change, the rest is not', async () => {
      const name = await deploy({
        handler: 'app.main',
        env: { AWS_REGION: 'eu-central-1', _HANDLER: 'mine', MINE: 'yes' },
        resources: { memory_mib: 200 },
      })
      expect(await invoke(name, { do: 'environment' })).toMatchObject({
        _HANDLER: 'app.main',
        MINE: 'yes',
        AWS_REGION: 'eu-central-1',
        AWS_DEFAULT_REGION: 'local',
        AWS_LAMBDA_FUNCTION_NAME: name,
        AWS_LAMBDA_FUNCTION_VERSION: '1',
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE: '200',
        AWS_LAMBDA_RUNTIME_API: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
        LAMBDA_TASK_ROOT: expect.stringMatching(/^\//),
        TZ: 'UTC',
      })
      expect(await invoke(name, { do: 'environment' })).not.toHaveProperty('THAW_RUNTIME_SOCKET')
    })

    test('what the program prints belongs to the invocation that it works on', async () => {
      for (const text of ['one', 'two']) {
        const { invocation_id } = await server.thaw.functions.invoke(shared, { do: 'print', text } as never)
        expect(await logs(invocation_id)).toEqual([`stderr: warned ${text}`, `stdout: said ${text}`])
      }
      expect(await (await fetch(`${server.url}/v1/functions/${shared}/logs`)).text()).toContain('starting')
    })

    test('errors come back with type, message and stack, in the forms of Python, Node.js and Go; the program goes on', async () => {
      const fails = (report: unknown) => invoke(shared, { do: 'error', report })
      await expect(
        fails({ errorMessage: 'no', errorType: 'ValueError', stackTrace: ['  File "a"\n', '  File "b"\n'] }),
      ).rejects.toMatchObject({
        code: 'function_failed',
        details: { type: 'ValueError', message: 'no', stack: '  File "a"\n  File "b"' },
      })
      await expect(fails({ errorMessage: 'no', errorType: 'E', trace: ['E: no', '    at x.mjs:1'] })).rejects.toMatchObject({
        details: { stack: 'E: no\n    at x.mjs:1' },
      })
      await expect(
        fails({ errorMessage: 'no', errorType: 'E', stackTrace: [{ path: 'm.go', line: 3, label: 'main' }] }),
      ).rejects.toMatchObject({
        details: { stack: 'main (m.go:3)' },
      })
      await expect(fails({ errorMessage: 'typeless' })).rejects.toMatchObject({ details: { type: 'Header.Type', message: 'typeless' } })
      expect(await invoke(shared, { do: 'last' })).toEqual([202, null])
    })

    test('what the program may not do is refused as Lambda refuses it, and harms nothing', async () => {
      expect(await invoke(shared, { do: 'misuse' })).toEqual({
        next: [403, 'InvalidStateTransition'],
        unknown: [400, 'InvalidRequestID'],
        unknown_error: [400, 'InvalidRequestID'],
        init: [403, 'InvalidStateTransition'],
        path: [404, 'NotFound'],
        root: [404, 'NotFound'],
        method: [404, 'NotFound'],
        origin: [403, 'Forbidden'],
        host: [403, 'Forbidden'],
      })
      // The second response to one invocation.
      expect(await invoke(shared, { do: 'last' })).toEqual([
        [202, null],
        [400, 'InvalidRequestID'],
      ])
    })

    test('a large response passes; one that is larger than allowed is 413 to the program, which goes on', async () => {
      await using small = await startServer({ driver, limits: { max_payload_bytes: 3 * mib } })
      await small.thaw.functions.create({ name: 'large', runtime: 'custom', code: { inline: bootstrap } })
      const send = (bytes: number) =>
        fetch(`${small.url}/v1/functions/large/invoke`, { method: 'POST', body: JSON.stringify({ do: 'large', bytes }) })
      expect(await (await send(2 * mib)).text()).toHaveLength(2 * mib)
      await expect(send(64 * mib).then((answer) => answer.text())).rejects.toThrow()
      const { value, boot_method } = await small.thaw.functions.invoke('large', { do: 'last' } as never)
      expect([value, boot_method]).toEqual([[413, 'RequestEntityTooLarge'], 'reused'])
    })

    test('a streamed response arrives while the program still makes it', async () => {
      const stop = new AbortController()
      const answer = await raw(shared, { body: JSON.stringify({ do: 'stream', pieces: ['first', null] }), signal: stop.signal })
      expect(answer.headers.get('content-type')).toBe('text/plain')
      const reader = (answer.body as ReadableStream<Uint8Array>).getReader()
      expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe('first')
      stop.abort()
      expect(await eventually(async () => (await server.thaw.functions.get(shared)).instances.busy === 0)).toBe(true)
      const whole = await raw(shared, { body: JSON.stringify({ do: 'stream', pieces: ['a', 'b', 'x'.repeat(mib)] }) })
      expect((await whole.text()).length).toBe(2 + mib)
      expect(await invoke(shared, { do: 'last' })).toBe(202)
    })

    test('a stream that fails is broken off, one that fails before its first byte is an error', async () => {
      const late = await raw(shared, { body: JSON.stringify({ do: 'stream_error', pieces: ['some'] }) })
      expect(late.status).toBe(200)
      await expect(late.text()).rejects.toThrow()
      const record = await server.thaw.invocations.get(late.headers.get('thaw-invocation-id') ?? '')
      expect(record).toMatchObject({ status: 'failed', error: { code: 'function_failed', details: { type: 'Late', message: 'too late' } } })
      await expect(invoke(shared, { do: 'stream_error', pieces: [] })).rejects.toMatchObject({
        code: 'function_failed',
        details: { type: 'Late', message: 'too late' },
      })
      const cut = await raw(shared, { body: JSON.stringify({ do: 'stream_cut', pieces: ['some'] }) })
      await expect(cut.text()).rejects.toThrow()
      expect((await raw(shared, { body: '{"do":"echo"}' })).headers.get('thaw-boot-method')).toBe('reused')
    })

    test('over HTTP the event is that of a function URL, and the response may describe the answer', async () => {
      const call = (path: string, init: RequestInit = {}) => fetch(`${server.url}/fn/${shared}${path}`, init)
      const event = await call('/event?a=1&a=2&b=%20x', {
        method: 'PUT',
        body: 'hi',
        headers: { cookie: 'c=1; d=2', 'content-type': 'text/plain' },
      })
      expect(await event.json()).toMatchObject({
        version: '2.0',
        rawPath: '/event',
        rawQueryString: 'a=1&a=2&b=%20x',
        queryStringParameters: { a: '1,2', b: ' x' },
        cookies: ['c=1', 'd=2'],
        headers: { 'content-type': 'text/plain' },
        requestContext: { http: { method: 'PUT', path: '/event' }, requestId: expect.stringMatching(/^inv-/) },
        body: 'hi',
        isBase64Encoded: false,
      })
      const binary = await call('/event', { method: 'POST', body: Buffer.from([255, 0]), headers: { 'content-type': 'image/png' } })
      expect(await binary.json()).toMatchObject({ body: '/wA=', isBase64Encoded: true })
      const teapot = await call('/teapot')
      expect([teapot.status, teapot.headers.get('content-type'), teapot.headers.get('x-mine')]).toEqual([418, 'text/tea', 'yes'])
      expect(teapot.headers.getSetCookie()).toEqual(['a=1', 'b=2'])
      expect([...new Uint8Array(await teapot.arrayBuffer())].slice(0, 3)).toEqual([255, 0, 't'.charCodeAt(0)])
      const streamed = await call('/stream')
      expect([streamed.status, streamed.headers.get('content-type'), streamed.headers.get('x-mine')]).toEqual([201, 'text/html', '1'])
      expect(await streamed.text()).toBe('<p>hello')
      expect((await call('/bad')).status).toBe(500)
      expect(await (await call('/anything')).json()).toBe('plain')
    })

    test('an invocation that takes too long is 504, one whose client goes away is cancelled: the program is replaced', async () => {
      const name = await deploy({ timeout_ms: 400 })
      await expect(invoke(name, { do: 'hang' })).rejects.toMatchObject({ code: 'timed_out' })
      expect(await invoke(name, { do: 'count' })).toBe(1)
      const gone = new AbortController()
      const patient = await deploy()
      const answer = raw(patient, { body: '{"do":"hang"}', signal: gone.signal }).catch(() => 'aborted')
      expect(await eventually(async () => (await server.thaw.functions.get(patient)).instances.busy === 1)).toBe(true)
      gone.abort()
      expect(await answer).toBe('aborted')
      expect(await eventually(async () => (await server.thaw.functions.get(patient)).instances.busy === 0)).toBe(true)
      expect(await invoke(patient, { do: 'count' })).toBe(1)
    })

    test('a program that exits fails its invocation, and says so in the log', async () => {
      const name = await deploy()
      const failed = await raw(name, { body: '{"do":"exit"}' })
      expect(failed.status).toBe(502)
      expect(await invoke(name, { do: 'count' })).toBe(1)
      expect(await logs(failed.headers.get('thaw-invocation-id') ?? '')).toContain('stderr: bootstrap exited with code 5.')
    })

    test('a program that ends itself after its answer is started again in its instance, and no invocation is lost', async () => {
      const name = await deploy()
      await invoke(name, { do: 'count' })
      for (const count of [2, 1, 1]) expect(await invoke(name, { do: 'answer_and_exit' })).toBe(count)
      const again = await raw(name, { body: '{"do":"count"}' })
      expect([await again.json(), again.headers.get('thaw-boot-method')]).toEqual([1, 'reused'])
    })

    test('an error while it starts fails the deploy, as does a program that exits, or never asks for work', async () => {
      await using impatient = await startServer({ driver, limits: { start_timeout_ms: 2_000 } })
      const create = (init: string) =>
        impatient.thaw.functions.create({ name: 'init', runtime: 'custom', code: { inline: bootstrap }, env: { INIT: init } })
      await expect(create('error')).rejects.toMatchObject({
        code: 'handler_invalid',
        details: { type: 'InitError', message: 'no database', stack: 'a\nb' },
      })
      await expect(create('exit')).rejects.toMatchObject({
        code: 'handler_invalid',
        message: expect.stringContaining('bootstrap exited with code 9'),
        details: { stack: expect.stringContaining('giving up') },
      })
      await expect(create('sleep')).rejects.toMatchObject({ code: 'start_failed', message: expect.stringContaining('2000 ms') })
      await expect(impatient.thaw.functions.get('init')).rejects.toMatchObject({ code: 'function_not_found' })
    })

    test('code without a bootstrap is refused at deploy, with its reason', async () => {
      const dir = mkdtempSync(join(tmpdir(), 'thaw-code-'))
      writeFileSync(join(dir, 'other'), 'x')
      await expect(server.thaw.functions.create({ name: 'none', runtime: 'custom', code: { dir } })).rejects.toMatchObject({
        code: 'handler_invalid',
        message: expect.stringContaining('bootstrap'),
      })
    })
  })
}
