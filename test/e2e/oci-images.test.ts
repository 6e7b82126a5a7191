import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { layer, registryMissing, startRegistry, type TestRegistry } from '../support/registry.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

/** Functions from images of a real registry. */
const skip = (await whyNoDriver('oci')) ?? registryMissing()
if (skip !== null && process.env.CI) throw new Error(`CI must have every engine: ${skip}`)

/** A static program for an image that holds nothing else: no shell, no libraries. */
function compile(answer: string): Buffer {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-prog-'))
  writeFileSync(join(dir, 'go.mod'), 'module prog\n\ngo 1.19\n')
  writeFileSync(
    join(dir, 'main.go'),
    `package main\n\nimport (\n\t"fmt"\n\t"io"\n\t"os"\n)\n\nfunc main() {\n\tin, _ := io.ReadAll(os.Stdin)\n\tfmt.Printf("{\\"answer\\": %q, \\"got\\": %q, \\"env\\": %q}", "${answer}", string(in), os.Getenv("FROM_IMAGE"))\n}\n`,
  )
  execFileSync('go', ['build', '-o', 'prog', '.'], { cwd: dir, env: { ...process.env, CGO_ENABLED: '0' } })
  return readFileSync(join(dir, 'prog'))
}

describe.skipIf(skip !== null)(`functions from OCI images${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let registry: TestRegistry
  let server: TestServer
  const cache = tempDir()
  const imagesDir = join(cache.path, 'images')
  const program = { runtime: 'custom' as const, contract: 'stdio' as const, command: ['/app/prog'] }

  async function push(tag: string, answer: string): Promise<string> {
    return registry.push(tag, {
      layers: [await layer({ name: 'app/', type: 'directory' }, { name: 'app/prog', content: compile(answer), mode: 0o755 })],
      config: { Env: ['FROM_IMAGE=yes'] },
    })
  }

  beforeAll(async () => {
    mkdirSync(imagesDir, { mode: 0o755 })
    registry = await startRegistry()
    server = await startServer({ driver: 'oci', images_dir: imagesDir, pools: { size: 0 } })
  })
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]()
    await registry?.stop()
    cache[Symbol.dispose]()
  })

  test('a program in an image answers, with the environment of its image', async () => {
    await push('app:one', 'one')
    await server.thaw.functions.create({ name: 'one', ...program, code: { image: `${registry.address}/app:one` } })
    expect((await server.thaw.functions.invoke('one', 'hi', { contentType: 'text/plain' })).value).toEqual({
      answer: 'one',
      got: 'hi',
      env: 'yes',
    })
  })

  test('a tag that moves changes nothing for a version that is deployed; the next version follows it', async () => {
    await push('app:moving', 'before')
    const image = { image: `${registry.address}/app:moving` }
    await server.thaw.functions.create({ name: 'moving', ...program, code: image, scaling: { idle_timeout_ms: 0 } })
    await push('app:moving', 'after')
    expect((await server.thaw.functions.invoke('moving')).value).toMatchObject({ answer: 'before' })
    await server.thaw.functions.update('moving', { ...program, code: image })
    expect((await server.thaw.functions.invoke('moving')).value).toMatchObject({ answer: 'after' })
  })

  test('fault 31: an image that does not exist is 422 at deploy, and there is no function', async () => {
    const failed = server.thaw.functions.create({ name: 'absent', ...program, code: { image: `${registry.address}/app:absent` } })
    await expect(failed).rejects.toMatchObject({ code: 'image_unresolvable', status: 422 })
    await expect(server.thaw.functions.get('absent')).rejects.toMatchObject({ code: 'function_not_found' })
  })

  test('fault 32: a digest that the registry does not hold is refused', async () => {
    const failed = server.thaw.functions.create({
      name: 'digest',
      ...program,
      code: { image: `${registry.address}/app@sha256:${'0'.repeat(64)}` },
    })
    await expect(failed).rejects.toMatchObject({ status: 422, code: expect.stringMatching(/image_unresolvable|image_digest_mismatch/) })
  })

  test('an image without the program is refused at deploy', async () => {
    await push('app:two', 'two')
    const failed = server.thaw.functions.create({
      name: 'no-program',
      ...program,
      command: ['/app/other'],
      code: { image: `${registry.address}/app:two` },
    })
    await expect(failed).rejects.toMatchObject({ code: 'handler_invalid' })
  })

  test('an image without the interpreter of the runtime is refused at deploy, and says what it lacks', async () => {
    const failed = server.thaw.functions.create({
      name: 'no-python',
      runtime: 'python',
      image: `${registry.address}/app:two`,
      code: { inline: 'def handler(e, c): pass' },
    })
    await expect(failed).rejects.toMatchObject({
      code: expect.stringMatching(/runtime_unsupported|start_failed/),
      message: expect.stringContaining('python3'),
    })
  })

  test('fault 31: an image that went away after the deploy fails the start retryably', async () => {
    const digest = await push('app:gone', 'gone')
    await server.thaw.functions.create({ name: 'gone', ...program, code: { image: `${registry.address}/app:gone` } })
    // Nobody may remove it through the API while a function uses it.
    await expect(server.thaw.images.delete(`${registry.address}/app:gone`)).rejects.toMatchObject({ code: 'image_in_use' })
    await registry.stop()
    execFileSync('rm', ['-rf', imagesDir])
    mkdirSync(imagesDir, { mode: 0o755 })
    const error = await server.thaw.functions.invoke('gone').then(
      () => null,
      (caught: { code: string; retryable: boolean }) => caught,
    )
    expect(digest).toMatch(/^sha256:/)
    expect(error).toMatchObject({ code: 'image_unavailable', retryable: true })
  })
})
