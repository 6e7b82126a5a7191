import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { nothing, residueOf } from '../support/residue.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

/** Dependencies are installed at deploy, in a sandbox, from the registries that this machine uses. */
const skip = await whyNoDriver('oci')

function folder(files: Record<string, string>): string {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-code-'))
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), content)
  }
  return dir
}

const isNumberLock = JSON.stringify({
  name: 'deps',
  lockfileVersion: 3,
  requires: true,
  packages: {
    '': { name: 'deps', dependencies: { 'is-number': '7.0.0' } },
    'node_modules/is-number': {
      version: '7.0.0',
      integrity: 'sha512-41Cifkg6e8TylSpdtTpeLVMqvSBEVzTttHvERD741+pnZ8ANv0004MRL43QKPDlK9cGvNp6NZWZUBlbGXYxxng==',
    },
  },
})

describe.skipIf(skip !== null)(`dependencies${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', limits: { build_timeout_ms: 120_000 } })
  })
  afterAll(() => server[Symbol.asyncDispose]())

  const buildLog = (name: string, version = 1) =>
    fetch(`${server.url}/v1/functions/${name}/versions/${version}/build-log`).then((answer) => answer.text())

  test('python: requirements.txt is installed, and not again for the next version', async () => {
    const dir = folder({
      'requirements.txt': 'six==1.16.0\n',
      'main.py': 'import six\ndef handler(event, context):\n    return six.__version__',
    })
    await server.thaw.functions.create({ name: 'py', runtime: 'python', code: { dir } })
    expect((await server.thaw.functions.invoke<string>('py')).value).toBe('1.16.0')
    expect(await buildLog('py')).toContain('Successfully installed six-1.16.0')
    writeFileSync(join(dir, 'main.py'), 'import six\ndef handler(event, context):\n    return "two " + six.__version__')
    await server.thaw.functions.update('py', { runtime: 'python', code: { dir } })
    expect((await server.thaw.functions.invoke<string>('py')).value).toBe('two 1.16.0')
    expect(await buildLog('py', 2)).toContain('taken from the cache')
  })

  test('node: what package-lock.json says is installed', async () => {
    const dir = folder({
      'package.json': '{"name":"deps","dependencies":{"is-number":"7.0.0"}}',
      'package-lock.json': isNumberLock,
      'main.mjs': 'import isNumber from "is-number"\nexport const handler = (event) => isNumber(event)',
    })
    await server.thaw.functions.create({ name: 'js', runtime: 'node', code: { dir } })
    expect((await server.thaw.functions.invoke<boolean>('js', '5')).value).toBe(true)
    expect((await server.thaw.functions.invoke<boolean>('js', 'five')).value).toBe(false)
  })

  test('go: a module of the user with a dependency is compiled and linked with the runtime', async () => {
    const dir = folder({
      'go.mod': 'module example\n\ngo 1.21\n\nrequire github.com/google/uuid v1.6.0\n',
      'go.sum':
        'github.com/google/uuid v1.6.0 h1:NIvaJDMOsjHA8n1jAhLSgzrAzy1Hgr+hNrb57e+94F0=\ngithub.com/google/uuid v1.6.0/go.mod h1:TIyPZe4MgqvfeYDBFedMoGGpEw/LqOeaOT+nhxU+yHo=\n',
      'main.go': `package main

import (
	"context"

	"github.com/google/uuid"
	"thaw/function"
)

func handler(ctx context.Context, event string) (string, error) {
	parsed, err := uuid.Parse(event)
	if err != nil {
		return "", err
	}
	return parsed.URN(), nil
}

func main() { function.Start(handler) }
`,
    })
    await server.thaw.functions.create({ name: 'golang', runtime: 'go', code: { dir } })
    const id = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'
    expect((await server.thaw.functions.invoke<string>('golang', id)).value).toBe(`urn:uuid:${id}`)
    await expect(server.thaw.functions.invoke('golang', 'nonsense')).rejects.toMatchObject({ code: 'function_failed' })
  }, 180_000)

  test('a dependency that does not exist fails the deploy with the log of the build, and leaves nothing', async () => {
    const dir = folder({ 'requirements.txt': 'no-such-package-of-thaw-tests==9.9.9\n', 'main.py': 'def handler(e, c): pass' })
    const failed = server.thaw.functions.create({ name: 'missing', runtime: 'python', code: { dir } })
    await expect(failed).rejects.toMatchObject({
      code: 'build_failed',
      details: { log: expect.stringContaining('no-such-package-of-thaw-tests') },
    })
    await expect(server.thaw.functions.get('missing')).rejects.toMatchObject({ code: 'function_not_found' })
  })

  test('a package that runs wild while it is installed cannot reach out of its build sandbox', async () => {
    const secret = `secret-${Date.now()}`
    const victim = `/var/tmp/${secret}`
    writeFileSync(victim, secret)
    // It tries, and leaves what came of it where the function can read it.
    const script = `(cat ${victim}; ls /root/.ssh; echo x > /function/main.mjs; touch ${victim}-made; touch /usr/${secret}) > node_modules/report.txt 2>&1; true`
    const dir = folder({
      'package.json': JSON.stringify({ name: 'evil', dependencies: { 'is-number': '7.0.0' }, scripts: { postinstall: script } }),
      'main.mjs': `import { readFileSync } from 'node:fs'\nexport const handler = () => readFileSync(new URL('./node_modules/report.txt', import.meta.url), 'utf8')`,
    })
    try {
      await server.thaw.functions.create({ name: 'evil', runtime: 'node', code: { dir } })
      const report = (await server.thaw.functions.invoke<string>('evil')).value
      expect(report).toMatch(/No such file or directory/)
      expect(report).toMatch(/Read-only file system|Permission denied/)
      // The name is in the messages of the tools; the content stands alone on a line.
      expect(report.split('\n')).not.toContain(secret)
      expect([existsSync(`${victim}-made`), existsSync(`/usr/${secret}`)]).toEqual([false, false])
    } finally {
      rmSync(victim, { force: true })
    }
  })
})

test.skipIf(skip !== null)('fault 30: an installation that hangs is ended, with its log, and nothing of it is left', async () => {
  await using server = await startServer({ driver: 'oci', limits: { build_timeout_ms: 4000 } })
  const dir = folder({
    'package.json': JSON.stringify({
      name: 'slow',
      dependencies: { 'is-number': '7.0.0' },
      scripts: { preinstall: 'echo about to hang; sleep 600' },
    }),
    'package-lock.json': isNumberLock.replace('"name":"deps"', '"name":"slow"'),
    'main.mjs': 'export const handler = () => 1',
  })
  const failed = server.thaw.functions.create({ name: 'slow', runtime: 'node', code: { dir } })
  await expect(failed).rejects.toMatchObject({
    code: 'build_failed',
    message: expect.stringContaining('4000 ms'),
    details: { log: expect.any(String) },
  })
  await expect(server.thaw.functions.get('slow')).rejects.toMatchObject({ code: 'function_not_found' })
  expect(residueOf(server.dataDir)).toEqual(nothing)
})
