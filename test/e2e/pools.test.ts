import type { PoolItem } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`pools over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let made = 0

    beforeAll(async () => {
      server = await startServer({ driver, pools: { size: 2, max_size: 6 }, limits: { max_instances: 30 } })
    })
    afterAll(() => server[Symbol.asyncDispose]())

    async function deploy(config: object = {}): Promise<string> {
      const name = `p${++made}`
      const source = 'import os\ndef handler(event, context):\n    return [os.environ.get("SECRET"), os.listdir(os.path.dirname(__file__))]'
      await server.thaw.functions.create({ name, runtime: 'python', code: { inline: source }, ...config } as never)
      return name
    }
    const pools = async () => ((await fetch(`${server.url}/v1/pools`).then((answer) => answer.json())) as { items: PoolItem[] }).items
    const filled = () =>
      eventually(async () => (await pools()).some((pool) => pool.runtime === 'python' && pool.ready >= pool.target && pool.target > 0))
    const send = (method: string, path: string, body: object) =>
      fetch(server.url + path, { method, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })

    test('the first call of a new function takes a sandbox that was started ahead, and the pool fills again', async () => {
      const first = await deploy()
      expect(await filled()).toBe(true)
      const answer = await server.thaw.functions.invoke<[null, string[]]>(first)
      expect(answer.boot_method).toBe('pooled')
      expect(answer.value[1]).toContain('main.py')
      expect((await server.thaw.functions.invoke(first)).boot_method).toBe('reused')
      expect(await filled()).toBe(true)
    })

    test('a used instance never returns to the pool: another function gets a fresh one', async () => {
      const one = await deploy({ env: { SECRET: 'of one' } })
      const two = await deploy()
      expect(await filled()).toBe(true)
      const first = await server.thaw.functions.invoke<[string, string[]]>(one)
      expect(first.value[0]).toBe('of one')
      const id = async (invocation: { invocation_id: string }) => (await server.thaw.invocations.get(invocation.invocation_id)).sandbox_id
      const used = await id(first)
      await server.thaw.functions.delete(one)
      expect(await filled()).toBe(true)
      const second = await server.thaw.functions.invoke<[null, string[]]>(two)
      expect(second).toMatchObject({ boot_method: 'pooled', value: [null, expect.any(Array)] })
      expect(await id(second)).not.toBe(used)
    })

    test('a burst beyond the pool works too: what the pool cannot give is started cold', async () => {
      const names = await Promise.all(Array.from({ length: 10 }, () => deploy()))
      expect(await filled()).toBe(true)
      const methods = await Promise.all(names.map(async (name) => (await server.thaw.functions.invoke(name)).boot_method))
      expect(methods).toContain('pooled')
      expect(methods).toContain('cold')
      expect(methods).not.toContain('reused')
      await Promise.all(names.map((name) => server.thaw.functions.delete(name)))
    })

    test('prewarm answers once the sandboxes wait, and a fixed size is kept until it follows demand again', async () => {
      const warmed = await send('POST', '/v1/prewarm', { image: 'python', count: 5 })
      expect(((await warmed.json()) as { item: PoolItem }).item.ready).toBeGreaterThanOrEqual(5)
      const fixed = await send('PUT', '/v1/pools/python', { size: 1 })
      expect(((await fixed.json()) as { item: PoolItem }).item).toMatchObject({ target: 1, configured: 1 })
      expect(await eventually(async () => (await pools()).find((pool) => pool.configured === 1)?.ready === 1)).toBe(true)
      const free = await send('PUT', '/v1/pools/python', { size: null })
      expect(((await free.json()) as { item: PoolItem }).item.configured).toBeNull()
    })

    test('bad requests are refused with a fix', async () => {
      expect((await send('PUT', '/v1/pools/python', { size: -1 })).status).toBe(400)
      expect((await send('PUT', '/v1/pools/python', {})).status).toBe(400)
      expect((await send('POST', '/v1/prewarm', { image: 'go' })).status).toBe(400)
      expect((await send('POST', '/v1/prewarm', { image: 'python', count: 0 })).status).toBe(400)
      if (driver === 'oci') expect((await send('POST', '/v1/prewarm', { image: 'no such image' })).status).toBe(422)
    })

    test('when the last function that could use it is deleted, a pool is emptied', async () => {
      for await (const item of server.thaw.functions.list()) await server.thaw.functions.delete(item.name)
      expect(await pools()).toEqual(expect.not.arrayContaining([expect.objectContaining({ ready: 1 })]))
      const left = residueOf(server.dataDir)
      expect({ ...left, processes: left.processes.filter((line) => !line.includes('vitest')) }).toEqual(nothing)
    })
  })
}

test('what was prewarmed stays for as long as demand is remembered, also where no function could use it yet', async () => {
  await using server = await startServer({ driver: 'process', pools: { size: 0, demand_ms: 3000 } })
  const warmed = await server.thaw.pools.prewarm({ image: 'python', count: 2 })
  expect(warmed).toMatchObject({ ready: 2, configured: null })
  // Pools look at their sizes twice a second.
  await new Promise((resolve) => setTimeout(resolve, 1200))
  expect(await server.thaw.pools.list().all()).toMatchObject([{ ready: 2, target: 2 }])
  expect(await eventually(async () => (await server.thaw.pools.list().all()).length === 0)).toBe(true)
})

const skip = await whyNoDriver('oci')

test.skipIf(skip !== null)('limits of the version hold in a pooled sandbox as in a cold one', async () => {
  await using server = await startServer({ driver: 'oci', pools: { size: 1 } })
  const source = 'import os\ndef handler(event, context):\n    return len(b"x" * (event << 20))'
  await server.thaw.functions.create({ name: 'small', runtime: 'python', code: { inline: source }, resources: { memory_mib: 48 } })
  await server.thaw.functions.create({ name: 'large', runtime: 'python', code: { inline: source }, resources: { memory_mib: 512 } })
  const ready = () =>
    eventually(async () => {
      const { items } = (await fetch(`${server.url}/v1/pools`).then((answer) => answer.json())) as { items: PoolItem[] }
      return (items[0]?.ready ?? 0) > 0
    })
  expect(await ready()).toBe(true)
  expect(await server.thaw.functions.invoke('large', 300)).toMatchObject({ value: 300 << 20, boot_method: 'pooled' })
  expect(await ready()).toBe(true)
  expect(await server.thaw.functions.invoke('small', 1)).toMatchObject({ boot_method: 'pooled' })
  await expect(server.thaw.functions.invoke('small', 100)).rejects.toMatchObject({ code: 'out_of_memory' })
})
