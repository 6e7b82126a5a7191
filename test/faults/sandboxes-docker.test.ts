import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { Engine } from '../../packages/server/src/drivers/docker/engine.ts'
import { type Answer, Api } from '../support/api.ts'
import { dockerdMissing, startDockerd } from '../support/dockerd.ts'
import { eventually } from '../support/eventually.ts'
import { startServer } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'

const skip = dockerdMissing()

test.skipIf(skip !== null)(
  'fault 57: a Docker engine that restarts ends its sandboxes and loses none: each call is answered, new ones are made, and nothing is left',
  async () => {
    await using engine = await startDockerd()
    await using server = await startServer({ driver: 'docker', docker: { host: engine.host }, pools: { size: 0 } })
    const api = new Api(server.url)
    const docker = new Engine({ host: engine.host, certDir: null })
    const containers = () => docker.call<unknown[]>('GET', '/containers/json', { query: { all: true } })
    const make = async (name: string) => (await api.sandbox({ name })).id
    const [busy, idle, paused, deleted] = [await make('busy'), await make('idle'), await make('paused'), await make('deleted')]
    await api.send('POST', `/v1/sandboxes/${paused}/pause`)

    // At work when the engine goes.
    using client = await StreamClient.open(server.url, busy)
    client.send({ type: 'exec', id: 'a', command: 'echo begun; sleep 1001' })
    await client.writes('a', 'begun')
    const asked = api.send('POST', `/v1/sandboxes/${busy}/exec`, { command: 'sleep 1002', timeout_ms: 600_000 })
    await client.until((heard) => heard.find((event) => JSON.stringify(event).includes('sleep 1002')))

    await engine.stop()
    // Either the agent still says that they were ended, or nobody does any more.
    const ended = { exit_code: 143, signal: 'SIGTERM' }
    const lost = await asked
    if (lost.status === 200) expect(lost.body).toMatchObject(ended)
    else
      expect([lost.status, lost.body.error.code]).toEqual(lost.status === 409 ? [409, 'sandbox_not_running'] : [503, 'sandbox_unavailable'])
    const last = await client.until((heard) =>
      heard.find((event) => 'id' in event && event.id === 'a' && /^(exit|error)$/.test(event.type)),
    )
    if (last.type === 'exit') expect(last).toMatchObject(ended)
    else expect(last).toMatchObject({ ended: true, error: { code: expect.stringMatching(/^sandbox_(not_running|unavailable)$/) } })
    expect((await client.closed).code).toBe(1001)

    const expectClear = (what: string, { status, body }: Answer) => {
      if (status < 400) return
      expect([what, status, body.error]).toEqual([what, expect.any(Number), expect.objectContaining({ fix: expect.stringMatching(/./) })])
      expect([what, body.error.code]).toEqual([
        what,
        expect.stringMatching(
          /^(driver_failed|driver_unavailable|sandbox_unavailable|sandbox_not_running|sandbox_state_conflict|start_failed)$/,
        ),
      ])
    }
    const answers = await Promise.all(
      [busy, idle, paused].flatMap((id) =>
        [
          ['GET', `/v1/sandboxes/${id}`],
          ['GET', `/v1/sandboxes/${id}/stats`],
          ['POST', `/v1/sandboxes/${id}/exec`, { command: 'true' }],
          ['GET', `/v1/sandboxes/${id}/files?path=/etc/hostname`],
          ['POST', `/v1/sandboxes/${id}/pause`],
          ['POST', `/v1/sandboxes/${id}/resume`],
        ].map(async ([method, path, body]) => ({
          what: `${method} ${path}`,
          answer: await api.send(method as string, path as string, body),
        })),
      ),
    )
    for (const { what, answer } of answers) expectClear(what, answer)
    for (const { what, answer } of answers) if (what.endsWith('/exec')) expect([what, answer.status]).not.toEqual([what, 200])
    const refused = await api.send('POST', '/v1/sandboxes', { name: 'refused' })
    expect(refused.status).toBe(503)
    expectClear('create', refused)
    expectClear('delete', await api.send('DELETE', `/v1/sandboxes/${deleted}`))
    expect((await api.send('GET', '/v1/sandboxes')).status).toBe(200)

    await engine.start()
    expect(await eventually(async () => (await api.send('POST', '/v1/sandboxes', { name: 'new' })).status === 201, 60_000)).toBe(true)
    expect(await api.stdout('new', 'echo works')).toBe('works\n')
    // Their processes ended with the engine, and they say so.
    for (const id of [busy, idle, paused]) {
      const told = async () => {
        const { status, body } = await api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'true' })
        return status === 409 && body.error.code === 'sandbox_not_running'
      }
      expect([id, await eventually(told, 30_000)]).toEqual([id, true])
      expect((await api.item(id)).state).toBe('failed')
    }
    for (const id of [busy, idle, paused, 'new']) expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
    expect([204, 404]).toContain((await api.send('DELETE', `/v1/sandboxes/${deleted}`)).status)
    expect((await api.send('GET', '/v1/sandboxes?state=creating,running,paused')).body.items).toEqual([])
    expect(await eventually(async () => (await containers()).length === 0, 30_000)).toBe(true)
    const folder = join(server.dataDir, 'docker')
    expect(await eventually(() => !existsSync(folder) || readdirSync(folder).length === 0)).toBe(true)
  },
  180_000,
)
