import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Thaw, ThawError } from '@thaw/sdk'
import { runServer } from '@thaw/server'
import { afterAll, beforeAll, expect, onTestFailed, test } from 'vitest'

// The SDK against the real server, with the driver that every machine has.

let server: Awaited<ReturnType<typeof runServer>>
let thaw: Thaw
let dataDir: string

beforeAll(async () => {
  dataDir = await mkdtemp(join(tmpdir(), 'thaw-e2e-sdk-'))
  server = await runServer({ flags: { port: 0, data_dir: dataDir, driver: 'process', log_level: 'silent' } })
  thaw = new Thaw({ url: server.url })
}, 60_000)

afterAll(async () => {
  await server?.close()
  await rm(dataDir, { recursive: true, force: true })
}, 60_000)

const node = (source: string) => ({ runtime: 'node', code: { inline: source } }) as const
let made = 0

/** Deploys a function under a name of its own; its log is printed when the test fails. */
async function deploy(source: string, config: object = {}): Promise<string> {
  const name = `sdk-${++made}`
  await thaw.functions.deploy({ name, ...node(source), ...config })
  onTestFailed(async () => {
    for await (const entry of thaw.functions.logs(name)) console.error(entry.source, entry.message)
  })
  return name
}

async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = []
  for await (const item of items) all.push(item)
  return all
}

test('health and info say that a server is there and what it can do', async () => {
  await thaw.health()
  const info = await thaw.info()
  expect(info).toMatchObject({ name: 'thaw', data_dir: dataDir })
  expect(info.drivers.find((driver) => driver.kind === 'process')?.probe.usable).toBe(true)
})

test('a deployed function answers with the value that its handler returns, and says how it was started', async () => {
  const name = await deploy('export const handler = async (event) => ({ twice: event.n * 2 })')
  const first = await thaw.functions.invoke<{ twice: number }>(name, { n: 21 })
  expect(first.value.twice).toBe(42)
  expect(first.invocation_id).toMatch(/^inv-/)
  expect(first.content_type).toContain('application/json')
  expect(first.timing?.run_ms).toBeGreaterThan(0)
  const second = await thaw.functions.invoke(name, { n: 1 })
  expect(second.boot_method).toBe('reused')
})

test('text, bytes, JSON and nothing arrive as what they are, and come back as what they are', async () => {
  const name = await deploy('export const handler = (event) => event')
  const bytes = new Uint8Array([0, 255, 128, 10])
  expect((await thaw.functions.invoke(name, 'grüße')).value).toBe('grüße')
  expect((await thaw.functions.invoke(name, bytes)).value).toEqual(bytes)
  expect((await thaw.functions.invoke(name, { a: [1, null] })).value).toEqual({ a: [1, null] })
  expect((await thaw.functions.invoke(name)).value).toBeNull()
})

test('a payload that is a stream is sent as it is read', async () => {
  const name = await deploy('export const handler = (event) => event.length')
  const pieces = new Blob([new Uint8Array(700_000)]).stream()
  expect((await thaw.functions.invoke(name, pieces)).value).toBe(700_000)
})

test('an error of the code is thrown with its type, message and stack', async () => {
  const name = await deploy("export const handler = () => { throw new RangeError('too far') }")
  const error = await thaw.functions.invoke(name, null).catch((thrown: unknown) => thrown)
  expect(error).toBeInstanceOf(ThawError)
  expect(error).toMatchObject({ code: 'function_failed', details: { type: 'RangeError', message: 'too far' } })
  expect((error as ThawError).details).toHaveProperty('stack', expect.stringContaining('main.mjs'))
  expect((error as ThawError).requestId).toMatch(/^req-/)
})

test('timeoutMs ends an invocation earlier than the function itself would', async () => {
  const name = await deploy('export const handler = () => new Promise((resolve) => setTimeout(resolve, 60_000))')
  await expect(thaw.functions.invoke(name, null, { timeoutMs: 100 })).rejects.toMatchObject({ code: 'timed_out' })
})

test('an aborted signal ends the call with its reason and cancels the invocation', async () => {
  const name = await deploy("export const handler = () => { console.log('began'); return new Promise(() => setTimeout(() => {}, 60_000)) }")
  const abort = new AbortController()
  const call = thaw.functions.invoke(name, null, { signal: abort.signal })
  for await (const entry of thaw.functions.logs(name, { follow: true })) if (entry.message.includes('began')) break
  abort.abort(new Error('enough'))
  await expect(call).rejects.toThrow('enough')
  await expect
    .poll(async () => (await thaw.invocations.list({ function: name }).page()).items[0]?.status, { timeout: 5_000 })
    .toBe('cancelled')
})

test('a stream gives its pieces while the function still runs', async () => {
  const name = await deploy(
    `
    let go
    export async function* handler({ wait }) {
      if (!wait) return go()
      yield { n: 1 }
      await new Promise((resolve) => { go = resolve })
      yield { n: 2 }
    }`,
    { scaling: { concurrency: 2 } },
  )
  await using stream = await thaw.functions.stream(name, { wait: true })
  const lines = stream.json<{ n: number }>()
  expect((await lines.next()).value).toEqual({ n: 1 })
  // Only now is the handler allowed to go on: the first piece cannot have waited for the second.
  await thaw.functions.invoke(name, { wait: false })
  expect((await lines.next()).value).toEqual({ n: 2 })
  expect((await lines.next()).done).toBe(true)
})

test('a stream that fails half-way gives its pieces first, then the error of the code', async () => {
  const name = await deploy("export async function* handler() { yield 'one '; throw new TypeError('half-way') }")
  const stream = await thaw.functions.stream(name)
  const seen: string[] = []
  const reading = (async () => {
    for await (const text of stream.text()) seen.push(text)
  })()
  await expect(reading).rejects.toMatchObject({
    code: 'function_failed',
    message: expect.stringContaining('half-way'),
    details: { invocation_id: stream.invocation_id },
  })
  expect(seen.join('')).toBe('one ')
})

test('leaving the loop of a stream cancels its invocation', async () => {
  const name = await deploy("export async function* handler() { for (;;) { yield 'tick'; await new Promise((r) => setTimeout(r, 5)) } }")
  const stream = await thaw.functions.stream(name)
  for await (const _piece of stream) break
  await expect.poll(async () => (await thaw.invocations.get(stream.invocation_id)).status, { timeout: 5_000 }).toBe('cancelled')
})

test('deploying again makes a new version, and rollback makes the old one serve', async () => {
  const name = await deploy("export const handler = () => 'old'")
  const second = await thaw.functions.deploy({ name, ...node("export const handler = () => 'new'") })
  expect(second).toMatchObject({ name, version: 2, state: 'ready' })
  expect((await thaw.functions.invoke(name)).value).toBe('new')
  expect((await thaw.functions.versions(name).all()).map((version) => version.version)).toEqual([2, 1])
  expect(await thaw.functions.rollback(name)).toMatchObject({ version: 1 })
  expect((await thaw.functions.invoke(name)).value).toBe('old')
  expect(await thaw.functions.rollback(name, 2)).toMatchObject({ version: 2 })
})

test('create refuses a name that is taken, update one that is not', async () => {
  const name = await deploy('export const handler = () => 1')
  await expect(thaw.functions.create({ name, ...node('export const handler = () => 2') })).rejects.toMatchObject({
    code: 'function_exists',
  })
  await expect(thaw.functions.update('nobody', node('export const handler = () => 2'))).rejects.toMatchObject({
    code: 'function_not_found',
  })
})

test('two deploys of one new name at a time both succeed', async () => {
  const name = `sdk-${++made}`
  const source = node('export const handler = () => 1')
  const items = await Promise.all([thaw.functions.deploy({ name, ...source }), thaw.functions.deploy({ name, ...source })])
  expect(items.map((item) => item.name)).toEqual([name, name])
  expect(await thaw.functions.versions(name).all()).toHaveLength(2)
})

test('a folder is deployed with what lies below it, without what .thawignore names, and twice with the same digest', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'thaw-e2e-dir-'))
  try {
    await writeFile(
      join(dir, 'main.mjs'),
      "import { existsSync } from 'node:fs'\nimport { word } from './word.mjs'\nexport const handler = () => [word, existsSync(new URL('secret.txt', import.meta.url))]",
    )
    await writeFile(join(dir, 'word.mjs'), "export const word = 'packed'")
    await writeFile(join(dir, 'secret.txt'), 'x')
    await writeFile(join(dir, '.thawignore'), '*.txt\n')
    const name = `sdk-${++made}`
    const one = await thaw.functions.deploy({ name, runtime: 'node', code: { dir } })
    expect((await thaw.functions.invoke(name)).value).toEqual(['packed', false])
    const two = await thaw.functions.deploy({ name, runtime: 'node', code: { dir } })
    expect(two.version).toBe(2)
    expect(two.code_digest).toBe(one.code_digest)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})

test('a handler that does not exist fails the deploy, and leaves nothing behind', async () => {
  const name = `sdk-${++made}`
  await expect(thaw.functions.deploy({ name, ...node('export const other = 1') })).rejects.toMatchObject({ code: 'handler_invalid' })
  await expect(thaw.functions.get(name)).rejects.toMatchObject({ code: 'function_not_found' })
})

test('without waiting, a deploy comes back at once, and its build log can be followed to the end', async () => {
  const name = `sdk-${++made}`
  await thaw.functions.deploy({ name, ...node('export const handler = () => 1') }, { wait: false })
  await expect
    .poll(async () => (await collect(thaw.functions.buildLog(name, 1, { follow: true }))).join(''), { timeout: 20_000 })
    .toContain('loaded')
  await expect.poll(async () => (await thaw.functions.version(name, 1)).state, { timeout: 20_000 }).toBe('ready')
})

test('lists come page by page, and a loop goes through all of them', async () => {
  const names = [await deploy('export const handler = () => 1'), await deploy('export const handler = () => 1')]
  const first = await thaw.functions.list({ limit: 1 }).page()
  expect(first.items).toHaveLength(1)
  expect(first.next).not.toBeNull()
  const all = (await thaw.functions.list({ limit: 1 }).all()).map((item) => item.name)
  expect(all).toEqual([...all].sort())
  expect(all).toEqual(expect.arrayContaining(names))
})

test('what a function prints is in its log, under the invocation that printed it', async () => {
  const name = await deploy("export const handler = () => { console.log('out'); console.error('err') }")
  const { invocation_id } = await thaw.functions.invoke(name)
  const entries = await collect(thaw.functions.logs(name))
  expect(entries.filter((entry) => entry.invocation_id === invocation_id).map((entry) => [entry.source, entry.message.trim()])).toEqual(
    expect.arrayContaining([
      ['stdout', 'out'],
      ['stderr', 'err'],
    ]),
  )
  expect((await thaw.invocations.logs(invocation_id)).map((entry) => entry.message.trim())).toEqual(expect.arrayContaining(['out', 'err']))
})

test('a followed log goes on with what is printed later', async () => {
  const name = await deploy('export const handler = (event) => console.log(event)')
  await thaw.functions.invoke(name, 'before')
  const seen: string[] = []
  for await (const entry of thaw.functions.logs(name, { follow: true })) {
    seen.push(entry.message.trim())
    if (entry.message.includes('before')) void thaw.functions.invoke(name, 'after')
    if (entry.message.includes('after')) break
  }
  expect(seen.slice(-2)).toEqual(['before', 'after'])
})

test('the record of an invocation says how it went', async () => {
  const name = await deploy('export const handler = (event) => ({ got: event })')
  const { invocation_id } = await thaw.functions.invoke(name, 7)
  expect(await thaw.invocations.get(invocation_id)).toMatchObject({ function: name, status: 'succeeded', attempt: 1, result: { got: 7 } })
  const failed = await deploy('export const handler = () => { throw new Error() }')
  await thaw.functions.invoke(failed).catch(() => undefined)
  expect(await thaw.invocations.list({ function: failed, status: 'failed' }).all()).toHaveLength(1)
})

test('a running invocation can be cancelled by its id', async () => {
  const name = await deploy('export const handler = () => new Promise(() => setTimeout(() => {}, 60_000))')
  const call = thaw.functions.invoke(name)
  const outcome = expect(call).rejects.toMatchObject({ code: 'cancelled' })
  await expect
    .poll(async () => (await thaw.invocations.list({ function: name, status: 'running' }).page()).items.length, { timeout: 5_000 })
    .toBe(1)
  const running = (await thaw.invocations.list({ function: name }).page()).items[0]
  expect(await thaw.invocations.cancel(running?.id ?? '')).toMatchObject({ status: 'cancelled' })
  await outcome
})

test('a deleted function is gone, with its records', async () => {
  const name = await deploy('export const handler = () => 1')
  await thaw.functions.invoke(name)
  await thaw.functions.delete(name)
  await expect(thaw.functions.invoke(name)).rejects.toMatchObject({ code: 'function_not_found' })
  await expect(thaw.functions.delete(name)).rejects.toMatchObject({ code: 'function_not_found' })
})

test('a request that does not fit the schema is refused with the field that is wrong', async () => {
  const deployed = thaw.functions.create({ name: 'sdk-bad', ...node('x'), timeout_ms: -1 })
  await expect(deployed).rejects.toMatchObject({ code: 'invalid_request', message: expect.stringContaining('timeout_ms') })
})

test('images are listed, and one that does not exist cannot be removed', async () => {
  expect((await thaw.images.list().all()).map((image) => image.ref)).toContain('host')
  await expect(thaw.images.delete('no-such-image')).rejects.toMatchObject({ code: 'image_not_found' })
})
