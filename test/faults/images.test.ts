import { createHash } from 'node:crypto'
import { lstat, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { ThawError } from '@thaw/protocol'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { Images, type ImagesOptions } from '../../packages/server/src/images/images.ts'
import { type LayerEntry, layer, registryMissing, startRegistry, type TestRegistry } from '../support/registry.ts'

const missing = registryMissing()
// In CI a missing tool must fail the tests instead.
const skipped = missing !== null && process.env.CI === undefined

describe.skipIf(skipped)(skipped ? `images (skipped: ${missing})` : 'images', () => {
  let registry: TestRegistry
  let dir: string
  let imagesDir: string
  beforeAll(async () => {
    if (missing !== null) throw new Error(`Needed in CI: ${missing}`)
    registry = await startRegistry()
  })
  afterAll(() => registry?.stop())
  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'thaw-image-faults-'))
    imagesDir = join(dir, 'images')
    await writeFile(join(dir, 'victim'), 'untouched')
  })
  afterEach(() => rm(dir, { recursive: true, force: true }))

  /** Asks for an image that must be refused, and looks that neither the cache nor its surroundings changed. */
  async function expectRefused(ref: string, code: string, message: RegExp, options: Partial<ImagesOptions> = {}): Promise<void> {
    const images = await Images.open({ imagesDir, ...options })
    const error: unknown = await images.ensure(ref).then(
      () => null,
      (thrown: unknown) => thrown,
    )
    expect(error).toBeInstanceOf(ThawError)
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) })
    expect((error as ThawError).fix).not.toBe('')
    expect((await readdir(imagesDir)).sort()).toEqual(['locks', 'refs', 'tmp'])
    expect(await readdir(join(imagesDir, 'tmp'))).toEqual([])
    expect((await readdir(dir)).sort()).toEqual(['images', 'victim'])
    expect(await readFile(join(dir, 'victim'), 'utf8')).toBe('untouched')
  }

  let count = 0
  async function pushed(...layers: Buffer[]): Promise<string> {
    const name = `evil:${++count}`
    await registry.push(name, { layers })
    return `${registry.address}/${name}`
  }

  test('fault 31: an image that is missing cannot be resolved', async () => {
    await pushed(await layer({ name: 'a', content: 'a' }))
    await expectRefused(`${registry.address}/nothing:1`, 'image_unresolvable', /no image/)
    await expectRefused(`${registry.address}/evil:no-such-tag`, 'image_unresolvable', /no image/)
  })

  test('fault 31: a registry that does not answer is worth trying again', async () => {
    const gone = await startRegistry()
    const { address } = gone
    await gone.push('app:1', { layers: [await layer({ name: 'a', content: 'a' })] })
    await gone.stop()
    await expectRefused(`${address}/app:1`, 'image_unavailable', /could not be fetched/)
  })

  test('fault 31: an image that is on disk is given by its digest when its registry is gone', async () => {
    const gone = await startRegistry()
    const { address } = gone
    const digest = await gone.push('app:1', { layers: [await layer({ name: 'a', content: 'a' })] })
    const images = await Images.open({ imagesDir })
    await images.ensure(`${address}/app@${digest}`)
    await gone.stop()
    expect((await images.ensure(`${address}/app@${digest}`)).digest).toBe(digest)
    expect((await images.find(digest))?.digest).toBe(digest)
    await expect(images.ensure(`${address}/app:1`)).rejects.toMatchObject({ code: 'image_unavailable', retryable: true })
  })

  test('fault 32: a digest that the registry does not have is refused', async () => {
    await pushed(await layer({ name: 'a', content: 'a' }))
    const wrong = `sha256:${'0'.repeat(64)}`
    await expectRefused(`${registry.address}/evil@${wrong}`, 'image_digest_mismatch', /no image of the digest/)
    await expectRefused(`${registry.address}/evil:1@${wrong}`, 'image_digest_mismatch', /no image of the digest/)
    await expectRefused(`${registry.address}/nothing@${wrong}`, 'image_unresolvable', /no image/)
  })

  test('fault 32: content that does not have its digest is refused, manifest or layer', async () => {
    await using lying = await startRegistry()
    const content = await layer({ name: 'bin/app', content: 'good' })
    const digest = await lying.push('app:1', { layers: [content] })
    const blob = (of: string) => {
      const hex = of.replace('sha256:', '')
      return join(lying.dataDir, 'docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data')
    }
    const layerDigest = `sha256:${createHash('sha256').update(content).digest('hex')}`
    const evil = await layer({ name: 'bin/app', content: 'evil' })
    await writeFile(blob(layerDigest), evil)
    await expectRefused(`${lying.address}/app@${digest}`, 'image_digest_mismatch', /does not have its digest/)

    await writeFile(blob(layerDigest), content)
    const manifest = await readFile(blob(digest), 'utf8')
    await writeFile(blob(digest), manifest.replace('"schemaVersion":2', '"schemaVersion": 2'))
    await expectRefused(`${lying.address}/app@${digest}`, 'image_digest_mismatch', /digest/)
  })

  test.each([
    ['/proc', { name: 'proc', type: 'symlink', linkname: '/etc' }],
    ['/dev', { name: 'dev', type: 'symlink', linkname: '../../../../dev' }],
    ['/sys', { name: 'sys', type: 'symlink', linkname: 'tmp' }],
    ['/tmp', { name: 'tmp', content: 'a file' }],
    ['/thaw', { name: 'thaw', type: 'symlink', linkname: '/' }],
    ['/etc', { name: 'etc', type: 'symlink', linkname: '/proc' }],
  ] as [string, LayerEntry][])('fault 33: %s that is not a folder is refused', async (path, entry) => {
    await expectRefused(await pushed(await layer(entry)), 'image_unresolvable', new RegExp(`${path} of the image is not a folder`))
  })

  test('fault 33: a folder that a later layer makes a link is refused too', async () => {
    const ref = await pushed(
      await layer({ name: 'proc', type: 'directory' }),
      await layer({ name: 'proc', type: 'symlink', linkname: '/' }),
    )
    await expectRefused(ref, 'image_unresolvable', /\/proc of the image/)
  })

  test('a path that leads out of a layer is refused', async () => {
    await expectRefused(
      await pushed(await layer({ name: '../../../victim', content: 'evil' })),
      'image_unresolvable',
      /leads out of the image/,
    )
    await expectRefused(await pushed(await layer({ name: 'a/../../../../victim', content: 'evil' })), 'image_unresolvable', /leads out/)
    const upwards = await layer({ name: '.wh...', content: '' })
    const ref = await pushed(await layer({ name: 'x/keep', content: 'a' }), upwards)
    expect((await (await Images.open({ imagesDir })).ensure(ref)).kind).toBe('oci')
    expect(await readFile(join(dir, 'victim'), 'utf8')).toBe('untouched')
  })

  test('links of a layer lead through the image, never out of it', async () => {
    const up = '../'.repeat(20)
    const ref = await pushed(
      await layer(
        { name: 'up', type: 'symlink', linkname: `${up}${dir.slice(1)}` },
        { name: 'up/victim', content: 'inside' },
        { name: 'deep/root', type: 'symlink', linkname: '/' },
        { name: 'deep/root/by-root', content: 'inside' },
      ),
      await layer({ name: 'up/.wh.victim' }, { name: 'up/second', content: 'inside' }),
    )
    const image = await (await Images.open({ imagesDir })).ensure(ref)
    const root = image.source.path ?? ''
    expect(await readFile(join(dir, 'victim'), 'utf8')).toBe('untouched')
    expect((await readdir(dir)).sort()).toEqual(['images', 'victim'])
    expect(await readdir(join(root, dir))).toEqual(['second'])
    expect(await readFile(join(root, 'by-root'), 'utf8')).toBe('inside')
  })

  test('hard links only lead to files of the image', async () => {
    await expectRefused(
      await pushed(await layer({ name: 'x', type: 'link', linkname: '/etc/shadow' })),
      'image_unresolvable',
      /no file of the image/,
    )
    await expectRefused(await pushed(await layer({ name: 'x', type: 'link', linkname: '../../victim' })), 'image_unresolvable', /leads out/)
  })

  test('a loop of links is refused', async () => {
    const loop = await layer(
      { name: 'a', type: 'symlink', linkname: 'b' },
      { name: 'b', type: 'symlink', linkname: 'a' },
      { name: 'a/x', content: '' },
    )
    await expectRefused(await pushed(loop), 'image_unresolvable', /cannot be resolved/)
  })

  test('devices, FIFOs, set-uid bits and foreign ids do not come through', async () => {
    const ref = await pushed(
      await layer(
        { name: 'disk', type: 'block-device', devmajor: 8, devminor: 0 },
        { name: 'mem', type: 'character-device', devmajor: 1, devminor: 1 },
        { name: 'pipe', type: 'fifo' },
        { name: 'su', mode: 0o4755, content: 'x' },
        { name: 'group', mode: 0o2755, content: 'x' },
        { name: 'sticky', type: 'directory', mode: 0o1777 },
        { name: 'foreign', uid: 1_000_000, gid: 4_000_000_000, content: 'x' },
      ),
    )
    const root = (await (await Images.open({ imagesDir })).ensure(ref)).source.path ?? ''
    const names = await readdir(root)
    for (const name of ['disk', 'mem', 'pipe']) expect(names).not.toContain(name)
    const mode = async (name: string) => (await lstat(join(root, name))).mode & 0o7777
    expect([await mode('su'), await mode('group'), await mode('sticky')]).toEqual([0o755, 0o755, 0o1777])
    expect(await lstat(join(root, 'foreign'))).toMatchObject({ uid: 1_048_576 + 65_534, gid: 1_048_576 + 65_534 })
  })

  test('fault 35: an image that is larger than allowed is stopped, packed or unpacked', async () => {
    const zeros = await pushed(await layer({ name: 'zeros', content: Buffer.alloc(32 << 20) }))
    await expectRefused(zeros, 'image_too_large', /unpacked it is larger than 1 MiB/, { maxImageBytes: 1 << 20 })
    const noise = await pushed(await layer({ name: 'noise', content: Buffer.alloc(3 << 20, createHash('sha512').update('x').digest()) }))
    await expectRefused(noise, 'image_too_large', /even packed/, { maxImageBytes: 1000 })
  })

  test('a layer that is damaged or no tar is refused', async () => {
    await expectRefused(await pushed(gzipSync('not a tar, whatever it says '.repeat(100))), 'image_unresolvable', /cannot be read/)
    const whole = await layer({ name: 'a', content: 'x'.repeat(10_000) })
    await expectRefused(await pushed(whole.subarray(0, whole.length - 20)), 'image_unresolvable', /cannot be read/)
  })

  test('a registry over plain HTTP is only asked so where that was allowed', async () => {
    const port = registry.address.split(':')[1]
    // This machine's own name is no loopback address, so that TLS is tried, which the registry does not speak.
    const ref = `localhost.localdomain:${port}/evil:1`
    const error: unknown = await (await Images.open({ imagesDir })).ensure(ref).catch((thrown: unknown) => thrown)
    expect(error).toMatchObject({ code: 'image_unavailable' })
  })
})
