import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

/** Functions from deploy to delete, over each driver. */
for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`functions over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let made = 0

    beforeAll(async () => {
      server = await startServer({ driver, limits: { queue_length: 2, queue_timeout_ms: 20_000 }, pools: { size: 0 } })
    })
    afterAll(() => server[Symbol.asyncDispose]())

    /** Deploys Python code under a name of its own. */
    async function deploy(source: string, config: Partial<Parameters<TestServer['thaw']['functions']['create']>[0]> = {}): Promise<string> {
      const name = `f${++made}`
      await server.thaw.functions.create({ name, runtime: 'python', code: { inline: source }, ...config } as never)
      return name
    }
    const invoke = async <Value>(name: string, payload?: unknown, options = {}) =>
      server.thaw.functions.invoke<Value>(name, payload as never, options)
    const raw = (name: string, init: RequestInit = {}) => fetch(`${server.url}/v1/functions/${name}/invoke`, { method: 'POST', ...init })

    test('the first call is cold, the next reuses the instance, and headers tell where the time went', async () => {
      const name = await deploy('def handler(event, context):\n    return {"sum": sum(event)}')
      const first = await raw(name, { body: '[1,2,3]', headers: { 'content-type': 'application/json' } })
      expect(await first.json()).toEqual({ sum: 6 })
      expect(first.headers.get('thaw-boot-method')).toBe('cold')
      expect(first.headers.get('server-timing')).toMatch(/^queue;dur=[\d.]+, boot;dur=[\d.]+, init;dur=[\d.]+, run;dur=[\d.]+$/)
      expect((await invoke(name, [4])).boot_method).toBe('reused')
    })

    test('versions: an update serves from then on, a rollback brings the old one back', async () => {
      const name = await deploy('def handler(event, context):\n    return 1')
      expect((await invoke(name)).value).toBe(1)
      const second = await server.thaw.functions.update(name, {
        runtime: 'python',
        code: { inline: 'def handler(event, context):\n    return 2' },
      })
      expect(second.version).toBe(2)
      expect((await invoke(name)).value).toBe(2)
      expect((await server.thaw.functions.rollback(name)).version).toBe(1)
      expect((await invoke(name)).value).toBe(1)
      expect((await server.thaw.functions.rollback(name, 2)).version).toBe(2)
      expect((await invoke(name)).value).toBe(2)
      await expect(server.thaw.functions.rollback(name, 9)).rejects.toMatchObject({ code: 'version_not_found' })
    })

    test('an update whose handler cannot be loaded is refused, and the old version goes on serving', async () => {
      const name = await deploy('def handler(event, context):\n    return "good"')
      const bad = server.thaw.functions.update(name, { runtime: 'python', code: { inline: 'def handler(:' } })
      await expect(bad).rejects.toMatchObject({ code: 'handler_invalid', details: { type: 'SyntaxError' } })
      expect((await invoke(name)).value).toBe('good')
      const versions = []
      for await (const version of server.thaw.functions.versions(name)) versions.push(version.version)
      expect(versions).toEqual([1])
    })

    test('two deploys of one name at once give two versions, or one function and one conflict', async () => {
      const source = (n: number) => ({ name: 'race', runtime: 'python' as const, code: { inline: `def handler(e, c):\n    return ${n}` } })
      const results = await Promise.allSettled([server.thaw.functions.create(source(1)), server.thaw.functions.create(source(2))])
      expect(results.map((result) => result.status).sort()).toEqual(['fulfilled', 'rejected'])
      expect(results.find((result) => result.status === 'rejected')?.reason).toMatchObject({ code: 'function_exists' })
      expect((await server.thaw.functions.get('race')).version).toBe(1)
    })

    test('errors of the code come back with type, message and stack, and leave the instance in use', async () => {
      const name = await deploy(
        'def inner(event):\n    raise ValueError("no " + event)\n\ndef handler(event, context):\n    return inner(event)',
      )
      const answer = await raw(name, { body: '"luck"', headers: { 'content-type': 'application/json' } })
      expect(answer.status).toBe(500)
      const { error } = (await answer.json()) as { error: { code: string; details: { type: string; message: string; stack: string } } }
      expect(error).toMatchObject({ code: 'function_failed', details: { type: 'ValueError', message: 'no luck' } })
      expect(error.details.stack).toContain('inner')
      expect(error.details.stack).not.toContain('bootstrap')
      expect((await raw(name, { body: '"x"' })).headers.get('thaw-boot-method')).toBe('reused')
    })

    test('malformed JSON is the fault of the caller: 400', async () => {
      const name = await deploy('def handler(event, context):\n    return event')
      const answer = await raw(name, { body: '{"a":', headers: { 'content-type': 'application/json' } })
      expect(answer.status).toBe(400)
      expect(await answer.json()).toMatchObject({ error: { code: 'invalid_json' } })
    })

    test('a generator streams: pieces arrive while the code still runs', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    yield "first"\n    time.sleep(60)')
      const stop = new AbortController()
      const answer = await raw(name, { headers: { 'thaw-mode': 'stream' }, signal: stop.signal })
      const reader = (answer.body as ReadableStream<Uint8Array>).getReader()
      expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe('first')
      expect((await server.thaw.functions.get(name)).instances.busy).toBe(1)
      stop.abort()
      const whole = await deploy('async def handler(event, context):\n    for i in range(3):\n        yield {"i": i}')
      const pieces: string[] = []
      for await (const piece of await server.thaw.functions.stream(whole)) pieces.push(Buffer.from(piece).toString())
      expect(pieces.join('')).toBe('{"i":0}\n{"i":1}\n{"i":2}\n')
    })

    test('a failure in the middle of a stream breaks the answer off', async () => {
      const name = await deploy('def handler(event, context):\n    yield "x" * 1000\n    raise RuntimeError("too late")')
      const answer = await raw(name)
      expect(answer.status).toBe(200)
      await expect(answer.text()).rejects.toThrow()
    })

    test('bodies of 1 MiB and 8 MiB pass through unchanged', async () => {
      const name = await deploy('def handler(event, context):\n    return event')
      for (const size of [1, 8]) {
        const body = Buffer.alloc(size * 1024 * 1024, 'thaw')
        const answer = await raw(name, { body, headers: { 'content-type': 'application/octet-stream' } })
        expect(Buffer.from(await answer.arrayBuffer()).equals(body)).toBe(true)
      }
    })

    test('at its capacity a function queues, then refuses with 429 and Retry-After', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    time.sleep(0.5)\n    return 1', {
        scaling: { max_instances: 1 },
      })
      const answers = await Promise.all(Array.from({ length: 6 }, () => raw(name)))
      const statuses = answers.map((answer) => answer.status).sort()
      // One runs, two wait (queue_length), and the place of the instance that is being started counts as one more.
      expect(statuses.filter((status) => status === 200).length).toBeGreaterThanOrEqual(2)
      expect(statuses.filter((status) => status === 429).length).toBeGreaterThanOrEqual(2)
      const refused = answers.find((answer) => answer.status === 429)
      expect(refused?.headers.get('retry-after')).toBe('1')
      expect(await refused?.json()).toMatchObject({ error: { code: 'too_many_requests' } })
    })

    test('concurrency: one instance carries several calls at once', async () => {
      const name = await deploy('import os, time\ndef handler(event, context):\n    time.sleep(0.3)\n    return os.getpid()', {
        scaling: { concurrency: 4, max_instances: 1 },
      })
      await invoke(name)
      const invocations = await Promise.all(Array.from({ length: 4 }, () => invoke<number>(name)))
      const records = await Promise.all(invocations.map(({ invocation_id }) => server.thaw.invocations.get(invocation_id)))
      expect(new Set(records.map((record) => record.sandbox_id)).size).toBe(1)
      const begins = records.map((record) => Date.parse(record.started_at ?? ''))
      const ends = records.map((record) => Date.parse(record.ended_at ?? ''))
      expect(Math.max(...begins)).toBeLessThan(Math.min(...ends))
    })

    test('min_instances are there before the first call, and an idle function scales to zero', async () => {
      const kept = await deploy('def handler(e, c):\n    return 1', { scaling: { min_instances: 2, idle_timeout_ms: 0 } })
      const counts = async (name: string) => (await server.thaw.functions.get(name)).instances
      expect(await eventually(async () => (await counts(kept)).idle === 2)).toBe(true)
      expect((await invoke(kept)).boot_method).not.toBe('reused')
      const idle = await deploy('def handler(e, c):\n    return 1', { scaling: { idle_timeout_ms: 0 } })
      await invoke(idle)
      expect(await eventually(async () => (await counts(idle)).idle === 0)).toBe(true)
      expect(await counts(kept)).toMatchObject({ idle: 2 })
    })

    test('records and logs tell what happened', async () => {
      const name = await deploy(
        'import sys\ndef handler(event, context):\n    print("said", event)\n    print("warned", file=sys.stderr)\n    return {"ok": True}',
      )
      const { invocation_id } = await invoke(name, 'hello')
      const record = await server.thaw.invocations.get(invocation_id)
      expect(record).toMatchObject({
        function: name,
        version: 1,
        status: 'succeeded',
        attempt: 1,
        trigger: 'invoke',
        boot_method: 'cold',
        result: { ok: true },
        error: null,
      })
      const logs = (await (await fetch(`${server.url}/v1/invocations/${invocation_id}/logs`)).json()) as {
        items: { source: string; message: string }[]
      }
      expect(logs.items.map(({ source, message }) => `${source}: ${message}`).sort()).toEqual(['stderr: warned', 'stdout: said hello'])
    })

    test('logs can be followed while they are written', async () => {
      const name = await deploy('def handler(event, context):\n    print("line", event)')
      const stop = new AbortController()
      const seen: string[] = []
      await invoke(name, 1)
      for await (const entry of server.thaw.functions.logs(name, { follow: true, signal: stop.signal } as never)) {
        seen.push(entry.message)
        if (seen.length === 1) await invoke(name, 2)
        if (seen.length === 2) break
      }
      stop.abort()
      expect(seen).toEqual(['line 1', 'line 2'])
    })

    test('fault 40: code that spins is ended at its limit, and the answer is 504 timed_out', async () => {
      const name = await deploy('def handler(event, context):\n    while event: pass\n    return "fine"', { timeout_ms: 400 })
      await expect(invoke(name, true)).rejects.toMatchObject({ code: 'timed_out' })
      expect((await invoke(name, false)).value).toBe('fine')
    })

    test('Thaw-Timeout-Ms shortens the limit', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    time.sleep(30)')
      await expect(invoke(name, null, { timeoutMs: 200 })).rejects.toMatchObject({ code: 'timed_out' })
    })

    test('fault 41: code that ignores SIGTERM is ended all the same', async () => {
      const name = await deploy(
        'import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ndef handler(event, context):\n    while True: time.sleep(1)',
        {
          timeout_ms: 300,
        },
      )
      await expect(invoke(name)).rejects.toMatchObject({ code: 'timed_out' })
      expect(await eventually(async () => (await server.thaw.functions.get(name)).instances.busy === 0)).toBe(true)
    })

    test('fault 18: when the client goes away, the invocation is cancelled and its instance ended', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    print("started", flush=True)\n    time.sleep(60)')
      const gone = new AbortController()
      const answer = raw(name, { signal: gone.signal }).catch(() => 'aborted')
      const list = async () =>
        ((await (await fetch(`${server.url}/v1/invocations?function=${name}`)).json()) as { items: { status: string }[] }).items
      expect(await eventually(async () => (await list())[0]?.status === 'running')).toBe(true)
      gone.abort()
      expect(await answer).toBe('aborted')
      expect(await eventually(async () => (await list())[0]?.status === 'cancelled')).toBe(true)
      expect(await eventually(async () => (await server.thaw.functions.get(name)).instances.busy === 0)).toBe(true)
    })

    test('a running invocation can be cancelled by its id', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    time.sleep(60)')
      const answer = raw(name)
      let id = ''
      await eventually(async () => {
        const { items } = (await (await fetch(`${server.url}/v1/invocations?function=${name}&status=running`)).json()) as {
          items: { id: string }[]
        }
        id = items[0]?.id ?? ''
        return id !== ''
      })
      await fetch(`${server.url}/v1/invocations/${id}/cancel`, { method: 'POST' })
      expect((await answer).status).toBe(499)
    })

    test('code that ends its process fails the call, not the function', async () => {
      const name = await deploy('import os\ndef handler(event, context):\n    if event: os._exit(3)\n    return "alive"')
      await expect(invoke(name, true)).rejects.toMatchObject({ code: 'function_crashed' })
      expect((await invoke(name, false)).value).toBe('alive')
    })

    test('fault 44: an answer that comes twice counts once, and the instance that sent it is destroyed', async () => {
      const name = await deploy(`
import os, socket, struct, json
def handler(event, context):
    if not event: return "clean"
    for fd in range(3, 20):
        try:
            s = socket.socket(fileno=os.dup(fd))
            if s.family != socket.AF_UNIX or s.type != socket.SOCK_STREAM: continue
            s.getpeername()
        except OSError: continue
        meta = json.dumps({"content_type": "text/plain", "more": False}).encode()
        payload = struct.pack(">I", len(meta)) + meta + b"forged"
        s.sendall(b"".join(struct.pack(">IBI", 5 + len(payload), 0x83, stream) + payload for stream in range(1, 4)))
    return "second"
`)
      const answer = await invoke<string>(name, true)
      expect(answer.value).toBe('forged')
      const next = await invoke<string>(name, false)
      expect(next).toMatchObject({ value: 'clean', boot_method: 'cold' })
    })

    test('HTTP trigger: method, path, query, headers and body go in; status, headers and body come out', async () => {
      const name = await deploy(`
def handler(event, context):
    return {"status": 201, "headers": {"x-seen": event["headers"]["x-ask"], "content-type": "application/json"},
            "body": {"method": event["method"], "path": event["path"], "query": event["query"], "body": event["body"]}}
`)
      const answer = await fetch(`${server.url}/fn/${name}/a/b?x=1&y=two`, {
        method: 'PUT',
        headers: { 'x-ask': 'hi', 'content-type': 'application/json' },
        body: '{"k":1}',
      })
      expect(answer.status).toBe(201)
      expect(answer.headers.get('x-seen')).toBe('hi')
      expect(await answer.json()).toEqual({ method: 'PUT', path: '/a/b', query: { x: '1', y: 'two' }, body: { k: 1 } })
    })

    test('a function may not forge headers of the connection or of the platform', async () => {
      const name = await deploy(
        'def handler(event, context):\n    return {"status": 200, "headers": {"thaw-boot-method": "x", "connection": "close", "x-a": "ok"}, "body": "b"}',
      )
      const answer = await fetch(`${server.url}/fn/${name}`)
      expect(answer.headers.get('x-a')).toBe('ok')
      expect(answer.headers.get('thaw-boot-method')).toBe('cold')
      const split = await deploy(
        'def handler(event, context):\n    return {"status": 200, "headers": {"x-a": "b\\r\\nset-cookie: c"}, "body": "b"}',
      )
      expect((await fetch(`${server.url}/fn/${split}`)).status).toBe(500)
    })

    test('delete ends what runs and leaves nothing', async () => {
      const name = await deploy('import time\ndef handler(event, context):\n    time.sleep(60)')
      const running = raw(name)
      await eventually(async () => (await server.thaw.functions.get(name)).instances.busy === 1)
      await server.thaw.functions.delete(name)
      expect((await running).status).toBe(499)
      await expect(server.thaw.functions.get(name)).rejects.toBeInstanceOf(ThawError)
      expect((await raw(name)).status).toBe(404)
      const kept = new Set((await Promise.all(await all(server))).flat())
      for (const folder of readdirSync(join(server.dataDir, 'code'))) expect(kept.has(folder.replace(/\.build$/, ''))).toBe(true)
      expect(existsSync(join(server.dataDir, 'thaw.db'))).toBe(true)
    })
  })
}

/** Ids of all versions of all functions. */
async function all(server: TestServer): Promise<Promise<string[]>[]> {
  const found: Promise<string[]>[] = []
  for await (const item of server.thaw.functions.list()) {
    found.push(
      (async () => {
        const ids: string[] = []
        for await (const version of server.thaw.functions.versions(item.name)) ids.push(version.id)
        return ids
      })(),
    )
  }
  return found
}
