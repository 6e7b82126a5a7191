import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { DockerDriver } from '../../packages/server/src/drivers/docker/index.ts'
import { Images } from '../../packages/server/src/images/images.ts'
import { dockerdMissing, startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { imagesDir } from '../support/images.ts'
import { layer } from '../support/registry.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const skip = dockerdMissing() ?? (await whyNoDriver('oci'))

const much = await layer({ name: 'Dockerfile', content: 'FROM scratch' }, { name: 'much', content: Buffer.alloc(3_000_000) })

describe.skipIf(skip !== null)(`images from a Dockerfile${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  const dir = tempDir()
  let engine: TestDockerd
  let server: TestServer
  let from: string

  beforeAll(async () => {
    engine = await startDockerd()
    const images = await Images.open({ imagesDir: imagesDir() })
    const { source } = await images.ensure('python')
    const docker = new DockerDriver({ dataDir: dir.path, host: engine.host })
    await docker.prepare(source)
    from = `thaw/rootfs:${source.digest.replace('sha256:', '')}`
    server = await startServer({
      driver: 'oci',
      docker: { host: engine.host },
      images_dir: join(dir.path, 'images'),
      limits: { max_unpacked_bytes: 1024 * 1024 },
    })
  })
  afterAll(async () => {
    await server[Symbol.asyncDispose]()
    await engine[Symbol.asyncDispose]()
    dir[Symbol.dispose]()
  })

  function folder(name: string, files: Record<string, string | Buffer>): string {
    const path = join(dir.path, name)
    mkdirSync(path, { recursive: true })
    for (const [file, content] of Object.entries(files)) writeFileSync(join(path, file), content)
    return path
  }
  /** What a function in an image finds there. */
  async function look(name: string, image: string, driver: 'oci' | 'docker') {
    await server.thaw.functions.create({
      name,
      runtime: 'python',
      image,
      driver,
      network: 'none',
      code: {
        inline:
          'import os\ndef handler(event, context):\n    return [open("/built").read(), os.environ.get("GREETING"), sorted(os.listdir("/app"))]',
      },
    })
    return (await server.thaw.functions.invoke(name, null)).value
  }

  test('an image is built with its log, and functions run in it, over every driver of containers', async () => {
    const context = folder('app', {
      Dockerfile: `FROM ${from}\nENV GREETING=hello\nCOPY . /app/\nRUN echo "made in a step" && cat /app/name > /built\n`,
      name: 'first',
      secret: 'not sent',
      '.dockerignore': 'secret\n',
    })
    const log: string[] = []
    const built = await server.thaw.images.build('app:1', context, { onProgress: (line) => log.push(line) })
    expect(built).toMatchObject({ ref: 'app:1', kind: 'oci', state: 'ready' })
    expect(log).toContain('made in a step')
    const seen = ['first', 'hello', ['.dockerignore', 'Dockerfile', 'name']]
    expect(await look('over-oci', 'app:1', 'oci')).toEqual(seen)
    expect(await look('over-docker', 'app:1', 'docker')).toEqual(seen)

    // The same name again means the new image; what is deployed stays with the old one.
    folder('app', { name: 'second' })
    const again = await server.thaw.images.build('app:1', context)
    expect(again.digest).not.toBe(built.digest)
    expect((await look('newer', 'app:1', 'oci')) as unknown[]).toContain('second')
    expect(((await server.thaw.functions.invoke('over-oci', null)).value as unknown[])[0]).toBe('first')
  })

  test('a build that fails is 422 with the end of its log, and leaves no image', async () => {
    const context = folder('bad', { Dockerfile: `FROM ${from}\nRUN echo about to fail; exit 3\n` })
    await expect(server.thaw.images.build('bad', context)).rejects.toMatchObject({
      code: 'build_failed',
      status: 422,
      details: { log: expect.stringMatching(/about to fail[\s\S]*returned a non-zero code: 3/) },
    })
    expect((await server.thaw.images.list().all()).map(({ ref }) => ref)).not.toContain('bad')
    const missing = server.thaw.images.build('bad', context, { dockerfile: 'Other' })
    await expect(missing).rejects.toMatchObject({ code: 'build_failed', message: expect.stringContaining('Other') })
  })

  test.each([
    ['an archive that is cut', gzipSync(Buffer.alloc(100_000, 'x')).subarray(0, 60), 400, 'archive_invalid'],
    ['a small archive of much', much, 413, 'archive_too_large'],
    ['nothing', Buffer.alloc(0), 400, 'archive_invalid'],
  ])('%s is refused', async (_, body, status, code) => {
    const answer = await fetch(`${server.url}/v1/images/build?ref=x`, {
      method: 'POST',
      body: body as Uint8Array<ArrayBuffer>,
      headers: { 'content-type': 'application/gzip' },
    })
    expect(await answer.json()).toMatchObject({ error: { code } })
    expect(answer.status).toBe(status)
  })

  test('names of our own images and other bodies are refused', async () => {
    const context = folder('own', { Dockerfile: `FROM ${from}\n` })
    await expect(server.thaw.images.build('python', context)).rejects.toMatchObject({ code: 'image_unresolvable' })
    const json = await fetch(`${server.url}/v1/images/build?ref=x`, {
      method: 'POST',
      body: '{}',
      headers: { 'content-type': 'application/json' },
    })
    expect(json.status).toBe(415)
  })

  test('without a Docker engine the error says how to get one', async () => {
    await using alone = await startServer({ driver: 'oci', docker: { host: `unix://${dir.path}/none.sock` } })
    const context = folder('alone', { Dockerfile: 'FROM scratch\n' })
    await expect(alone.thaw.images.build('x', context)).rejects.toMatchObject({
      code: 'driver_unavailable',
      fix: expect.stringContaining('apt-get install docker.io'),
    })
  })
})
