import { describe, expect, test } from 'vitest'
import { startServer, type TestServer } from '../support/server.ts'

/** Who gets which instance, and who gives way, when the host is full. Over the driver that every machine has. */

const sleeper = (seconds: number) => ({
  runtime: 'python' as const,
  code: { inline: `import os, time\ndef handler(event, context):\n    time.sleep(${seconds})\n    return os.getpid()` },
})

async function start(limits: object): Promise<TestServer> {
  return startServer({ driver: 'process', pools: { size: 0 }, limits: { queue_length: 1000, queue_timeout_ms: 15_000, ...limits } })
}

describe('a full host', () => {
  test('a function that is never idle gives an instance up to one that has none', async () => {
    await using server = await start({ max_instances: 4 })
    const { functions } = server.thaw
    await functions.create({ name: 'greedy', ...sleeper(0.05) })
    await functions.create({ name: 'modest', ...sleeper(0) })
    let stop = false
    let served = 0
    const callers = Array.from({ length: 12 }, async () => {
      while (!stop) {
        await functions.invoke('greedy')
        served++
      }
    })
    while (served < 24) await functions.get('greedy')
    expect((await functions.get('greedy')).instances).toMatchObject({ busy: 4 })
    // Without fairness it would wait until the callers stop, and they stop only once it was served.
    expect((await functions.invoke('modest')).boot_method).toBe('cold')
    stop = true
    await Promise.all(callers)
  })

  test('an idle instance of another function goes before a call has to wait', async () => {
    await using server = await start({ max_instances: 1 })
    const { functions } = server.thaw
    for (const name of ['one', 'two']) await functions.create({ name, ...sleeper(0) })
    for (const name of ['one', 'two', 'one', 'two']) expect((await functions.invoke(name)).boot_method).toBe('cold')
    expect((await functions.invoke('two')).boot_method).toBe('reused')
  })

  test('no more memory is promised than the host may promise, and what can never fit is refused at once', async () => {
    await using server = await start({ memory_mib: 300 })
    const { functions } = server.thaw
    await functions.create({ name: 'two-fit', ...sleeper(0.3), resources: { memory_mib: 128 } })
    const pids = await Promise.all(Array.from({ length: 6 }, async () => (await functions.invoke<number>('two-fit')).value))
    expect(new Set(pids).size).toBeLessThanOrEqual(2)
    const never = functions.create({ name: 'never', ...sleeper(0), resources: { memory_mib: 512 } })
    await expect(never).rejects.toMatchObject({ code: 'invalid_request', fix: expect.stringContaining('memory_mib') })
  })
})

test('calls of a slow function do not delay those of another', async () => {
  await using server = await start({ max_instances: 20 })
  const { functions } = server.thaw
  await functions.create({ name: 'slow', ...sleeper(3), scaling: { max_instances: 2 } })
  await functions.create({ name: 'fast', ...sleeper(0) })
  let slowDone = 0
  const slow = Array.from({ length: 4 }, () => functions.invoke('slow').then(() => slowDone++))
  for (let i = 0; i < 20; i++) await functions.invoke('fast')
  expect(slowDone).toBe(0)
  await Promise.all(slow)
})

test('with concurrency, calls go to the instance that has the least to do', async () => {
  await using server = await start({ max_instances: 20 })
  const { functions } = server.thaw
  await functions.create({ name: 'shared', ...sleeper(0.5), scaling: { concurrency: 4, min_instances: 2, max_instances: 2 } })
  while ((await functions.get('shared')).instances.idle < 2);
  const pids = await Promise.all(Array.from({ length: 4 }, async () => (await functions.invoke<number>('shared')).value))
  const counts = [...new Set(pids)].map((pid) => pids.filter((other) => other === pid).length)
  expect(counts.sort()).toEqual([2, 2])
})

test('calls that wait while a new version is deployed are answered by the version that they were made to', async () => {
  await using server = await start({ max_instances: 20 })
  const { functions } = server.thaw
  const version = (answer: number) => ({
    runtime: 'python' as const,
    code: { inline: `import time\ndef handler(event, context):\n    time.sleep(0.2)\n    return ${answer}` },
  })
  await functions.create({ name: 'busy', ...version(1), scaling: { max_instances: 1 } })
  const waiting = Array.from({ length: 5 }, async () => (await functions.invoke<number>('busy')).value)
  while ((await functions.get('busy')).instances.busy === 0);
  await functions.update('busy', { ...version(2), scaling: { max_instances: 1 } })
  expect((await functions.invoke<number>('busy')).value).toBe(2)
  expect(await Promise.all(waiting)).toEqual([1, 1, 1, 1, 1])
})

test('what the platform does to a call is in the log of the function', async () => {
  await using server = await start({})
  const { functions } = server.thaw
  await functions.create({ name: 'ends', runtime: 'python', code: { inline: 'import os\ndef handler(event, context):\n    os._exit(3)' } })
  await expect(functions.invoke('ends')).rejects.toMatchObject({ code: 'function_crashed' })
  const lines: string[] = []
  for await (const entry of functions.logs('ends')) lines.push(`${entry.source}: ${entry.message}`)
  expect(lines).toEqual([expect.stringMatching(/^platform: .*ended its process/)])
})
