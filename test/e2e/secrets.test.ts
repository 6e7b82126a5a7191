import { randomBytes } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import type { DriverKind } from '@thaw/protocol'
import type { FunctionInput } from '@thaw/sdk'
import { runServer } from '@thaw/server'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { type ChildServer, startChildServer, startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const python = `import os, time
def handler(event, context):
    time.sleep((event or {}).get("sleep", 0))
    with open("/proc/self/environ", "rb") as file:
        return [os.environ.get("TOKEN"), file.read().decode("latin-1")]`
const node = `import { readFileSync } from 'node:fs'
export const handler = () => [process.env.TOKEN, readFileSync('/proc/self/environ', 'latin1')]`
const program = 'import json, os\nprint(json.dumps([os.environ.get("TOKEN"), ""]))'

/** What a test looks for must not be found by chance. */
const random = (label: string) => `${label}-${randomBytes(12).toString('hex')}`

/** Answers with the text of its secret, its mode and owner, the kind of its file system, and its environment. */
const fileProgram = `import json, os, sys
def look():
    path = os.environ["THAW_SECRETS_DIR"] + "/token"
    status = os.stat(path)
    mount = max((line.split() for line in open("/proc/self/mounts") if path.startswith(line.split()[1])), key=lambda each: len(each[1]))
    with open(path, encoding="utf-8", newline="") as file:
        return [file.read(), oct(status.st_mode & 0o777), status.st_uid == os.getuid(), mount[2], path, repr(os.environ)]
handler = lambda event, context: look()
`
const fileHandler = `import { readFileSync, statSync } from 'node:fs'
export const handler = () => {
  const path = process.env.THAW_SECRETS_DIR + '/token'
  const status = statSync(path)
  const mounts = readFileSync('/proc/self/mounts', 'utf8').split('\\n').map((line) => line.split(' ')).filter((each) => path.startsWith(each[1]))
  const mount = mounts.sort((a, b) => b[1].length - a[1].length)[0]
  return [readFileSync(path, 'utf8'), '0o' + (status.mode & 0o777).toString(8), status.uid === process.getuid(), mount[2], path, JSON.stringify(process.env)]
}`
const fileServer = `${fileProgram}
from http.server import BaseHTTPRequestHandler, HTTPServer
class Look(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps(look()).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Look).serve_forever()
`
const fileKinds: [string, object, string][] = [
  ['python', { runtime: 'python' }, fileProgram],
  ['node', { runtime: 'node' }, fileHandler],
  ['a program', { runtime: 'python', contract: 'stdio' }, `${fileProgram}print(json.dumps(look()))\n`],
  ['a web server', { runtime: 'python', contract: 'http' }, fileServer],
]

const kinds: [string, object, string][] = [
  ['python', { runtime: 'python' }, python],
  ['node', { runtime: 'node' }, node],
  ['a program', { runtime: 'python', contract: 'stdio' }, program],
]

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`secrets over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let made = 0

    beforeAll(async () => {
      server = await startServer({ driver })
    })
    afterAll(() => server[Symbol.asyncDispose]())

    async function deploy(
      secrets: { name: string; env?: string; file?: string }[],
      config: object = { runtime: 'python' },
      source = python,
    ) {
      return server.thaw.functions.create({ name: `s${++made}`, code: { inline: source }, secrets, ...config } as never)
    }
    async function secret(value: string): Promise<string> {
      const { name } = await server.thaw.secrets.create(`secret-${++made}`, value)
      return name
    }
    const value = async (name: string, payload: unknown = {}) => (await server.thaw.functions.invoke<[string, string]>(name, payload)).value

    test.each(kinds)('%s gets a secret in its variable, and its sandbox was not started with it', async (_, config, source) => {
      const text = random('naïve "quoted"\nsecond line')
      const item = await deploy([{ name: await secret(text), env: 'TOKEN' }], config, source)
      expect(item.secrets).toEqual([{ name: expect.stringMatching(/^secret-/), env: 'TOKEN' }])
      const [seen, started] = await value(item.name)
      expect(seen).toBe(text)
      expect(started).not.toContain(text.slice(-24))
      const shown = await Promise.all(
        [`functions`, `functions/${item.name}`, `functions/${item.name}/versions`, 'secrets'].map((path) => fetchText(`/v1/${path}`)),
      )
      expect(shown.join()).toContain(item.secrets[0]?.name)
      expect(shown.join()).not.toContain(text.slice(-24))
    })

    test.each(fileKinds)('%s gets a secret as a file in memory that its own user reads', async (_, config, source) => {
      const text = random('naïve "quoted"\r\nsecond line')
      const ref = { name: await secret(text), file: '/run/secrets/token' }
      const item = await deploy([ref], config, source)
      expect(item.secrets).toEqual([ref])
      const { value } = await server.thaw.functions.invoke<[string, string, boolean, string, string, string]>(item.name, {})
      const [seen, mode, isOwn, fileSystem, path, environment] = value
      expect([seen, mode, isOwn, fileSystem]).toEqual([text, '0o400', true, 'tmpfs'])
      if (driver === 'oci') expect(path).toBe('/run/secrets/token')
      expect(environment).not.toContain(text.slice(-24))
      await server.thaw.functions.delete(item.name)
      if (driver === 'process') expect(existsSync(path)).toBe(false)
    })

    test('a new value reaches instances that start from then on, and no running one', async () => {
      const name = await secret('old')
      const { name: fn } = await deploy([{ name, env: 'TOKEN' }])
      expect((await value(fn))[0]).toBe('old')
      const before = await server.thaw.secrets.get(name)
      const after = await server.thaw.secrets.set(name, 'new')
      expect(after).toMatchObject({ name, created_at: before.created_at, used_by: [fn] })
      expect((await value(fn))[0]).toBe('old')
      // Two at a time need a second instance.
      const both = await Promise.all([value(fn, { sleep: 1 }), value(fn, { sleep: 1 })])
      expect(both.map(([seen]) => seen).sort()).toEqual(['new', 'old'])
    })

    test('a secret that a function uses is not deleted, and one that nobody uses is', async () => {
      const name = await secret('kept')
      const first = await deploy([{ name, env: 'TOKEN' }])
      const second = await deploy([{ name, env: 'TOKEN' }])
      expect((await server.thaw.secrets.get(name)).used_by).toEqual([first.name, second.name].sort())
      await expect(server.thaw.secrets.delete(name)).rejects.toMatchObject({
        code: 'secret_in_use',
        details: { used_by: [first.name, second.name].sort() },
      })
      await server.thaw.functions.delete(first.name)
      await expect(server.thaw.secrets.delete(name)).rejects.toMatchObject({ code: 'secret_in_use' })
      await server.thaw.functions.update(second.name, { runtime: 'python', code: { inline: python } })
      await server.thaw.secrets.delete(name)
      await expect(server.thaw.secrets.get(name)).rejects.toMatchObject({ code: 'secret_not_found' })
      // The version before would have to be given it.
      await expect(server.thaw.functions.rollback(second.name)).rejects.toMatchObject({ code: 'secret_not_found' })
      expect((await value(second.name))[0]).toBeNull()
    })

    test('a deploy that names an unknown secret is refused, and leaves nothing', async () => {
      const refused = deploy([{ name: 'nobody', env: 'TOKEN' }])
      await expect(refused).rejects.toMatchObject({ code: 'secret_not_found', message: expect.stringContaining('nobody') })
      await expect(server.thaw.functions.get(`s${made}`)).rejects.toMatchObject({ code: 'function_not_found' })
    })

    async function fetchText(path: string): Promise<string> {
      return (await fetch(server.url + path)).text()
    }
  })
}

describe('the API', () => {
  let server: TestServer
  beforeAll(async () => {
    server = await startServer({ driver: 'process' })
  })
  afterAll(() => server[Symbol.asyncDispose]())

  const send = async (method: string, path: string, body: object | string) => {
    const answer = await fetch(server.url + path, {
      method,
      headers: { 'content-type': 'application/json' },
      body: typeof body === 'string' ? body : JSON.stringify(body),
    })
    return { status: answer.status, text: await answer.text() }
  }

  test('a second secret of a name is refused, and so is a new value of one that does not exist', async () => {
    const { item } = JSON.parse((await send('POST', '/v1/secrets', { name: 'TWICE', value: 'a' })).text)
    expect(item).toEqual({ name: 'TWICE', created_at: expect.any(String), updated_at: item.created_at, used_by: [] })
    expect((await send('POST', '/v1/secrets', { name: 'TWICE', value: 'b' })).status).toBe(409)
    expect((await send('PUT', '/v1/secrets/NOBODY', { value: 'b' })).status).toBe(404)
    await expect(server.thaw.secrets.delete('NOBODY')).rejects.toMatchObject({ code: 'secret_not_found' })
  })

  test('64 KiB are taken, counted in bytes', async () => {
    expect((await send('POST', '/v1/secrets', { name: 'BIG', value: 'é'.repeat(32_768) })).status).toBe(201)
    expect((await send('PUT', '/v1/secrets/BIG', { value: '' })).status).toBe(200)
  })

  const marker = random('refused')
  test.each<[string, string, object | string]>([
    ['too long', '/v1/secrets', { name: 'A', value: marker + 'é'.repeat(32_768) }],
    ['a NUL byte', '/v1/secrets', { name: 'A', value: `${marker}\0` }],
    ['half a character', '/v1/secrets', `{"name":"A","value":"${marker}\\ud800"}`],
    ['no text', '/v1/secrets', { name: 'A', value: [marker] }],
    ['a bad name', '/v1/secrets', { name: '../A', value: marker }],
    ['cut off', '/v1/secrets', `{"name":"A","value":"${marker}`],
    ['a bad escape', '/v1/secrets', `{"name":"A","value":"${marker}\\q"}`],
    ['another key', '/v1/secrets', { name: 'A', value: marker, note: 1 }],
  ])('a value with %s is refused, without being repeated', async (_, path, body) => {
    const { status, text } = await send('POST', path, body)
    expect(status).toBe(400)
    expect(JSON.parse(text)).toHaveProperty('error.fix')
    expect(text).not.toContain(marker)
  })

  test.each<[string, object, RegExp]>([
    ['as a file elsewhere', { secrets: [{ name: 'TWICE', file: '/etc/passwd' }] }, /run.secrets/],
    ['as a file above', { secrets: [{ name: 'TWICE', file: '../token' }] }, /run.secrets/],
    ['as a file and a variable', { secrets: [{ name: 'TWICE', file: 'token', env: 'A' }] }, /either env or file/],
    [
      'twice in one file',
      {
        secrets: [
          { name: 'TWICE', file: 'token' },
          { name: 'BIG', file: '/run/secrets/token' },
        ],
      },
      /each file may be named once/,
    ],
    [
      'twice in one variable',
      {
        secrets: [
          { name: 'TWICE', env: 'A' },
          { name: 'BIG', env: 'A' },
        ],
      },
      /once/,
    ],
    ['over a variable of env', { secrets: [{ name: 'TWICE', env: 'A' }], env: { A: '1' } }, /A is set by env and by secrets/],
    ['in PATH', { secrets: [{ name: 'TWICE', env: 'PATH' }] }, /PATH/],
    ['in a variable of the platform', { secrets: [{ name: 'TWICE', env: 'THAW_FUNCTION_NAME' }] }, /THAW_/],
    ['in no variable', { secrets: [{ name: 'TWICE' }] }, /env/],
  ])('a function that wants a secret %s is told why not', async (_, config, why) => {
    const code = { inline: Buffer.from(node).toString('base64') }
    const { status, text } = await send('POST', '/v1/functions', { name: 'refused', runtime: 'node', code, ...config })
    expect(status, text).toBe(400)
    expect(JSON.parse(text).error.message).toMatch(why)
  })
})

/** Files below a folder that hold one of the texts, in any form that a writer of JSON, base64 or a log would give it. */
function filesWith(dir: string, texts: string[]): string[] {
  const needles = texts.flatMap((text) => [Buffer.from(text), Buffer.from(Buffer.from(text).toString('hex')), ...base64Of(text)])
  return readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((path) => {
      const content = readFileSync(path)
      return needles.some((needle) => content.includes(needle))
    })
}

/** Base64 looks different by where in its triples the text begins; the first and last characters depend on its neighbours. */
function base64Of(text: string): Buffer[] {
  return [0, 1, 2].map((shift) =>
    Buffer.from(
      Buffer.from(' '.repeat(shift) + text)
        .toString('base64')
        .slice(shift === 0 ? 0 : 4, -4),
    ),
  )
}

describe('at rest', () => {
  const folder = tempDir()
  const dataDir = join(folder.path, 'data')
  afterAll(() => folder[Symbol.dispose]())

  async function start(driver: DriverKind): Promise<{ server: ChildServer; log: () => string }> {
    const server = await startChildServer(dataDir, { driver, env: { THAW_LOG_LEVEL: 'trace' } })
    onTestFinished(() => server[Symbol.asyncDispose]())
    let log = ''
    server.process.stderr?.on('data', (text: string) => {
      log += text
    })
    return { server, log: () => log }
  }

  test('no value is in the data directory, in a log or in an error that the platform writes', async () => {
    const driver = (await whyNoDriver('oci')) === null ? 'oci' : 'process'
    const [first, second, late, plain] = [random('first'), random('second'), random('late'), random('plain')]
    const { server, log } = await start(driver)
    const { thaw } = server
    await thaw.secrets.create('token', first)
    await thaw.secrets.create('late', late)
    const failing = `import os
if os.environ["TOKEN"] == "${'x'.repeat(3)}": raise ValueError("never")
def handler(event, context):
    if event == "exit": os._exit(3)
    if event == "raise": raise ValueError("of its own")
    print("seen", len(os.environ["TOKEN"]))
    return len(os.environ["TOKEN"])`
    const runtime = 'python'
    const config = {
      runtime,
      env: { PLAIN: plain },
      secrets: [
        { name: 'token', env: 'TOKEN' },
        { name: 'token', file: 'token' },
      ],
    } satisfies Partial<FunctionInput>
    await thaw.functions.create({ name: 'user', ...config, code: { inline: failing } })
    expect((await thaw.functions.invoke('user')).value).toBe(first.length)
    const errors: unknown[] = []
    const failed = (error: unknown) => errors.push((error as { toBody(): object }).toBody())
    for (const event of ['raise', 'exit']) await thaw.functions.invoke('user', event).catch(failed)
    await thaw.secrets.set('token', second)
    await thaw.functions.update('user', { ...config, code: { inline: 'raise RuntimeError("does not load")' } }).catch(failed)
    await thaw.functions.update('user', { ...config, code: { inline: failing }, secrets: [{ name: 'nobody', env: 'TOKEN' }] }).catch(failed)
    await thaw.secrets.create('token', second).catch(failed)
    expect(errors).toHaveLength(5)
    await thaw.functions.update('user', { ...config, code: { inline: failing } })
    const answers = await Promise.all(
      ['functions', 'functions/user', 'functions/user/versions', 'functions/user/logs', 'invocations', 'secrets'].map(async (path) =>
        (await fetch(`${server.url}/v1/${path}`)).text(),
      ),
    )
    await thaw.secrets.delete('late')
    const values = [first, second, late]
    const written = JSON.stringify(errors) + answers.join() + log()
    expect(log()).not.toBe('')
    for (const value of values) expect(written).not.toContain(value)
    // While it runs, after kill -9 with what is in the write-ahead log, and after an orderly end.
    expect(filesWith(dataDir, values)).toEqual([])
    await server.kill()
    expect(filesWith(dataDir, values)).toEqual([])
    const next = await start(driver)
    expect((await next.server.thaw.functions.invoke('user')).value).toBe(second.length)
    await next.server[Symbol.asyncDispose]()
    expect(filesWith(dataDir, values)).toEqual([])
    // What is no secret is found in the same way, so looking for it can find something.
    expect(filesWith(dataDir, [plain])).not.toEqual([])
    for (const value of values) expect(log() + next.log()).not.toContain(value)
  })

  test('a server whose key is gone or another one does not start, says why, and touches neither', async () => {
    const key = join(dataDir, 'secrets.key')
    const run = () => runServer({ flags: { port: 0, data_dir: dataDir, driver: 'process', log_level: 'silent' } })
    renameSync(key, `${key}.kept`)
    await expect(run()).rejects.toMatchObject({ code: 'secret_unreadable', message: expect.stringContaining(key) })
    writeFileSync(key, randomBytes(32))
    await expect(run()).rejects.toMatchObject({ code: 'secret_unreadable', message: expect.stringContaining(key) })
    renameSync(`${key}.kept`, key)
    await (await run()).close()
  })

  test('a function whose secret is gone all the same fails to start with that reason', async () => {
    const db = new DatabaseSync(join(dataDir, 'thaw.db'))
    db.exec("DELETE FROM secrets WHERE name = 'token'")
    db.close()
    const driver = (await whyNoDriver('oci')) === null ? 'oci' : 'process'
    const { server } = await start(driver)
    await expect(server.thaw.functions.invoke('user')).rejects.toMatchObject({ code: 'secret_not_found' })
    await server.thaw.secrets.create('token', 'back')
    expect((await server.thaw.functions.invoke('user')).value).toBe(4)
  })
})
