import type { DriverKind } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { dockerdMissing, startDockerd } from '../support/dockerd.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const kinds: DriverKind[] = ['process', 'oci', 'docker']

for (const driver of kinds) {
  const skip = driver === 'docker' ? dockerdMissing() : await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let api: Api
    let dockerd: Awaited<ReturnType<typeof startDockerd>> | undefined

    beforeAll(async () => {
      if (driver === 'docker') dockerd = await startDockerd()
      server = await startServer({ driver, ...(dockerd === undefined ? {} : { docker: { host: dockerd.host } }) })
      api = new Api(server.url)
    }, 120_000)
    afterAll(async () => {
      await server?.[Symbol.asyncDispose]()
      await dockerd?.[Symbol.asyncDispose]()
    })

    test('a sandbox is created, runs commands, and is deleted with all that belonged to it', async () => {
      const { id, state, boot_method } = await api.sandbox({ env: { GREETING: 'hello' } })
      expect(state).toBe('running')
      expect(['cold', 'pooled']).toContain(boot_method)
      const result = await api.exec(id, 'echo "$GREETING $MORE"; echo problem >&2; exit 3', { env: { MORE: 'world' } })
      expect(result).toMatchObject({
        stdout: 'hello world\n',
        stderr: 'problem\n',
        exit_code: 3,
        signal: null,
        timed_out: false,
        truncated: false,
      })
      expect(await api.stdout(id, ['printf', '%s|', 'a b', '$HOME'])).toBe('a b|$HOME|')
      expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
      expect((await api.send('GET', `/v1/sandboxes/${id}`)).status).toBe(404)
    })

    test('stdin, binary output, environment and working folder are carried unchanged', async () => {
      const { id } = await api.sandbox()
      const bytes = Buffer.from(Array.from({ length: 512 }, (_, index) => index % 256))
      const result = await api.exec(id, 'cat', { stdin: bytes.toString('base64'), encoding: 'base64' })
      expect(Buffer.from(result.stdout, 'base64')).toEqual(bytes)
      expect(await api.stdout(id, 'pwd', { cwd: '/usr' })).toBe('/usr\n')
      const large = 'x'.repeat(3 * 1024 * 1024)
      expect((await api.exec(id, 'wc -c', { stdin: large })).stdout.trim()).toBe(String(large.length))
    })

    test('a command that takes too long is killed with all that it started', async () => {
      const { id } = await api.sandbox()
      const result = await api.exec(id, 'sleep 61 & echo before; sleep 62', { timeout_ms: 500 })
      expect(result).toMatchObject({ stdout: 'before\n', exit_code: null, timed_out: true })
      const sleeping = async () =>
        (await api.exec(id, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep 6[12]' || true")).stdout.trim()
      if (driver !== 'process') expect(await eventually(async () => (await sleeping()) === '0')).toBe(true)
    })

    test('what a signal ends says so', async () => {
      const { id } = await api.sandbox()
      expect(await api.exec(id, 'kill -TERM $$')).toMatchObject({ exit_code: 143 })
    })

    test('a program that is not there is an error of its own, by path, by name and as an interpreter; to a shell it is exit code 127', async () => {
      const { id } = await api.sandbox()
      const folder = await api.stdout(id, 'mktemp -d').then((text) => text.trim())
      await api.exec(id, `printf '#!/no/such/interpreter\\n' > ${folder}/script && chmod +x ${folder}/script`)
      for (const program of ['/no/such/program', 'no-such-program', `${folder}/script`, 'echo with its arguments']) {
        const { status, body } = await api.send('POST', `/v1/sandboxes/${id}/exec`, { command: [program, 'argument'] })
        expect(status, program).toBe(422)
        expect(body.error).toMatchObject({ code: 'command_not_found', message: expect.stringContaining(program) })
      }
      // What is there and cannot be run is something else, and so is a folder to run in that is not there.
      const other = [{ command: ['/'] }, { command: ['ls'], cwd: '/no/such/folder' }]
      for (const request of other) {
        const { status, body } = await api.send('POST', `/v1/sandboxes/${id}/exec`, request)
        expect([status, body.error.code]).toEqual([400, 'invalid_request'])
      }
      const shell = await api.exec(id, 'no-such-program')
      expect(shell).toMatchObject({ exit_code: 127, stderr: expect.stringContaining('not found') })
      await api.exec(id, `rm -r ${folder}`)
    })

    test('a program that is not there: execute and the service of a new sandbox say so, and leave nothing', async () => {
      const before = (await api.send('GET', '/v1/sandboxes?limit=1000')).body.items.length
      const execute = await api.send('POST', '/v1/execute', { command: ['no-such-program'] })
      expect([execute.status, execute.body.error.code]).toEqual([422, 'command_not_found'])
      expect((await api.send('POST', '/v1/execute', { command: 'no-such-program' })).body).toMatchObject({ exit_code: 127 })
      const created = await api.send('POST', '/v1/sandboxes', { command: ['no-such-program'] })
      expect([created.status, created.body.error.code]).toEqual([422, 'command_not_found'])
      const live = async () => (await api.send('GET', '/v1/sandboxes?limit=1000&state=creating,running,paused')).body.items
      expect(await eventually(async () => (await live()).length <= before)).toBe(true)
    })

    test('a name gives the same sandbox back until it is deleted', async () => {
      const first = await api.send('POST', '/v1/sandboxes', { name: `workshop-${driver}` })
      expect(first.status).toBe(201)
      const second = await api.send('POST', '/v1/sandboxes', { name: `workshop-${driver}` })
      expect(second.status).toBe(200)
      expect(second.body.item.id).toBe(first.body.item.id)
      expect(await api.stdout(`workshop-${driver}`, 'echo by name')).toBe('by name\n')
      await api.send('DELETE', `/v1/sandboxes/workshop-${driver}`)
      const third = await api.send('POST', '/v1/sandboxes', { name: `workshop-${driver}` })
      expect(third.status).toBe(201)
      expect(third.body.item.id).not.toBe(first.body.item.id)
    })

    test('many who ask for one name at the same time get one sandbox', async () => {
      const items = await Promise.all(Array.from({ length: 8 }, () => api.sandbox({ name: `shared-${driver}` })))
      expect(new Set(items.map((item) => item.id)).size).toBe(1)
    })

    test('lists are filtered by state, name and metadata, and come in pages', async () => {
      const made = []
      for (const color of ['red', 'green', 'red']) made.push(await api.sandbox({ metadata: { color, suite: driver } }))
      const list = async (query: string) => (await api.send('GET', `/v1/sandboxes?${query}`)).body
      const red = await list(`metadata=${encodeURIComponent(`color=red&suite=${driver}`)}`)
      // By id, newest first. One from a pool has had its id for a while.
      const newestFirst = (ids: (string | undefined)[]) => ids.sort().reverse()
      expect(red.items.map((item: { id: string }) => item.id)).toEqual(newestFirst([made[2]?.id, made[0]?.id]))
      const page = await list(`metadata=${encodeURIComponent(`suite=${driver}`)}&limit=2`)
      expect(page.items).toHaveLength(2)
      const rest = await list(`metadata=${encodeURIComponent(`suite=${driver}`)}&limit=2&cursor=${page.next}`)
      const paged = [...page.items, ...rest.items].map((item: { id: string }) => item.id)
      expect(paged).toEqual(newestFirst(made.map((item) => item.id)))
      await api.send('POST', `/v1/sandboxes/${made[1]?.id}/stop`)
      expect((await list('state=stopped')).items.map((item: { id: string }) => item.id)).toContain(made[1]?.id)
      expect((await api.send('GET', '/v1/sandboxes?state=nonsense')).status).toBe(400)
    })

    test('pause stops its processes where they are, and the next call wakes it', async () => {
      const { id } = await api.sandbox()
      await api.exec(id, '(i=0; while true; do i=$((i+1)); echo $i > ticks; sleep 0.02; done) >/dev/null 2>&1 & true')
      const count = async () => Number(await api.stdout(id, 'cat ticks').catch(() => '0'))
      expect(await eventually(async () => (await count()) > 3)).toBe(true)
      const paused = await api.send('POST', `/v1/sandboxes/${id}/pause`)
      expect(paused.body.item.state).toBe('paused')
      expect((await api.send('GET', `/v1/sandboxes/${id}/stats`)).body.item.state).toBe('paused')
      const woken = await api.exec(id, 'echo awake')
      expect(woken.stdout).toBe('awake\n')
      expect(await api.item(id)).toMatchObject({ state: 'running', boot_method: 'warm' })
      const before = await count()
      expect(await eventually(async () => (await count()) > before)).toBe(true)
    })

    test('who is idle falls asleep, and its end comes when its time is over', async () => {
      const { id } = await api.sandbox({ idle_ms: 1000 })
      expect(await eventually(async () => (await api.item(id)).state === 'paused')).toBe(true)
      expect(await api.stdout(id, 'echo back')).toBe('back\n')
      const short = await api.sandbox({ timeout_ms: 1000 })
      expect(await eventually(async () => (await api.item(short.id)).state === 'stopped')).toBe(true)
      const answer = await api.send('POST', `/v1/sandboxes/${short.id}/exec`, { command: 'true' })
      expect(answer.status).toBe(409)
      expect(answer.body.error.code).toBe('sandbox_not_running')
      const kept = await api.sandbox({ timeout_ms: 1000, on_timeout: 'pause' })
      expect(await eventually(async () => (await api.item(kept.id)).state === 'paused')).toBe(true)
    })

    test('files are written, read in ranges, listed, moved and removed', async () => {
      const { id } = await api.sandbox()
      const home = `${(await api.stdout(id, 'echo $HOME')).trim()}/files`
      const files = (path: string, rest = '') => `/v1/sandboxes/${id}/files${rest}?path=${encodeURIComponent(path)}`
      expect((await api.send('PUT', files(`${home}/deep/down/a.txt`), 'content of a')).status).toBe(200)
      expect((await api.send('GET', files(`${home}/deep/down/a.txt`))).body).toBe('content of a')
      const range = await fetch(server.url + files(`${home}/deep/down/a.txt`), { headers: { range: 'bytes=8-11' } })
      expect([range.status, await range.text()]).toEqual([206, 'of a'])
      const moved = await api.send('POST', `/v1/sandboxes/${id}/files/move`, { from: `${home}/deep/down/a.txt`, to: `${home}/b.txt` })
      expect(moved.body.item).toMatchObject({ name: 'b.txt', type: 'file', size_bytes: 12 })
      const list = await api.send('GET', `${files(home, '/list')}&depth=3`)
      expect(list.body.items.map((item: { path: string }) => item.path).sort()).toEqual([
        `${home}/b.txt`,
        `${home}/deep`,
        `${home}/deep/down`,
      ])
      expect((await api.send('DELETE', files(`${home}/b.txt`))).status).toBeLessThan(300)
      const gone = await api.send('GET', files(`${home}/b.txt`))
      expect([gone.status, gone.body.error.code]).toEqual([404, 'file_not_found'])
    })

    test('a folder moves as tar, both ways', async () => {
      const { id } = await api.sandbox()
      const base = `${(await api.stdout(id, 'echo $HOME')).trim()}/tar`
      await api.exec(
        id,
        `mkdir -p ${base}/one/two && echo x > ${base}/one/two/x && ln -s two/x ${base}/one/link && chmod 750 ${base}/one/two/x`,
      )
      const tar = await fetch(`${server.url}/v1/sandboxes/${id}/files/tar?path=${base}/one`)
      expect(tar.status).toBe(200)
      const put = await api.send('PUT', `/v1/sandboxes/${id}/files/tar?path=${base}/copy`, new Uint8Array(await tar.arrayBuffer()))
      expect(put.status).toBeLessThan(300)
      expect(await api.stdout(id, `cat ${base}/copy/link; stat -c %a ${base}/copy/two/x`)).toBe('x\n750\n')
    })

    test('two are apart: neither sees the files of the other', async () => {
      if (driver === 'process') return
      const [one, two] = await Promise.all([api.sandbox(), api.sandbox()])
      await api.exec(one.id, 'echo private > /root/mine')
      expect((await api.exec(two.id, 'cat /root/mine')).exit_code).not.toBe(0)
    })

    test('execute runs in a sandbox of its own that is gone afterwards, or goes on in one', async () => {
      const once = await api.send('POST', '/v1/execute', { command: 'echo $((6*7)); exit 5', files: { 'thaw-in/x': 'y' } })
      expect(once.body).toMatchObject({ stdout: '42\n', exit_code: 5, sandbox_id: null, cached: false })
      const kept = await api.send('POST', '/v1/execute', { command: 'echo 1 > thaw-n', mode: 'persistent' })
      const id = kept.body.sandbox_id
      const next = await api.send('POST', '/v1/execute', { command: 'cat thaw-n', mode: 'persistent', sandbox_id: id })
      expect(next.body).toMatchObject({ stdout: '1\n', sandbox_id: id, boot_method: 'reused' })
    })

    test('the same run again is answered from what is kept, unless anything differs', async () => {
      const run = async (change: object = {}) =>
        (
          await api.send('POST', '/v1/execute', {
            command: 'head -c 8 /dev/urandom | od -An -tx1',
            mode: 'cached',
            cache_key: driver,
            ...change,
          })
        ).body
      const first = await run()
      expect(first.cached).toBe(false)
      expect(await run()).toMatchObject({ cached: true, stdout: first.stdout })
      for (const change of [{ env: { A: '1' } }, { stdin: 'x' }, { cache_key: 'other' }, { files: { 'thaw-f': '1' } }]) {
        const other = await run(change)
        expect(other.cached).toBe(false)
        expect(other.stdout).not.toBe(first.stdout)
      }
    })

    test('deleted while it is being created, or used, it is gone, and nothing hangs', async () => {
      const { id } = await api.sandbox()
      const running = api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'sleep 30' })
      expect(await eventually(async () => ((await api.send('GET', `/v1/sandboxes/${id}/stats`)).body.item.processes ?? 2) > 1)).toBe(true)
      expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
      const answer = await running
      expect(answer.status).toBeGreaterThanOrEqual(400)
      expect(answer.body.error.fix).not.toBe('')
    })

    test('unknown sandboxes, wrong fields and wrong values are refused with what to do', async () => {
      expect((await api.send('POST', '/v1/sandboxes/sbx-unknown/exec', { command: 'true' })).status).toBe(404)
      for (const wrong of [
        { image: '' },
        { timeout_ms: -1 },
        { resources: { memory_mib: Number.MAX_SAFE_INTEGER } },
        { name: '../x' },
        { nonsense: 1 },
        { ports: [0] },
        { env: { 'A=B': '' } },
      ]) {
        const { status, body } = await api.send('POST', '/v1/sandboxes', wrong)
        expect([status, body.error.code]).toEqual([400, 'invalid_request'])
      }
      const unknown = await api.send('POST', '/v1/sandboxes', { image: 'localhost:1/no/such:image' })
      expect(unknown.status).toBeGreaterThanOrEqual(422)
    })

    test('when all are deleted, nothing is left of them', async () => {
      const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
      await Promise.all(items.map(({ id }: { id: string }) => api.send('DELETE', `/v1/sandboxes/${id}`)))
      expect((await api.send('GET', '/v1/sandboxes')).body.items).toEqual([])
      // Pools keep some that belong to nobody; with the server they go as well.
      await server[Symbol.asyncDispose]()
      expect(residueOf(server.dataDir, 'stopped')).toEqual(nothing)
    })
  })
}
