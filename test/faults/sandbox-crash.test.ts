import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `kill -9 of the server, with sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      let dir: ReturnType<typeof tempDir>
      let dataDir: string

      beforeEach(() => {
        dir = tempDir()
        dataDir = join(dir.path, 'data')
        mkdirSync(dataDir, { mode: 0o711 })
      })
      afterEach(async () => {
        // A test that failed may have left sandboxes.
        const server = await startChildServer(dataDir, { driver })
        await deleteAll(new Api(server.url))
        await server[Symbol.asyncDispose]()
        dir[Symbol.dispose]()
      })

      async function deleteAll(api: Api): Promise<void> {
        const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
        for (const { id } of items) await api.send('DELETE', `/v1/sandboxes/${id}`)
      }

      test('sandboxes live on, with their processes, and the next server takes them over', async () => {
        const ids: string[] = []
        const marks = new Map<string, string>()
        {
          const server = await startChildServer(dataDir, { driver })
          const api = new Api(server.url)
          for (const name of ['one', 'two']) {
            const { id } = await api.sandbox({ name, metadata: { of: 'before' } })
            ids.push(id)
            await api.exec(id, `sleep 300 >/dev/null 2>&1 & echo $! > /tmp/pid-${id}`)
            marks.set(id, await api.stdout(id, `cat /tmp/pid-${id}`))
          }
          await api.send('POST', `/v1/sandboxes/${ids[1]}/pause`)
          await server.kill()
        }
        await using server = await startChildServer(dataDir, { driver })
        const api = new Api(server.url)
        expect((await api.item('one')).state).toBe('running')
        expect((await api.item('two')).state).toBe('paused')
        for (const id of ids) {
          const pid = (marks.get(id) as string).trim()
          expect(await api.stdout(id, `kill -0 ${pid} && cat /tmp/pid-${id}`)).toBe(`${pid}\n`)
          await api.exec(id, `kill ${pid}; rm -f /tmp/pid-${id}`)
        }
        expect(await api.item('one')).toMatchObject({ id: ids[0], metadata: { of: 'before' } })
        // Its end is noticed as well by a server that did not start it.
        const short = await api.send('PATCH', `/v1/sandboxes/${ids[0]}`, { timeout_ms: 500 })
        expect(short.status).toBe(200)
        expect(await eventually(async () => (await api.item(ids[0] as string)).state === 'stopped')).toBe(true)
        await deleteAll(api)
        await server[Symbol.asyncDispose]()
        expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
      })

      test('killed in the middle of creating, deleting, executing and snapshotting, nothing half-made is left', async () => {
        for (let round = 0; round < 4; round++) {
          const server = await startChildServer(dataDir, { driver })
          const api = new Api(server.url)
          const kept = await api.sandbox({ name: `kept-${round}` })
          const begun = [
            ...Array.from({ length: 4 }, () => api.send('POST', '/v1/sandboxes', {})),
            api.send('POST', `/v1/sandboxes/${kept.id}/exec`, { command: 'sleep 20' }),
            ...(driver === 'oci'
              ? [api.send('POST', `/v1/sandboxes/${kept.id}/fork`, { count: 2 }), api.send('POST', `/v1/sandboxes/${kept.id}/snapshot`, {})]
              : []),
          ].map((call) =>
            call.then(
              () => undefined,
              () => undefined,
            ),
          )
          await new Promise((resolve) => setTimeout(resolve, 30 + round * 60))
          await server.kill()
          await Promise.all(begun)

          await using next = await startChildServer(dataDir, { driver })
          const after = new Api(next.url)
          const { items } = (await after.send('GET', '/v1/sandboxes?limit=1000')).body
          for (const { id, state } of items as { id: string; state: string }[]) {
            expect(['running', 'paused', 'failed']).toContain(state)
            if (state === 'running') expect((await after.exec(id, 'echo well')).stdout).toBe('well\n')
          }
          const { items: snapshots } = (await after.send('GET', '/v1/snapshots')).body
          for (const { id, state } of snapshots as { id: string; state: string }[]) {
            expect(state).toBe('ready')
            const restored = await after.send('POST', `/v1/snapshots/${id}/restore`, {})
            expect(restored.status).toBe(201)
            await after.send('DELETE', `/v1/snapshots/${id}`)
          }
          await deleteAll(after)
          await next[Symbol.asyncDispose]()
          expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
          expect(readdirSync(join(dataDir, 'snapshots')).filter((name) => name !== '.objects')).toEqual([])
        }
      })

      if (driver === 'process') return
      test('what slept in a hibernation wakes under the next server', async () => {
        const first = await startChildServer(dataDir, { driver })
        const api = new Api(first.url)
        const { id } = await api.sandbox({ image: 'python' })
        await api.exec(id, '(i=0; while true; do i=$((i+1)); echo $i > /root/i; sleep 0.02; done) >/dev/null 2>&1 &')
        expect(await eventually(async () => Number(await api.stdout(id, 'cat /root/i').catch(() => '0')) > 3)).toBe(true)
        expect((await api.send('POST', `/v1/sandboxes/${id}/hibernate`)).body.item.state).toBe('hibernated')
        await first.kill()
        await using next = await startChildServer(dataDir, { driver })
        const after = new Api(next.url)
        expect((await after.item(id)).state).toBe('hibernated')
        const before = Number(await after.stdout(id, 'cat /root/i'))
        expect(await eventually(async () => Number(await after.stdout(id, 'cat /root/i')) > before)).toBe(true)
        await deleteAll(after)
        await next[Symbol.asyncDispose]()
        expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
      })
    },
  )
}
