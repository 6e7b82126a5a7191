import type { VersionItem } from '@thaw/protocol'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

describe.skipIf(skip !== null)(`functions that start from memory, over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let made = 0

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', pools: { size: 0 } })
  })
  afterAll(() => server?.[Symbol.asyncDispose]())

  async function deploy(runtime: 'python' | 'node' | 'go', source: string, config: object = {}): Promise<string> {
    const name = `m${++made}`
    await server.thaw.functions.create({
      name,
      runtime,
      code: { inline: source },
      network: 'none',
      scaling: { max_instances: 30 },
      ...config,
    } as never)
    return name
  }
  const versionOf = async (name: string): Promise<VersionItem> => {
    const { items } = (await (await fetch(`${server.url}/v1/functions/${name}/versions`)).json()) as { items: VersionItem[] }
    return items[0] as VersionItem
  }
  const snapshotOf = async (name: string) => (await versionOf(name)).snapshot
  async function kept(name: string): Promise<string> {
    await eventually(async () => ['ready', 'unhealthy'].includes((await snapshotOf(name))?.state ?? ''), 30_000)
    expect(await snapshotOf(name)).toMatchObject({ state: 'ready', kind: 'memory', error: null })
    return name
  }

  const slow = `
import time, os, random, uuid
time.sleep(1.5)
loaded = {'random': random.random(), 'at': time.time(), 'uuid': str(uuid.uuid4())}
def handler(event, context):
    return {**loaded, 'own': random.random(), 'now': time.time()}
`

  test('a function that loads for long is snapshotted without being asked, and answers from its memory without loading again', async () => {
    const name = await kept(await deploy('python', slow))
    const started = performance.now()
    const first = await server.thaw.functions.invoke<{ own: number; now: number; uuid: string }>(name)
    console.log('first', performance.now() - started, first.boot_method, first.timing, first.value)
    expect(first.boot_method).toBe('warm')
  })
})
