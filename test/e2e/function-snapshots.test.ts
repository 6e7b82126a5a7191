import { randomBytes } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { snapshotOf, whenKept } from '../support/version-snapshots.ts'

const skip = await whyNoDriver('oci')

/** What a test looks for must not be found by chance. */
const random = (label: string) => `${label}-${randomBytes(12).toString('hex')}`

describe.skipIf(skip !== null)(`functions that start from memory, over oci${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let made = 0

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', pools: { size: 0 } })
  })
  afterAll(() => server?.[Symbol.asyncDispose]())

  async function deploy(runtime: 'python' | 'node' | 'go', source: string, config: object = {}): Promise<string> {
    const name = `m${++made}`
    await server.thaw.functions.create({ name, runtime, code: { inline: source }, network: 'none', snapshot: true, ...config } as never)
    return name
  }
  const kept = async (name: string): Promise<string> => {
    await whenKept(server.url, name)
    return name
  }
  const filesOfSnapshots = () => {
    const dir = join(server.dataDir, 'snapshots')
    return readdirSync(dir, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  }
  /** Names of files of snapshots in which a text is. */
  const holding = (text: string) =>
    filesOfSnapshots()
      .filter((entry) => readFileSync(join(entry.parentPath, entry.name)).includes(text))
      .map((entry) => entry.name)
  /** Calls at the same time, each of which gets an instance of its own because the others are still at work. */
  async function wave<Value>(name: string, count: number): Promise<{ value: Value; from: number; to: number }[]> {
    const timed = async () => {
      const from = Date.now()
      const call = await server.thaw.functions.invoke<Value>(name, { wait: true })
      expect(['warm', 'reused']).toContain(call.boot_method)
      return { ...call, from, to: Date.now() }
    }
    const calls = await Promise.all(Array.from({ length: count }, timed))
    expect(await eventually(async () => (await server.thaw.functions.get(name)).instances.idle === 0)).toBe(true)
    return calls.filter((call) => call.boot_method === 'warm')
  }

  test('a function that loads for long is kept without being asked, and its instances go on from there', async () => {
    const name = await deploy(
      'python',
      `
import os, random, time
time.sleep(1.5)
loaded = {'random': random.random(), 'at': time.time()}
def handler(event, context):
    time.sleep(1)
    return {**loaded, 'own': random.random()}
`,
      { snapshot: undefined, network: 'egress' },
    )
    await kept(name)
    const calls = await Promise.all([1, 2, 3].map(() => server.thaw.functions.invoke<{ random: number; at: number; own: number }>(name)))
    expect(calls.map((call) => call.boot_method)).toEqual(['warm', 'warm', 'warm'])
    expect(new Set(calls.map(({ value }) => `${value.random} ${value.at}`)).size).toBe(1)
    expect(new Set(calls.map(({ value }) => value.own)).size).toBe(3)
    expect(await snapshotOf(server.url, name)).toMatchObject({ success_count: 3, failure_count: 0, error: null })
    expect((await server.thaw.functions.invoke(name)).boot_method).toBe('reused')
  })

  test('one that loads at once, or wants none, is not kept', async () => {
    const quick = await deploy('python', 'def handler(event, context):\n    return 1\n', { snapshot: undefined })
    const unwilling = await deploy('python', 'import time\ntime.sleep(1.2)\ndef handler(event, context):\n    return 1\n', {
      snapshot: false,
    })
    // Makings happen one after the other: when this one is done, theirs would have been.
    await kept(await deploy('python', 'def handler(event, context):\n    return 1\n'))
    for (const name of [quick, unwilling]) expect(await snapshotOf(server.url, name)).toBeNull()
  })

  const pythonDraws = `
import os, random, secrets, socket, ssl, time, uuid
random.random(); ssl.RAND_bytes(16); uuid.uuid4()
def handler(event, context):
    if event and event.get('wait'):
        time.sleep(1.5)
    return {
        'random': random.random(), 'rand_bytes': ssl.RAND_bytes(16).hex(), 'uuid': str(uuid.uuid4()), 'secret': secrets.token_hex(16),
        'urandom': os.urandom(16).hex(), 'hostname': socket.gethostname(), 'now': time.time(),
    }
`
  const nodeDraws = `
import crypto from 'node:crypto'
import os from 'node:os'
import { setTimeout } from 'node:timers/promises'
crypto.randomBytes(16); crypto.randomUUID(); crypto.randomInt(10); Math.random()
const raw = (key) => key.export({ type: 'pkcs8', format: 'der' }).toString('base64')
export async function handler(event) {
  if (event?.wait) await setTimeout(1500)
  return {
    bytes: crypto.randomBytes(16).toString('hex'), uuid: crypto.randomUUID(), random: Math.random(), int: crypto.randomInt(2 ** 47),
    values: Buffer.from(globalThis.crypto.getRandomValues(new Uint8Array(16))).toString('hex'),
    later: (await new Promise((resolve, reject) => crypto.randomBytes(16, (error, bytes) => error ? reject(error) : resolve(bytes)))).toString('hex'),
    key: raw(crypto.generateKeyPairSync('ed25519').privateKey),
    subtle: Buffer.from(await crypto.subtle.exportKey('raw', await crypto.subtle.generateKey({ name: 'AES-GCM', length: 256 }, true, ['encrypt']))).toString('hex'),
    hostname: os.hostname(), now: Date.now() / 1000,
  }
}
`
  for (const [runtime, source] of [
    ['python', pythonDraws],
    ['node', nodeDraws],
  ] as const) {
    test(`a hundred copies of one ${runtime} instance draw nothing twice, and their clocks are right`, { timeout: 240_000 }, async () => {
      const name = await kept(
        await deploy(runtime, source, { resources: { memory_mib: 96 }, scaling: { max_instances: 10, idle_timeout_ms: 0 } }),
      )
      const seen: Record<string, string | number>[] = []
      while (seen.length < 100) {
        const drawn = await wave<Record<string, string | number>>(name, 10)
        for (const { value, from, to } of drawn) {
          expect((value.now as number) * 1000).toBeGreaterThan(from - 1000)
          expect((value.now as number) * 1000).toBeLessThan(to + 1000)
        }
        seen.push(...drawn.map(({ value }) => value))
      }
      for (const what of Object.keys(seen[0] as object)) {
        if (what !== 'now') expect([what, new Set(seen.map((each) => each[what])).size]).toEqual([what, seen.length])
      }
    })
  }

  test('copies of a Go instance run their hooks, get their secrets, and draw nothing twice from crypto/rand', {
    timeout: 180_000,
  }, async () => {
    const value = random('secret')
    await server.thaw.secrets.create('gotoken', value)
    const source = `package main

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"time"

	"thaw/function"
)

var hooks []string
var early = draw()

func draw() string {
	bytes := make([]byte, 16)
	rand.Read(bytes)
	return hex.EncodeToString(bytes)
}

func handler(event map[string]any) (any, error) {
	if event["wait"] == true {
		time.Sleep(1500 * time.Millisecond)
	}
	host, _ := os.Hostname()
	return map[string]any{"early": early, "bytes": draw(), "hostname": host, "hooks": hooks, "secret": os.Getenv("TOKEN")}, nil
}

func main() {
	function.BeforeSnapshot(func() error { hooks = append(hooks, "before"); return nil })
	function.AfterRestore(func() error { hooks = append(hooks, "after "+os.Getenv("TOKEN")); return nil })
	function.Start(handler)
}
`
    const name = await kept(
      await deploy('go', source, { secrets: [{ name: 'gotoken', env: 'TOKEN' }], scaling: { max_instances: 10, idle_timeout_ms: 0 } }),
    )
    const drawn = await wave<{ early: string; bytes: string; hostname: string; hooks: string[]; secret: string }>(name, 10).then((calls) =>
      calls.map(({ value }) => value),
    )
    expect(drawn.length).toBeGreaterThan(1)
    for (const each of drawn) expect(each).toMatchObject({ early: drawn[0]?.early, secret: value, hooks: ['before', `after ${value}`] })
    expect(new Set(drawn.map(({ bytes }) => bytes)).size).toBe(drawn.length)
    expect(new Set(drawn.map(({ hostname }) => hostname)).size).toBe(drawn.length)
  })

  const secretive = {
    python: `
import os, thaw
marker = 'MARK' + 'ER'
hooks = []
@thaw.before_snapshot
def before():
    hooks.append(['before', os.environ.get('TOKEN')])
@thaw.after_restore
async def after():
    hooks.append(['after', os.environ['TOKEN']])
print('loaded')
def handler(event, context):
    print('called')
    with open(os.environ['THAW_SECRETS_DIR'] + '/token') as file:
        return [os.environ['TOKEN'], file.read(), hooks]
`,
    node: `
import { readFileSync } from 'node:fs'
import { afterRestore, beforeSnapshot } from 'thaw'
export const marker = ['MARK', 'ER'].join('')
const hooks = []
beforeSnapshot(() => hooks.push(['before', process.env.TOKEN ?? null]))
afterRestore(async () => hooks.push(['after', process.env.TOKEN]))
console.log('loaded')
export function handler() {
  console.log('called')
  return [process.env.TOKEN, readFileSync(process.env.THAW_SECRETS_DIR + '/token', 'utf8'), hooks]
}
`,
  }
  for (const runtime of ['python', 'node'] as const) {
    test(`${runtime}: secrets come after the restore and are in no snapshot; hooks run; what copies print is logged`, async () => {
      const value = random('secret')
      const marker = random('marker')
      await server.thaw.secrets.create(`token-${runtime}`, value)
      const name = await kept(
        await deploy(
          runtime,
          secretive[runtime].replace("'MARK' + 'ER'", `'${marker}'.lower()`).replace("['MARK', 'ER'].join('')", `'${marker}'.repeat(1)`),
          {
            secrets: [
              { name: `token-${runtime}`, env: 'TOKEN' },
              { name: `token-${runtime}`, file: '/run/secrets/token' },
            ],
            scaling: { idle_timeout_ms: 0 },
          },
        ),
      )
      const first = await server.thaw.functions.invoke<[string, string, [string, string | null][]]>(name)
      expect(first.boot_method).toBe('warm')
      expect(first.value).toEqual([
        value,
        value,
        [
          ['before', null],
          ['after', value],
        ],
      ])
      // That memory is searched at all is seen by what the code itself holds.
      expect(holding(marker)).not.toEqual([])
      expect(holding(value)).toEqual([])
      expect(
        await eventually(async () => (await server.thaw.invocations.logs(first.invocation_id)).some((entry) => entry.message === 'called')),
      ).toBe(true)
      // Another value from now on, without a new snapshot.
      const later = random('later')
      await server.thaw.secrets.set(`token-${runtime}`, later)
      expect(await eventually(async () => (await server.thaw.functions.get(name)).instances.idle === 0)).toBe(true)
      expect(await server.thaw.functions.invoke(name)).toMatchObject({ boot_method: 'warm', value: [later, later, expect.anything()] })
    })
  }

  test('code whose hook fails after the restore takes no calls: another boot method answers, and it is not tried for ever', async () => {
    const name = await kept(
      await deploy(
        'python',
        "import thaw\n@thaw.after_restore\ndef no():\n    raise RuntimeError('not now')\ndef handler(event, context):\n    return 'answered'\n",
        { scaling: { idle_timeout_ms: 0 } },
      ),
    )
    for (let call = 0; call < 3; call++) {
      await whenKept(server.url, name)
      const answer = await server.thaw.functions.invoke(name)
      expect(answer).toMatchObject({ value: 'answered', boot_method: 'cold' })
      expect(await eventually(async () => (await server.thaw.functions.get(name)).instances.idle === 0)).toBe(true)
    }
    expect(await server.thaw.functions.invoke(name)).toMatchObject({ value: 'answered', boot_method: 'cold' })
  })

  test('code that cannot be loaded without its secrets is not kept, and the version says why', async () => {
    await server.thaw.secrets.create('needed', 'a value')
    const name = await deploy('python', "import os\ntoken = os.environ['NEEDED']\ndef handler(event, context):\n    return token\n", {
      secrets: [{ name: 'needed', env: 'NEEDED' }],
    })
    expect(await eventually(async () => (await snapshotOf(server.url, name))?.state === 'unhealthy')).toBe(true)
    expect(await snapshotOf(server.url, name)).toMatchObject({
      size_bytes: 0,
      error: { code: 'handler_invalid', message: expect.stringContaining('NEEDED') },
    })
    expect(await server.thaw.functions.invoke(name)).toMatchObject({ value: 'a value', boot_method: 'cold' })
  })

  test('code that does not let itself be kept is not, and the version says why', async () => {
    const name = await deploy(
      'node',
      "import { beforeSnapshot } from 'thaw'\nbeforeSnapshot(() => { throw new Error('a connection is busy') })\nexport const handler = () => 1\n",
    )
    expect(await eventually(async () => (await snapshotOf(server.url, name))?.state === 'unhealthy')).toBe(true)
    expect((await snapshotOf(server.url, name))?.error).toMatchObject({ message: expect.stringContaining('a connection is busy') })
    expect(await server.thaw.functions.invoke(name)).toMatchObject({ value: 1, boot_method: 'cold' })
  })

  test('several calls at once, and async handlers, work in copies as elsewhere', async () => {
    const name = await kept(
      await deploy(
        'python',
        'import asyncio, os\nasync def handler(event, context):\n    await asyncio.sleep(0.2)\n    return os.uname().nodename\n',
        { scaling: { concurrency: 8, max_instances: 1 } },
      ),
    )
    const calls = await Promise.all(Array.from({ length: 8 }, () => server.thaw.functions.invoke<string>(name)))
    expect(new Set(calls.map((call) => call.value)).size).toBe(1)
    expect(calls.some((call) => call.boot_method === 'warm')).toBe(true)
  })

  test('a new version makes its own, and nothing is left of a function that was deleted', async () => {
    const source = (word: string) => `def handler(event, context):\n    return '${word}'\n`
    const name = await kept(await deploy('python', source('one')))
    await server.thaw.functions.update(name, { runtime: 'python', code: { inline: source('two') }, network: 'none', snapshot: true })
    await kept(name)
    expect(await server.thaw.functions.invoke(name)).toMatchObject({ value: 'two', boot_method: 'warm' })
    const before = filesOfSnapshots().length
    await server.thaw.functions.delete(name)
    expect(filesOfSnapshots().length).toBeLessThan(before)
    const again = await deploy('python', source('three'), { snapshot: false })
    expect(await snapshotOf(server.url, again)).toBeNull()
  })

  test('a web server that hears of it goes on from memory, with secrets that it is told', async () => {
    const value = random('secret')
    await server.thaw.secrets.create('web', value)
    const source = `
import json, os, time, uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
loaded = str(uuid.uuid4())
heard = []
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(json.dumps({'loaded': loaded, 'heard': heard, 'host': os.uname().nodename, 'file': open(os.environ['THAW_SECRETS_DIR'] + '/web').read()}))
    def do_POST(self):
        body = self.rfile.read(int(self.headers['content-length']))
        if self.headers['thaw-hook-token'] != os.environ['THAW_HOOK_TOKEN']:
            return self.answer('no', 403)
        hook = json.loads(body)
        heard.append([hook['hook'], hook.get('env'), len(hook.get('entropy') or '')])
        self.answer('heard')
    def answer(self, text, status=200):
        self.send_response(status)
        self.send_header('content-length', str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_): pass
ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()
`
    const name = await kept(
      await deploy('python', source, {
        contract: 'http',
        env: { THAW_HOOK_PATH: '/hooks' },
        secrets: [
          { name: 'web', env: 'TOKEN' },
          { name: 'web', file: '/run/secrets/web' },
        ],
      }),
    )
    const answer = await fetch(`${server.url}/fn/${name}/`)
    expect(answer.headers.get('thaw-boot-method')).toBe('warm')
    expect(await answer.json()).toMatchObject({
      heard: [
        ['before_snapshot', null, 0],
        ['after_restore', { TOKEN: value }, 44],
      ],
      host: expect.stringMatching(/^sbx-/),
      file: value,
    })
    expect(holding(value)).toEqual([])
    expect((await fetch(`${server.url}/fn/${name}/hooks`, { method: 'POST', body: '{}' })).status).toBe(403)
  })

  test('what cannot start from memory is refused where it is asked for', async () => {
    const program = { name: 'no', runtime: 'python', code: { inline: 'print(1)' }, contract: 'stdio', snapshot: true } as const
    await expect(server.thaw.functions.create(program)).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringContaining('stdio'),
    })
    const deaf = { name: 'no', runtime: 'python', code: { inline: 'print(1)' }, contract: 'http', snapshot: true } as const
    await expect(server.thaw.functions.create(deaf)).rejects.toMatchObject({
      code: 'invalid_request',
      fix: expect.stringContaining('THAW_HOOK_PATH'),
    })
    const process = { name: 'no', runtime: 'python', code: { inline: 'handler = print' }, driver: 'process', snapshot: true } as const
    await expect(server.thaw.functions.create(process)).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringContaining('process'),
    })
  })
})
