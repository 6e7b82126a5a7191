import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Engine } from '../../packages/server/src/drivers/docker/engine.ts'
import { dockerdMissing, startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer } from '../support/server.ts'
import { webServerFolder } from '../support/web-server.ts'

const skip = dockerdMissing()

describe.skipIf(skip !== null)(`functions over docker${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let engine: TestDockerd
  let server: TestServer

  beforeAll(async () => {
    engine = await startDockerd()
    server = await startServer({ driver: 'docker', docker: { host: engine.host } })
  })
  afterAll(async () => {
    await server[Symbol.asyncDispose]()
    await engine[Symbol.asyncDispose]()
  })

  test('handlers in Python and Node.js answer, the next instance comes from the pool', async () => {
    const { thaw } = server
    await thaw.functions.create({
      name: 'sum',
      runtime: 'python',
      code: { inline: 'import os\ndef handler(event, context):\n    return {"sum": sum(event), "uid": os.getuid()}' },
      network: 'none',
    })
    expect(await thaw.functions.invoke('sum', [1, 2, 3])).toMatchObject({ value: { sum: 6, uid: 1_049_576 } })
    await thaw.functions.create({
      name: 'user',
      runtime: 'node',
      code: { inline: 'import os from "node:os"\nexport const handler = () => os.userInfo().username' },
      network: 'none',
    })
    expect((await thaw.functions.invoke('user', null)).value).toBe('function')
    expect(await eventually(async () => (await thaw.pools.list().all()).every(({ ready, target }) => ready >= target), 60_000)).toBe(true)
    await thaw.functions.create({
      name: 'pooled',
      runtime: 'python',
      code: { inline: 'def handler(event, context):\n    return "from the pool"' },
      network: 'none',
    })
    expect(await thaw.functions.invoke('pooled', null)).toMatchObject({ value: 'from the pool', boot_method: 'pooled' })
  })

  test('a web server is reached, and a program of the custom runtime runs in the image base', async () => {
    const { thaw, url } = server
    await thaw.functions.create({ name: 'web', runtime: 'node', contract: 'http', code: { dir: webServerFolder() } } as never)
    const answer = await fetch(`${url}/fn/web/request?a=1`, { method: 'DELETE' })
    expect(await answer.json()).toMatchObject({ method: 'DELETE', url: '/request?a=1' })
    const shell = await thaw.functions.create({
      name: 'shell',
      runtime: 'custom',
      contract: 'stdio',
      command: ['/bin/sh', '-c', 'cat; echo " came in"'],
      code: { dir: webServerFolder() },
    } as never)
    expect(shell.image).toBe('base')
    const said = await fetch(`${url}/v1/functions/shell/invoke`, {
      method: 'POST',
      body: 'text',
      headers: { 'content-type': 'text/plain' },
    })
    expect((await said.text()).trim()).toBe('text came in')
  })

  test('a function that asks for the image host is refused with what to use', async () => {
    const created = server.thaw.functions.create({
      name: 'onhost',
      runtime: 'python',
      image: 'host',
      code: { inline: 'def handler(event, context):\n    return 1' },
    })
    await expect(created).rejects.toMatchObject({ code: 'driver_unavailable', fix: expect.stringContaining('python') })
  })

  test('after a restart of the engine a call gets a new instance (fault 57)', async () => {
    await engine.restart()
    const value = async () => {
      try {
        return (await server.thaw.functions.invoke('sum', [4])).value
      } catch {
        return null
      }
    }
    expect(await eventually(async () => (await value()) !== null, 30_000)).toBe(true)
    expect(await value()).toMatchObject({ sum: 4 })
  })

  test('a stopped server leaves no container, no network and no folder', async () => {
    const docker = new Engine({ host: engine.host, certDir: null })
    expect(await docker.call<unknown[]>('GET', '/containers/json')).not.toEqual([])
    await server[Symbol.asyncDispose]()
    expect(await docker.call('GET', '/containers/json', { query: { all: true } })).toEqual([])
    const networks = await docker.call<{ Name: string }[]>('GET', '/networks')
    expect(networks.filter(({ Name }) => Name.startsWith('thaw'))).toEqual([])
    expect(await docker.call('GET', '/volumes')).toMatchObject({ Volumes: [] })
  })
})
