import { once } from 'node:events'
import { request as sendRequest } from 'node:http'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Answer, Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { firstProcess } from '../support/first-process.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `sandboxes that are killed or deleted in the middle, over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      let server: TestServer
      let api: Api

      beforeAll(async () => {
        server = await startServer({ driver, pools: { size: 0, max_size: 0 } })
        api = new Api(server.url)
      })
      afterAll(async () => server?.[Symbol.asyncDispose]())

      const kill = (id: string) => process.kill(firstProcess(server.dataDir, id), 'SIGKILL')
      const files = (id: string, path: string, rest = '') => `/v1/sandboxes/${id}/files${rest}?path=${encodeURIComponent(path)}`

      /** A call that is under way, and what becomes of it. */
      interface Begun {
        /** Resolves once it is in the middle. */
        underway: Promise<unknown>
        /** What the client hears. */
        outcome: Promise<string>
      }
      const isThere = async (id: string, path: string) => {
        if (!(await eventually(async () => (await api.send('GET', files(id, path, '/stat'))).status === 200))) throw new Error(`no ${path}`)
      }
      const told = async (answer: Promise<Answer>): Promise<string> => {
        const { status, body } = await answer
        return status < 400 ? `${status}` : `${status} ${body.error.code}`
      }

      /** A request whose answer is read no further than its first bytes; a body is begun and not ended. */
      function raw(method: string, path: string, body?: string): { began: Promise<unknown>; outcome: Promise<string> } {
        const outgoing = sendRequest(server.url + path, {
          method,
          agent: false,
          ...(body === undefined ? {} : { headers: { 'content-length': 1 << 30 } }),
        })
        const answered = once(outgoing, 'response').then(async ([answer]) => {
          if (answer.statusCode === 200) await once(answer, 'readable')
          return answer
        })
        const outcome = answered.then(
          async (answer) => {
            try {
              let text = ''
              for await (const piece of answer) text = (text + piece).slice(0, 10_000)
              return answer.statusCode >= 400 ? `${answer.statusCode} ${JSON.parse(text).error.code}` : 'whole'
            } catch {
              return 'broken off'
            }
          },
          () => 'broken off',
        )
        if (body === undefined) outgoing.end()
        else outgoing.write(body)
        return { began: body === undefined ? answered : once(outgoing, 'socket'), outcome }
      }

      const calls: Record<string, (id: string) => Begun> = {
        exec: (id) => ({
          outcome: told(api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'touch ~/began; sleep 61' })),
          underway: isThere(id, 'began'),
        }),
        upload: (id) => {
          const { outcome } = raw('PUT', files(id, 'in/file'), 'the first bytes')
          return { outcome, underway: isThere(id, 'in') }
        },
        download: (id) => {
          const { began, outcome } = raw('GET', files(id, 'holes/large'))
          return { outcome, underway: began }
        },
        tar: (id) => {
          const { began, outcome } = raw('GET', files(id, 'holes', '/tar'))
          return { outcome, underway: began }
        },
        list: (id) => ({ outcome: told(api.send('GET', `${files(id, '/usr', '/list')}&depth=20`)), underway: Promise.resolve() }),
        stream: (id) => {
          const opened = StreamClient.open(server.url, id).then(async (client) => {
            client.send({ type: 'exec', id: 'e', command: 'sleep 62' })
            client.send({ type: 'watch', id: 'w', path: '/tmp' })
            for (const name of ['e', 'w']) await client.event('started', { id: name })
            return client
          })
          const outcome = opened.then(async (client) => {
            const errors: string[] = []
            for (const name of ['e', 'w']) errors.push((await client.event('error', { id: name })).error.code)
            await client.event('process_event', { event: 'failed' })
            return `${errors.join(' ')} ${(await client.closed).code}`
          })
          return { underway: opened, outcome }
        },
        port: (id) => ({
          outcome: told(api.send('GET', `/v1/sandboxes/${id}/ports/8765/`)),
          underway: isThere(id, 'asked'),
        }),
        tunnel: (id) => {
          const socket = connect(Number(new URL(server.url).port), '127.0.0.1')
          socket.on('error', () => undefined)
          socket.write(
            `GET /v1/sandboxes/${id}/ports/8765/ HTTP/1.1\r\nhost: ${new URL(server.url).host}\r\nconnection: upgrade\r\nupgrade: any\r\n\r\n`,
          )
          return { underway: isThere(id, 'asked'), outcome: once(socket.resume(), 'close').then(() => 'closed') }
        },
        ...(driver === 'process'
          ? {}
          : {
              fork: (id: string) => ({
                outcome: told(api.send('POST', `/v1/sandboxes/${id}/fork`, { count: 2 })),
                underway: Promise.resolve(),
              }),
              snapshot: (id: string) => ({
                outcome: told(api.send('POST', `/v1/sandboxes/${id}/snapshot`, {})),
                underway: Promise.resolve(),
              }),
            }),
        pause: (id) => ({ outcome: told(api.send('POST', `/v1/sandboxes/${id}/pause`)), underway: Promise.resolve() }),
      }

      /** A sandbox with something for every call. */
      async function prepared(): Promise<string> {
        const { id } = await api.sandbox({ ports: [8765] })
        const listener = `import socket
s = socket.create_server(('127.0.0.1', 8765))
open('listens', 'w')
while True:
    c = s.accept()[0]
    if c.recv(100): open('asked', 'w')
    globals().setdefault('kept', []).append(c)
`
        await api.stdout(id, 'cd; mkdir -p holes; truncate -s 2G holes/large')
        await api.send('PUT', files(id, 'listener.py'), listener)
        return id
      }
      async function listening(id: string): Promise<void> {
        await api.exec(id, 'cd; python3 listener.py >/dev/null 2>&1 &')
        await isThere(id, 'listens')
      }

      test('killed in the middle of each call, the caller is told at once, the sandbox says why, and can be deleted', async () => {
        const heard: Record<string, string> = {}
        const run = async (name: string) => {
          const id = await prepared()
          // One host port for all of them where they share the network of the host.
          if (name === 'port' || name === 'tunnel') await listening(id)
          const { underway, outcome } = (calls[name] as (id: string) => Begun)(id)
          await underway
          kill(id)
          const limit = new AbortController()
          const hangs = delay(20_000, 'nothing', { signal: limit.signal }).catch(() => '')
          heard[name] = await Promise.race([outcome, hangs])
          limit.abort()
          const failed = await eventually(async () => (await api.item(id)).state === 'failed')
          const { state, error } = await api.item(id)
          if (!failed || error === null || error.message === '') heard[name] += `, then ${state} ${JSON.stringify(error)}`
          const { status } = await api.send('DELETE', `/v1/sandboxes/${id}`)
          if (status !== 204) heard[name] += `, and its deletion ${status}`
        }
        const names = Object.keys(calls).filter((name) => driver !== 'process' || name !== 'tunnel')
        await Promise.all(names.map(run))
        const unavailable = expect.stringMatching(/^(503 sandbox_unavailable|409 sandbox_not_running)$/)
        const either = expect.stringMatching(/^(20[01]|503 (sandbox_unavailable|driver_failed|snapshot_failed)|409 sandbox_not_running)$/)
        expect(heard).toEqual({
          exec: unavailable,
          upload: expect.stringMatching(/^(503 sandbox_unavailable|broken off)$/),
          download: 'broken off',
          tar: 'broken off',
          list: either,
          stream: expect.stringMatching(/^(sandbox_\w+ ){2}1001$/),
          port: unavailable,
          ...(driver === 'process' ? {} : { tunnel: 'closed', fork: either, snapshot: either }),
          pause: either,
        })
      })
      if (driver === 'oci') {
        test('deleted in every state and in the middle of every change, it is gone, and so is all that belonged to it', async () => {
          const begin: Record<string, (id: string) => Promise<unknown>> = {
            running: async () => undefined,
            paused: (id) => api.send('POST', `/v1/sandboxes/${id}/pause`),
            hibernated: (id) => api.send('POST', `/v1/sandboxes/${id}/hibernate`),
            stopped: (id) => api.send('POST', `/v1/sandboxes/${id}/stop`),
            failed: async (id) => {
              kill(id)
              await eventually(async () => (await api.item(id)).state === 'failed')
            },
          }
          const during: Record<string, (id: string) => Promise<unknown>> = {
            'being forked': (id) => api.send('POST', `/v1/sandboxes/${id}/fork`, { count: 2 }),
            'being snapshotted': (id) => api.send('POST', `/v1/sandboxes/${id}/snapshot`, {}),
            'being hibernated': (id) => api.send('POST', `/v1/sandboxes/${id}/hibernate`),
            'being woken': async (id) => {
              await api.send('POST', `/v1/sandboxes/${id}/hibernate`)
              return api.send('POST', `/v1/sandboxes/${id}/resume`)
            },
            'being paused': (id) => api.send('POST', `/v1/sandboxes/${id}/pause`),
            'with 20 commands': (id) =>
              Promise.all(Array.from({ length: 20 }, () => api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'sleep 63' }))),
          }
          const wrong: string[] = []
          const gone = async (name: string, id: string) => {
            const answers = await Promise.all([api.send('DELETE', `/v1/sandboxes/${id}`), api.send('DELETE', `/v1/sandboxes/${id}`)])
            const statuses = answers.map(({ status }) => status).sort()
            if (statuses[0] !== 204 || ![204, 404].includes(statuses[1] as number)) wrong.push(`${name}: ${statuses}`)
            if ((await api.send('GET', `/v1/sandboxes/${id}`)).status !== 404) wrong.push(`${name}: still there`)
          }
          for (const [name, make] of Object.entries(begin)) {
            const { id } = await api.sandbox()
            await make(id)
            expect([name, (await api.item(id)).state]).toEqual([name, name])
            await gone(name, id)
          }
          for (const [name, change] of Object.entries(during)) {
            const { id } = await api.sandbox()
            const changing = change(id)
            await gone(name, id)
            await changing
          }
          // While it is created: its id is known from the list.
          const creating = api.send('POST', '/v1/sandboxes', { metadata: { of: 'creating' } })
          let found: string | undefined
          await eventually(async () => {
            found = (await api.send('GET', '/v1/sandboxes?metadata=of%3Dcreating')).body.items[0]?.id
            return found !== undefined
          })
          await gone('creating', found as string)
          expect((await creating).status).toBeGreaterThanOrEqual(200)
          expect(wrong).toEqual([])
        })
      }

      test('when all are deleted, nothing is left of them', async () => {
        const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
        await Promise.all(items.map(({ id }: { id: string }) => api.send('DELETE', `/v1/sandboxes/${id}`)))
        for (const { id } of (await api.send('GET', '/v1/snapshots')).body.items) await api.send('DELETE', `/v1/snapshots/${id}`)
        await server[Symbol.asyncDispose]()
        expect(residueOf(server.dataDir, 'stopped')).toEqual(nothing)
      })
    },
  )
}
