import { NotFoundError, Sandbox, SandboxError, SandboxNotFoundError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { e2bOptions, e2bSandbox, killed } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

/** How the client says that a sandbox does not run any more. */
const gone = /not running anymore|was not found/

for (const driver of ['oci', 'process'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `lives of sandboxes, with the client e2b over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      let server: TestServer
      let options: ReturnType<typeof e2bOptions>

      beforeAll(async () => {
        server = await startServer({ driver })
        options = e2bOptions(server)
      })
      afterAll(() => server[Symbol.asyncDispose]())

      test('a sandbox is created, described, connected to and killed', async () => {
        await using sandbox = await e2bSandbox(server, { timeoutMs: 60_000, metadata: { purpose: 'tést &=%' }, envs: { COLOUR: 'blue' } })
        expect(await sandbox.isRunning()).toBe(true)

        const info = await sandbox.getInfo()
        expect(info).toMatchObject({
          sandboxId: sandbox.sandboxId,
          templateId: 'base',
          name: 'base',
          state: 'running',
          metadata: { purpose: 'tést &=%' },
          lifecycle: { onTimeout: 'kill' },
        })
        expect(info.endAt.getTime() - info.startedAt.getTime()).toBe(60_000)

        const same = await Sandbox.connect(sandbox.sandboxId, options)
        expect((await same.commands.run('echo $COLOUR')).stdout).toBe('blue\n')

        expect(await sandbox.kill()).toBe(true)
        expect(await sandbox.kill()).toBe(false)
        expect(await sandbox.isRunning()).toBe(false)
        await expect(sandbox.commands.run('true')).rejects.toThrow(gone)
        await expect(sandbox.files.read('/etc/hostname')).rejects.toThrow(gone)
        await expect(sandbox.getInfo()).rejects.toThrow(NotFoundError)
        await expect(Sandbox.connect(sandbox.sandboxId, options)).rejects.toThrow(SandboxNotFoundError)
        await expect(sandbox.setTimeout(1000)).rejects.toThrow(SandboxNotFoundError)
      })

      test('lists are filtered by metadata and state, ordered, and paged', async () => {
        const mark = `list-${driver}`
        await using first = await e2bSandbox(server, { metadata: { mark, n: '1' } })
        await using second = await e2bSandbox(server, { metadata: { mark, n: '2', odd: 'a b/c?d' } })
        await using third = await e2bSandbox(server, { metadata: { mark, n: '3' } })
        await second.pause()
        const list = async (query: object, more: object = {}) => {
          const found: string[] = []
          const pages = Sandbox.list({ ...options, query, ...more })
          let count = 0
          while (pages.hasNext) {
            found.push(...(await pages.nextItems()).map((item) => item.sandboxId))
            count++
          }
          return { found, count }
        }
        const ids = [first.sandboxId, second.sandboxId, third.sandboxId]
        expect((await list({ metadata: { mark } })).found).toEqual(ids.toReversed())
        expect((await list({ metadata: { mark } }, { order: 'asc' })).found).toEqual(ids)
        expect(await list({ metadata: { mark } }, { order: 'asc', limit: 1 })).toEqual({ found: ids, count: 3 })
        expect((await list({ metadata: { mark }, state: ['paused'] })).found).toEqual([second.sandboxId])
        expect((await list({ metadata: { mark }, state: ['running'] })).found).toEqual([third.sandboxId, first.sandboxId])
        expect((await list({ metadata: { mark }, state: ['running', 'paused'] })).found).toHaveLength(3)
        expect((await list({ metadata: { mark, odd: 'a b/c?d' } })).found).toEqual([second.sandboxId])
        expect((await list({ metadata: { mark, n: '4' } })).found).toEqual([])
        expect((await list({ metadata: { mark }, template: 'other' })).found).toEqual([])
        const { startedAt } = await second.getInfo()
        expect((await list({ metadata: { mark }, startedAfter: startedAt })).found).toEqual([third.sandboxId])
      })

      test('the old version of the list shows those that run', async () => {
        await using sandbox = await e2bSandbox(server, { metadata: { old: driver } })
        const list = async (path: string) =>
          ((await (await fetch(`${server.url}${path}?metadata=old%3D${driver}`)).json()) as { sandboxID: string }[]).map(
            (item) => item.sandboxID,
          )
        expect(await list('/sandboxes')).toEqual([sandbox.sandboxId])
        expect(await list('/e2b/sandboxes')).toEqual([sandbox.sandboxId])
        await sandbox.pause()
        expect(await list('/sandboxes')).toEqual([])
        expect(await list('/v2/sandboxes')).toEqual([sandbox.sandboxId])
      })

      test('the API is also served below /e2b', async () => {
        const sandbox = await Sandbox.create({ ...options, apiUrl: `${server.url}/e2b` })
        await using _ = killed(sandbox)
        expect((await sandbox.commands.run('echo here')).stdout).toBe('here\n')
      })

      test('a timeout is set anew, only grows by connecting, and ends the sandbox', async () => {
        await using sandbox = await e2bSandbox(server, { timeoutMs: 60_000 })
        const left = async () => (await sandbox.getInfo()).endAt.getTime() - Date.now()
        await sandbox.setTimeout(600_000)
        expect(await left()).toBeGreaterThan(500_000)
        await sandbox.connect({ timeoutMs: 1000 })
        expect(await left()).toBeGreaterThan(500_000)
        await sandbox.connect({ timeoutMs: 900_000 })
        expect(await left()).toBeGreaterThan(800_000)
        await fetch(`${server.url}/sandboxes/${sandbox.sandboxId}/refreshes`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: '{"duration":3000}',
        })
        expect(await left()).toBeGreaterThan(2_500_000)
        await sandbox.setTimeout(0)
        expect(await eventually(async () => !(await sandbox.isRunning()))).toBe(true)
        await expect(sandbox.getInfo()).rejects.toThrow(NotFoundError)
      })

      test('pausing keeps everything, stops the clock, and connecting goes on', async () => {
        await using sandbox = await e2bSandbox(server, { timeoutMs: 60_000 })
        const counting = await sandbox.commands.run('i=0; while :; do i=$((i+1)); echo $i > count; sleep 0.02; done', { background: true })
        expect(await eventually(() => sandbox.files.exists('count'))).toBe(true)
        expect(await sandbox.pause()).toBe(true)
        expect(await sandbox.pause()).toBe(false)
        expect(await sandbox.betaPause()).toBe(false)
        expect(await sandbox.isRunning()).toBe(false)
        const paused = await sandbox.getInfo()
        expect(paused.state).toBe('paused')
        expect(paused.endAt.getTime()).toBeGreaterThan(Date.now() + 86_400_000)
        await expect(sandbox.setTimeout(1000)).rejects.toThrow(SandboxError)
        // Whoever waits for an answer is told.
        await expect(counting.wait()).rejects.toThrow()

        const again = await Sandbox.connect(sandbox.sandboxId, { ...options, timeoutMs: 120_000 })
        expect(await again.isRunning()).toBe(true)
        const info = await again.getInfo()
        expect(info.state).toBe('running')
        expect(info.endAt.getTime()).toBeLessThan(Date.now() + 121_000)
        expect((await again.commands.list()).map((process) => process.pid)).toEqual([counting.pid])
        const before = Number(await again.files.read('count'))
        expect(await eventually(async () => Number(await again.files.read('count')) > before)).toBe(true)
      })

      test('traffic wakes a paused sandbox, unless it is not to', async () => {
        await using sandbox = await e2bSandbox(server, { timeoutMs: 60_000 })
        await sandbox.files.write('kept', 'yes')
        await sandbox.pause()
        expect(await sandbox.files.read('kept')).toBe('yes')
        const { state, endAt } = await sandbox.getInfo()
        expect(state).toBe('running')
        expect(endAt.getTime()).toBeLessThan(Date.now() + 61_000)

        await using sleeper = await e2bSandbox(server, { lifecycle: { onTimeout: 'pause', autoResume: false } })
        await sleeper.pause()
        await expect(sleeper.files.read('kept')).rejects.toThrow(gone)
        expect((await sleeper.getInfo()).state).toBe('paused')
        await sleeper.connect()
        await expect(sleeper.files.read('kept')).rejects.toThrow(NotFoundError)
      })

      test('a sandbox that is to pause at its timeout pauses, and resumes', async () => {
        await using sandbox = await e2bSandbox(server, { timeoutMs: 60_000, lifecycle: { onTimeout: 'pause' } })
        expect((await sandbox.getInfo()).lifecycle?.onTimeout).toBe('pause')
        await sandbox.setTimeout(0)
        expect(await eventually(async () => (await sandbox.getInfo()).state === 'paused')).toBe(true)
        const resumed = await fetch(`${server.url}/sandboxes/${sandbox.sandboxId}/resume`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: '{"timeout":60,"autoPause":false}',
        })
        expect(resumed.status).toBe(201)
        expect(await resumed.json()).toMatchObject({ sandboxID: sandbox.sandboxId })
        expect(await sandbox.getInfo()).toMatchObject({ state: 'running', lifecycle: { onTimeout: 'kill' } })
      })

      test('metrics are those of now', async () => {
        await using sandbox = await e2bSandbox(server)
        const [now, ...rest] = await sandbox.getMetrics()
        expect(rest).toEqual([])
        expect(now?.cpuCount).toBe(1)
        expect(now?.memTotal).toBe(512 * 1024 * 1024)
        expect(now?.memUsed).toBeGreaterThan(0)
        expect(await sandbox.getMetrics({ end: new Date(Date.now() - 60_000) })).toEqual([])
        const all = await fetch(`${server.url}/sandboxes/metrics?sandbox_ids=${sandbox.sandboxId},sbx-none`)
        expect(Object.keys(((await all.json()) as { sandboxes: object }).sandboxes)).toEqual([sandbox.sandboxId])
        await sandbox.pause()
        expect(await sandbox.getMetrics()).toEqual([])
      })

      test('an idempotency key makes one sandbox of two requests', async () => {
        const send = () =>
          fetch(`${server.url}/v2/sandboxes`, {
            method: 'POST',
            headers: { 'content-type': 'application/json', 'idempotency-key': `one-${driver}` },
            body: '{"templateID":"base"}',
          })
        const ids = []
        for (let i = 0; i < 2; i++) ids.push(((await (await send()).json()) as { sandboxID: string }).sandboxID)
        expect(ids[0]).toBe(ids[1])
        expect(await Sandbox.kill(ids[0] as string, options)).toBe(true)
      })

      test('what thaw does not have is refused, by name', async () => {
        const refused = async (more: object, words: RegExp, template = 'base') => {
          await expect(Sandbox.create(template, { ...options, ...more })).rejects.toThrow(words)
        }
        await refused({ mcp: { browserbase: {} } }, /MCP/, 'base')
        await refused({ volumeMounts: { '/data': 'disk' } }, /volumes/)
        await refused({ network: { denyOut: ['10.0.0.0/8'] } }, /single destinations/)
        await refused({ network: { maskRequestHost: 'a.example' } }, /Host/)
        await refused({ iam: { tokens: { aws: { audience: 'x', tokenType: 'JWT-SVID' } } } }, /workload identity/)
        await refused({ lifecycle: { onTimeout: { action: 'pause', keepMemory: false } } }, /memory/)
        await refused({}, /no template "nobody-made-this"/, 'nobody-made-this')
        await using sandbox = await e2bSandbox(server)
        await expect(sandbox.pause({ keepMemory: false })).rejects.toThrow(/memory/)
        await expect(sandbox.updateNetwork({ allowInternetAccess: false })).rejects.toThrow(/network/)
        await sandbox.updateNetwork({ allowInternetAccess: true })
        const unknown = await fetch(`${server.url}/v2/sandboxes`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: '{"templateID":"base","fromTheFuture":1}',
        })
        expect(unknown.status).toBe(400)
        expect(await unknown.json()).toMatchObject({ code: 400, message: expect.stringContaining('fromTheFuture') })
        for (const path of ['/volumes', '/secrets', `/sandboxes/${sandbox.sandboxId}/logs`]) {
          const answer = await fetch(`${server.url}${path}`)
          expect(await answer.json()).toMatchObject({ code: 400, error_code: 'invalid_request' })
        }
      })
    },
  )
}
