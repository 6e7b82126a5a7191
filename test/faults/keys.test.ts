import { once } from 'node:events'
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { type IncomingMessage, request as sendRequest } from 'node:http'
import { join } from 'node:path'
import { type KeyCreate, Thaw } from '@thaw/sdk'
import { createKey } from '@thaw/server'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { eventually } from '../support/eventually.ts'
import { startChildServer, startServer, type TestServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'
import { webServerFolder } from '../support/web-server.ts'

/** Who may call a server that has keys. Each test makes keys of its own; `admin` is the first one. */

let server: TestServer
let admin: Thaw
let adminKey: string
const folder = webServerFolder()

beforeAll(async () => {
  server = await startServer({ driver: 'process', pools: { size: 0 } })
  adminKey = (await server.thaw.keys.create({ name: 'first' })).key
  admin = new Thaw({ url: server.url, apiKey: adminKey })
})
afterAll(async () => {
  await server[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

async function keyOf(input: Partial<KeyCreate> = {}) {
  const item = await admin.keys.create({ name: 'test', ...input })
  return { ...item, thaw: new Thaw({ url: server.url, apiKey: item.key }) }
}

const statusOf = (path: string, headers: Record<string, string> = {}, method = 'GET') =>
  fetch(server.url + path, { method, headers }).then((response) => response.status)

const codeOf = (answer: Promise<unknown>) =>
  answer.then(
    () => 'done',
    (error: { code: string }) => error.code,
  )

const echo = { runtime: 'node', code: { inline: 'export const handler = (event) => event' } } as const
let made = 0

describe('fault 1: no key', () => {
  test.each([
    ['GET', '/v1/functions'],
    ['POST', '/v1/functions'],
    ['GET', '/api/v1/functions'],
    ['POST', '/v1/functions/nope/invoke'],
    ['GET', '/fn/nope/'],
    ['GET', '/metrics'],
    ['GET', '/docs'],
    ['GET', '/nothing'],
    ['POST', '/health/'],
  ])('%s %s is 401 with a challenge and a fix', async (method, path) => {
    const response = await fetch(server.url + path, { method })
    expect(response.status).toBe(401)
    expect(response.headers.get('www-authenticate')).toBe('Bearer realm="thaw"')
    expect(await response.json()).toMatchObject({ error: { code: 'unauthorized', fix: expect.stringContaining('THAW_API_KEY') } })
  })

  test.each([`Bearer e2b_${'0'.repeat(40)}`, 'Bearer e2b_', 'Bearer ', 'Basic eDp5', ''])(
    'Authorization %j is 401',
    async (authorization) => {
      expect(await statusOf('/v1/functions', { authorization })).toBe(401)
      expect(await statusOf('/v1/functions', { 'x-api-key': authorization.replace('Bearer ', '') })).toBe(401)
    },
  )

  test('a WebSocket without a key is 401', async () => {
    const socket = new WebSocket(`${server.url.replace('http', 'ws')}/fn/nope/ws`)
    socket.on('error', () => undefined)
    const [, answer] = (await once(socket, 'unexpected-response')) as [unknown, IncomingMessage]
    expect(answer.statusCode).toBe(401)
  })

  test('a load balancer may ask for /health and /ready', async () => {
    expect(await statusOf('/health')).toBe(200)
    expect(await statusOf('/ready')).toBe(200)
  })

  test('a key is taken as a bearer token and as X-API-KEY, from any page and under any name of the server', async () => {
    expect(await statusOf('/v1/functions', { authorization: `Bearer ${adminKey}` })).toBe(200)
    expect(await statusOf('/v1/functions', { authorization: `bearer  ${adminKey}` })).toBe(200)
    expect(await statusOf('/v1/functions', { 'x-api-key': adminKey })).toBe(200)
    // What is meant for a function does not hide the key.
    expect(await statusOf('/v1/functions', { authorization: `Bearer ${adminKey}`, 'x-api-key': 'of the function' })).toBe(200)
    const request = sendRequest(`${server.url}/v1/functions`, { headers: { host: 'thaw.example', 'x-api-key': adminKey } }).end()
    const [answer] = (await once(request, 'response')) as [IncomingMessage]
    answer.resume()
    expect(answer.statusCode).toBe(200)
  })
})

describe('fault 2: a key that is over', () => {
  test('a revoked key is 401 from the next request on, and cannot be revoked twice', async () => {
    const key = await keyOf()
    expect(await codeOf(key.thaw.functions.list().all())).toBe('done')
    await admin.keys.delete(key.id)
    expect(await codeOf(key.thaw.functions.list().all())).toBe('unauthorized')
    expect(await codeOf(key.thaw.functions.invoke('nope'))).toBe('unauthorized')
    const again = await fetch(`${server.url}/v1/api-keys/${key.id}`, { method: 'DELETE', headers: { 'x-api-key': adminKey } })
    expect(again.status).toBe(404)
    expect((await admin.keys.list().all()).map((item) => item.id)).not.toContain(key.id)
  })

  test('what is open with it is closed: followed logs, a streamed answer, a WebSocket; those of other keys stay', async () => {
    const [key, other] = [await keyOf({ tenant: 'sockets' }), await keyOf({ tenant: 'sockets' })]
    await key.thaw.functions.create({ name: 'web', runtime: 'node', contract: 'http', code: { dir: folder }, scaling: { concurrency: 50 } })
    const open = async (by: typeof key, path: string) => {
      const answer = await fetch(server.url + path, { headers: { 'x-api-key': by.key } })
      expect(answer.status).toBe(200)
      const state = { ended: false }
      void answer.arrayBuffer().then(
        () => (state.ended = true),
        () => (state.ended = true),
      )
      return state
    }
    const socketOf = async (by: typeof key) => {
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/fn/web/ws`, { headers: { authorization: `Bearer ${by.key}` } })
      socket.on('error', () => undefined)
      await once(socket, 'message')
      return socket
    }
    const streams = [await open(key, '/v1/functions/web/logs?follow=1'), await open(key, '/fn/web/events')]
    const kept = [await open(other, '/v1/functions/web/logs?follow=1'), await open(other, '/fn/web/events')]
    const [socket, keptSocket] = [await socketOf(key), await socketOf(other)]
    const closed = once(socket, 'close')
    await admin.keys.delete(key.id)
    await closed
    expect(await eventually(() => streams.every((stream) => stream.ended))).toBe(true)
    expect(kept.map((stream) => stream.ended)).toEqual([false, false])
    expect(keptSocket.readyState).toBe(WebSocket.OPEN)
    const gone = once(keptSocket, 'close')
    await admin.keys.delete(other.id)
    await gone
    expect(await eventually(() => kept.every((stream) => stream.ended))).toBe(true)
  })

  test('an expired key is 401, and what is open with it is closed', async () => {
    const key = await keyOf({ tenant: 'expiring', expires_at: new Date(Date.now() + 1500).toISOString() })
    await key.thaw.functions.create({ name: 'f', ...echo })
    const answer = await fetch(`${server.url}/v1/functions/f/logs?follow=1`, { headers: { 'x-api-key': key.key } })
    expect(answer.status).toBe(200)
    await answer.arrayBuffer().catch(() => undefined)
    expect(await codeOf(key.thaw.functions.list().all())).toBe('unauthorized')
    expect(await codeOf(admin.keys.create({ name: 'late', expires_at: '2020-01-01T00:00:00Z' }))).toBe('invalid_request')
  })

  test('who revokes the last key hears so, and has not let everyone in', async () => {
    await using alone = await startServer({ driver: 'process', pools: { size: 0 } })
    const { id, key } = await alone.thaw.keys.create({ name: 'only' })
    const thaw = new Thaw({ url: alone.url, apiKey: key })
    await thaw.keys.delete(id)
    expect(await codeOf(thaw.functions.list().all())).toBe('unauthorized')
    expect(await codeOf(alone.thaw.functions.list().all())).toBe('unauthorized')
  })
})

describe('fault 3: another tenant', () => {
  test('the same names are other things, and what belongs to another is 404', async () => {
    const [mine, theirs] = [await keyOf({ tenant: `a${++made}` }), await keyOf({ tenant: `b${made}` })]
    await theirs.thaw.secrets.create('S', 'theirs')
    await theirs.thaw.functions.create({
      name: 'shared',
      runtime: 'node',
      code: { inline: 'export const handler = () => { console.log("their line"); return process.env.S }' },
      secrets: [{ name: 'S', env: 'S' }],
    })
    const { invocation_id: theirId, value } = await theirs.thaw.functions.invoke('shared')
    expect(value).toBe('theirs')

    const functions = mine.thaw.functions
    for (const call of [
      () => functions.get('shared'),
      () => functions.invoke('shared'),
      () => functions.versions('shared').all(),
      () => functions.version('shared', 1),
      () => functions.rollback('shared'),
      () => functions.update('shared', echo),
      () => functions.delete('shared').then(() => functions.get('shared')),
      () => functions.buildLog('shared', 1).next(),
      () => functions.logs('shared').next(),
      () => functions.logs('shared', { follow: true }).next(),
    ]) {
      expect(await codeOf(call())).toBe('function_not_found')
    }
    expect(await statusOf('/fn/shared/', { 'x-api-key': mine.key })).toBe(404)
    expect(await codeOf(mine.thaw.invocations.get(theirId))).toBe('invocation_not_found')
    expect(await codeOf(mine.thaw.invocations.logs(theirId))).toBe('invocation_not_found')
    expect(await codeOf(mine.thaw.invocations.cancel(theirId))).toBe('invocation_not_found')
    expect(await codeOf(mine.thaw.secrets.get('S'))).toBe('secret_not_found')
    expect(await codeOf(mine.thaw.secrets.set('S', 'x'))).toBe('secret_not_found')
    expect(await codeOf(functions.create({ name: 'thief', ...echo, secrets: [{ name: 'S', env: 'S' }] }))).toBe('secret_not_found')
    const empty = await Promise.all([
      functions.list().all(),
      mine.thaw.invocations.list().all(),
      mine.thaw.secrets.list().all(),
      mine.thaw.pools.list().all(),
    ])
    expect(empty).toEqual([[], [], [], []])

    // The same names are free, and neither sees the other's.
    await mine.thaw.secrets.create('S', 'mine')
    await functions.create({ name: 'shared', ...echo, secrets: [{ name: 'S', env: 'S' }] })
    expect((await functions.invoke('shared', { n: 1 })).value).toEqual({ n: 1 })
    expect((await theirs.thaw.functions.invoke('shared')).value).toBe('theirs')
    expect(await mine.thaw.invocations.list().all()).toHaveLength(1)
    const lines: string[] = []
    for await (const entry of functions.logs('shared')) lines.push(entry.message)
    expect(lines).toEqual([])
    expect((await mine.thaw.secrets.get('S')).used_by).toEqual(['shared'])
    await mine.thaw.functions.delete('shared')
    expect(await theirs.thaw.invocations.get(theirId)).toMatchObject({ function: 'shared', status: 'succeeded' })
    expect((await theirs.thaw.functions.invoke('shared')).value).toBe('theirs')
    expect(JSON.stringify(await theirs.thaw.invocations.list().all())).not.toContain('tenant')
  })

  test('an admin of one tenant does not see the functions of another either', async () => {
    const theirs = await keyOf({ tenant: `c${++made}` })
    await theirs.thaw.functions.create({ name: 'private', ...echo })
    expect(await codeOf(admin.functions.get('private'))).toBe('function_not_found')
    expect(await admin.functions.list().all()).toEqual([])
  })

  test('a member may not do what concerns the whole platform', async () => {
    const { thaw, key } = await keyOf()
    for (const call of [
      () => thaw.keys.list().all(),
      () => thaw.keys.create({ name: 'mine', role: 'admin' }),
      () => thaw.keys.delete('key-none'),
      () => thaw.images.delete('python'),
      () => thaw.images.prune(),
      () => thaw.pools.set('host', { size: 1 }),
      () => thaw.pools.prewarm({ image: 'host' }),
    ]) {
      expect(await codeOf(call())).toBe('forbidden')
    }
    expect(await statusOf('/metrics', { 'x-api-key': key })).toBe(403)
    expect(await statusOf('/metrics', { 'x-api-key': adminKey })).toBe(200)
    const info = await thaw.info()
    expect(info).toMatchObject({ name: 'thaw', data_dir: null })
    for (const { probe } of info.drivers) expect(probe).toMatchObject({ versions: {}, missing: [], warnings: [] })
    expect((await admin.info()).data_dir).toBe(server.dataDir)
  })
})

describe('the code of a function', () => {
  test('never sees the key that it was called with, and sees every other header', async () => {
    await admin.functions.create({ name: 'headers', runtime: 'node', code: { inline: 'export const handler = (event) => event.headers' } })
    await admin.functions.create({ name: 'web', runtime: 'node', contract: 'http', code: { dir: folder } })
    for (const path of ['/fn/headers/', '/fn/web/request']) {
      const asHeader = await fetch(server.url + path, { headers: { 'x-api-key': adminKey, authorization: 'Bearer of-the-function' } })
      const text = await asHeader.text()
      expect(asHeader.status).toBe(200)
      expect(text).not.toContain('e2b_')
      expect(text).toContain('Bearer of-the-function')
      const asBearer = await fetch(server.url + path, { headers: { 'x-api-key': 'of-the-function', authorization: `Bearer ${adminKey}` } })
      const other = await asBearer.text()
      expect(other).not.toContain('e2b_')
      expect(other).toContain('of-the-function')
    }
  })
})

describe('what a server lets in', () => {
  test('one that a network can reach does not start without a key, and starts with one that was made in its folder', async () => {
    using dir = tempDir()
    const flags = { driver: 'process', pools: { size: 0 }, data_dir: join(dir.path, 'data'), host: '0.0.0.0' }
    await expect(startServer(flags)).rejects.toMatchObject({
      code: 'config_invalid',
      fix: expect.stringContaining(`thaw key create admin --data-dir ${flags.data_dir}`),
    })
    const { key, role } = await createKey({ name: 'offline' }, { flags: { data_dir: flags.data_dir } })
    expect(role).toBe('admin')
    await expect(startServer({ ...flags, auth: 'off' })).rejects.toMatchObject({ code: 'config_invalid' })
    await using reachable = await startServer(flags)
    const url = reachable.url.replace('0.0.0.0', '127.0.0.1')
    expect(await codeOf(new Thaw({ url }).functions.list().all())).toBe('unauthorized')
    expect(await codeOf(new Thaw({ url, apiKey: key }).functions.list().all())).toBe('done')
    await expect(createKey({ name: 'x' }, { flags: { data_dir: flags.data_dir } })).rejects.toMatchObject({ code: 'data_dir_in_use' })
  })

  test('auth on needs a key before there is one; auth off needs none although there are', async () => {
    await using on = await startServer({ driver: 'process', auth: 'on', pools: { size: 0 } })
    expect(await codeOf(on.thaw.keys.create({ name: 'x' }))).toBe('unauthorized')
    await using off = await startServer({ driver: 'process', auth: 'off', pools: { size: 0 } })
    await off.thaw.keys.create({ name: 'x' })
    expect(await codeOf(off.thaw.functions.list().all())).toBe('done')
  })

  test('the first key is that of an admin, whatever it is asked to be', async () => {
    await using fresh = await startServer({ driver: 'process', pools: { size: 0 } })
    expect(await codeOf(fresh.thaw.keys.create({ name: 'x', role: 'member' }))).toBe('invalid_request')
    expect(await codeOf(fresh.thaw.functions.list().all())).toBe('done')
    expect((await fresh.thaw.keys.create({ name: 'x' })).role).toBe('admin')
  })

  test('keys outlive kill -9, and nothing on disk holds one', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const first = await startChildServer(dataDir, { driver: 'process' })
    const item = await first.thaw.keys.create({ name: 'kept', tenant: 'web' })
    expect(item.key).toMatch(/^e2b_[0-9a-f]{40}$/)
    await first.kill()
    await using second = await startChildServer(dataDir, { driver: 'process' })
    expect(await codeOf(second.thaw.functions.list().all())).toBe('unauthorized')
    const thaw = new Thaw({ url: second.url, apiKey: item.key })
    const { key, ...shown } = item
    expect(await thaw.keys.list().all()).toEqual([shown])
    for (const name of readdirSync(dataDir).filter((file) => statSync(join(dataDir, file)).isFile())) {
      expect(readFileSync(join(dataDir, name)).includes(key), name).toBe(false)
    }
  })
})
