import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, readlink, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ThawError } from '@thaw/protocol'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { idShift } from '../../packages/server/src/images/idshift.ts'
import { type Image, Images } from '../../packages/server/src/images/images.ts'
import { layer, registryMissing, startRegistry, type TestRegistry } from '../support/registry.ts'

/** Where the runtime images were built before the tests (vitest's global setup). */
const sharedDir = '/var/cache/thaw/images'

const missing = registryMissing()
// In CI a missing tool must fail the tests instead.
const skipped = missing !== null && process.env.CI === undefined
const title = (text: string) => (skipped ? `${text} (skipped: ${missing})` : text)

let dir: string
let imagesDir: string
beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'thaw-images-'))
  await chmod(dir, 0o755)
  imagesDir = join(dir, 'images')
})
afterEach(() => rm(dir, { recursive: true, force: true }))

function rootfs(image: Image): string {
  if (image.source.path === undefined) throw new Error('the image has no folder')
  return image.source.path
}

/** All files of a tree that break a rule that every unpacked image keeps. */
async function violations(root: string): Promise<string[]> {
  const found: string[] = []
  // With file types, links to folders are not followed.
  const entries = await readdir(root, { recursive: true, withFileTypes: true })
  for (const name of [root, ...entries.map((entry) => join(entry.parentPath, entry.name))]) {
    const { uid, gid, mode } = await lstat(name)
    const type = mode & 0o170000
    const shifted = (id: number) => id >= idShift && id < idShift + 65_536
    if (!shifted(uid) || !shifted(gid) || (mode & 0o6000) !== 0 || ![0o100000, 0o040000, 0o120000].includes(type))
      found.push(`${name} ${uid} ${gid} ${mode.toString(8)}`)
  }
  return found
}

async function inImage(image: Image, ...argv: string[]): Promise<string> {
  const user = idShift + 1000
  const child = spawn('chroot', [`--userspec=+${user}:+${user}`, rootfs(image), ...argv], { env: { ...image.config.env, HOME: '/tmp' } })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (said += text))
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new Error(`exit code ${code}: ${said}`)
  return said.trim()
}

describe.skipIf(skipped)(title('runtime images'), () => {
  let images: Images
  beforeAll(async () => {
    images = await Images.open({ imagesDir: sharedDir })
  })

  test.each([
    ['python', '/usr/bin/python3', ['/usr/bin/python3', '-c', 'import ssl, venv, pip; print("Python runs")'], /Python runs/],
    ['node', '/usr/bin/node', ['/usr/bin/npm', '--version'], /^11\./],
    ['go', '/usr/local/go/bin/go', ['/usr/local/go/bin/go', 'version'], /^go version go1\./m],
  ] as const)(
    '%s holds its interpreter, runs it as an ordinary user, and belongs to shifted ids only',
    async (ref, program, argv, output) => {
      const image = await images.ensure(ref)
      expect(image.interpreters[ref]).toBe(program)
      expect(await inImage(image, ...argv)).toMatch(output)
      expect(await violations(rootfs(image))).toEqual([])
      expect(await readFile(join(rootfs(image), 'etc/passwd'), 'utf8')).toContain('function:x:1000:1000:')
      for (const point of ['proc', 'sys', 'dev', 'tmp', 'function', 'thaw/runtime', 'thaw/run']) {
        expect((await lstat(join(rootfs(image), point))).isDirectory(), point).toBe(true)
      }
    },
  )

  test('python starts from compiled files that are up to date', async () => {
    const image = await images.ensure('python')
    const said = await inImage(image, '/usr/bin/python3', '-v', '-c', 'import json, asyncio')
    expect(said).toMatch(/json\/__pycache__\/__init__\..*\.pyc matches/)
    expect(said).not.toMatch(/wrote|could not create|bytecode is stale/)
  })

  test('an image that is on disk is given at once', async () => {
    await images.ensure('python')
    const started = performance.now()
    await (await Images.open({ imagesDir: sharedDir })).ensure('python')
    expect(performance.now() - started).toBeLessThan(1000)
  })
})

describe('the image host', () => {
  test('shows tools and libraries, and nothing of homes, secrets or other configuration', async () => {
    const images = await Images.open({ imagesDir })
    const image = await images.ensure('host')
    const targets = (image.source.binds ?? []).map((bind) => bind.target)
    expect(targets).toContain('/usr')
    for (const target of targets) expect(target).not.toMatch(/^\/(home|root|etc|var|srv|opt|mnt)/)
    expect(await readdir(join(rootfs(image), 'root'))).toEqual([])
    expect(await readdir(join(rootfs(image), 'home'))).toEqual([])
    const etc = await readdir(join(rootfs(image), 'etc'))
    for (const secret of ['shadow', 'gshadow', 'sudoers', 'ssh', 'machine-id', 'fstab', 'environment']) expect(etc).not.toContain(secret)
    expect(await readFile(join(rootfs(image), 'etc/passwd'), 'utf8')).toMatch(/^root:.*\nfunction:x:1000:1000:.*\nnobody:.*\n$/)
    expect(image.interpreters.node).toBe('/thaw/bin/node')
    expect(targets).toContain('/thaw/bin/node')
    // Every place that something is mounted on exists.
    for (const target of targets) await lstat(join(rootfs(image), target))
  })

  test('is the same image while the machine is the same', async () => {
    const one = await (await Images.open({ imagesDir })).ensure('host')
    const two = await (await Images.open({ imagesDir })).ensure('host')
    expect(two).toEqual(one)
  })

  test('does not depend on the umask: other users can walk to its files', async () => {
    const script = `
      process.umask(0o077)
      const { Images } = await import(${JSON.stringify(new URL('../../packages/server/src/images/images.ts', import.meta.url).href)})
      const image = await (await Images.open({ imagesDir: ${JSON.stringify(join(imagesDir, 'deep/down'))} })).ensure('host')
      console.log(image.source.path)`
    const path = await runNode(script)
    for (let folder = join(path, 'etc'); folder.length >= imagesDir.length; folder = join(folder, '..'))
      expect((await stat(folder)).mode & 0o005, folder).toBe(0o005)
    expect((await stat(join(path, 'etc/passwd'))).mode & 0o004).toBe(0o004)
  })
})

async function runNode(script: string): Promise<string> {
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: ['ignore', 'pipe', 'pipe'] })
  let out = ''
  let err = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text))
  const [code] = (await once(child, 'close')) as [number | null]
  if (code !== 0) throw new Error(err)
  return out.trim()
}

describe.skipIf(skipped)(title('OCI images from a real registry'), () => {
  let registry: TestRegistry
  beforeAll(async () => {
    if (missing !== null) throw new Error(`Needed in CI: ${missing}`)
    registry = await startRegistry()
  })
  afterAll(() => registry?.stop())

  const simple = async (text: string) => ({
    layers: [await layer({ name: 'bin/app', mode: 0o755, content: text }), await layer({ name: 'data.txt', content: text })],
    config: { Env: ['PATH=/bin', 'MODE=a=b'], Entrypoint: ['/bin/app'], Cmd: ['serve'], WorkingDir: '/work', User: '10:20' },
  })

  test('a tag is pulled, unpacked with shifted ids, and described', async () => {
    const digest = await registry.push('app:1', await simple('one'))
    const images = await Images.open({ imagesDir })
    const lines: string[] = []
    const image = await images.ensure(`${registry.address}/app:1`, { onProgress: (line) => lines.push(line) })
    expect(image).toMatchObject({
      digest,
      kind: 'oci',
      config: { env: { PATH: '/bin', MODE: 'a=b' }, entrypoint: ['/bin/app'], cmd: ['serve'], workdir: '/work', user: '10:20' },
      interpreters: { python: null, node: null, go: null },
    })
    expect(await readFile(join(rootfs(image), 'bin/app'), 'utf8')).toBe('one')
    expect(await violations(rootfs(image))).toEqual([])
    expect(lines.join('\n')).toMatch(/downloading 2 layers[\s\S]*unpacking layer 2 of 2/)
  })

  test('later layers replace, remove and hide what earlier ones have', async () => {
    await registry.push('layers:1', {
      layers: [
        await layer(
          { name: 'keep', content: 'old' },
          { name: 'gone', content: 'x' },
          { name: 'dir/hidden', content: 'x' },
          { name: 'dir/sub/hidden', content: 'x' },
          { name: 'tree/leaf', content: 'x' },
          { name: 'usr/lib/a', content: 'a' },
          { name: 'lib', type: 'symlink', linkname: 'usr/lib' },
          { name: 'was-link', type: 'symlink', linkname: 'keep' },
        ),
        await layer(
          { name: 'keep', content: 'new', uid: 10, gid: 20, mode: 0o640 },
          { name: '.wh.gone' },
          { name: 'dir/fresh', content: 'x' },
          { name: 'dir/.wh..wh..opq' },
          { name: '.wh.tree' },
          { name: 'lib/b', content: 'through the link' },
          { name: 'was-link', content: 'now a file' },
          { name: 'same', type: 'link', linkname: 'keep' },
        ),
      ],
    })
    const root = rootfs(await (await Images.open({ imagesDir })).ensure(`${registry.address}/layers:1`))
    const names = (await readdir(root)).filter((name) => !['dev', 'etc', 'function', 'proc', 'run', 'sys', 'thaw', 'tmp'].includes(name))
    expect(names.sort()).toEqual(['dir', 'keep', 'lib', 'same', 'usr', 'was-link'])
    expect(await readdir(join(root, 'dir'))).toEqual(['fresh'])
    expect(await readFile(join(root, 'keep'), 'utf8')).toBe('new')
    const keep = await stat(join(root, 'keep'))
    expect(keep).toMatchObject({ uid: idShift + 10, gid: idShift + 20 })
    expect((await stat(join(root, 'same'))).ino).toBe(keep.ino)
    expect(await readlink(join(root, 'lib'))).toBe('usr/lib')
    expect((await readdir(join(root, 'usr/lib'))).sort()).toEqual(['a', 'b'])
    expect(await readFile(join(root, 'was-link'), 'utf8')).toBe('now a file')
  })

  test('a tag that moved gives the new image, and the old one stays under its digest', async () => {
    const ref = `${registry.address}/moving:latest`
    const images = await Images.open({ imagesDir })
    const first = await registry.push('moving:latest', await simple('first'))
    expect((await images.ensure(ref)).digest).toBe(first)
    const second = await registry.push('moving:latest', await simple('second'))
    expect((await images.ensure(ref)).digest).toBe(second)
    expect((await images.ensure(`${registry.address}/moving`)).digest).toBe(second)
    expect((await images.ensure(`${ref}@${first}`)).digest).toBe(first)
    expect((await images.find(first))?.digest).toBe(first)
  })

  test('an index gives the image of this platform', async () => {
    const own = process.arch === 'x64' ? 'amd64' : process.arch
    const image = await simple('mine')
    const digest = await registry.push('multi:mine', image)
    const other = await registry.push('multi:other', { ...(await simple('other')), architecture: 's390x' })
    const size = async (tag: string) => (await fetchManifest('multi', tag)).length
    const index = await registry.pushIndex('multi:all', [
      { digest: other, sizeBytes: await size('other'), architecture: 's390x' },
      { digest, sizeBytes: await size('mine'), architecture: own },
    ])
    const images = await Images.open({ imagesDir })
    expect((await images.ensure(`${registry.address}/multi:all`)).digest).toBe(digest)
    expect((await images.ensure(`${registry.address}/multi@${index}`)).digest).toBe(digest)

    await registry.pushIndex('multi:foreign', [{ digest: other, sizeBytes: await size('other'), architecture: 's390x' }])
    await expect(images.ensure(`${registry.address}/multi:foreign`)).rejects.toMatchObject({ code: 'image_unresolvable' })
  })

  async function fetchManifest(name: string, tag: string): Promise<string> {
    const accept = 'application/vnd.oci.image.manifest.v1+json'
    return (await fetch(`http://${registry.address}/v2/${name}/manifests/${tag}`, { headers: { accept } })).text()
  }

  test('many callers, in several processes, make one download', async () => {
    await registry.push('shared:1', await simple('shared'))
    const ref = `${registry.address}/shared:1`
    const script = `
      const { Images } = await import(${JSON.stringify(new URL('../../packages/server/src/images/images.ts', import.meta.url).href)})
      const images = await Images.open({ imagesDir: ${JSON.stringify(imagesDir)} })
      let downloads = 0
      const onProgress = (line) => { if (line.includes('downloading')) downloads++ }
      const results = await Promise.all(Array.from({ length: 5 }, (_, i) => images.ensure(${JSON.stringify(ref)}, i === 0 ? { onProgress } : {})))
      console.log(JSON.stringify({ downloads, digests: [...new Set(results.map((image) => image.digest))] }))`
    const results = (await Promise.all([runNode(script), runNode(script), runNode(script)])).map(
      (text) => JSON.parse(text) as { downloads: number; digests: string[] },
    )
    expect(results.reduce((total, { downloads }) => total + downloads, 0)).toBe(1)
    expect(new Set(results.flatMap(({ digests }) => digests)).size).toBe(1)
    expect(await readdir(join(imagesDir, 'tmp'))).toEqual([])
  })

  test('a caller that gives up leaves the others their image', async () => {
    await registry.push('patient:1', await simple('patient'))
    const images = await Images.open({ imagesDir })
    const giveUp = new AbortController()
    const ref = `${registry.address}/patient:1`
    const impatient = images.ensure(ref, { signal: giveUp.signal, onProgress: () => giveUp.abort(new Error('no time')) })
    const patient = images.ensure(ref)
    await expect(impatient).rejects.toThrow('no time')
    expect((await patient).kind).toBe('oci')
  })

  test('when all give up, the work ends and leaves nothing', async () => {
    await registry.push('alone:1', await simple('alone'))
    const images = await Images.open({ imagesDir })
    const giveUp = new AbortController()
    const ref = `${registry.address}/alone:1`
    await expect(images.ensure(ref, { signal: giveUp.signal, onProgress: () => giveUp.abort(new Error('no time')) })).rejects.toThrow(
      'no time',
    )
    // A new caller waits for what is still being cleaned up, and then gets its image.
    expect((await images.ensure(ref)).kind).toBe('oci')
    expect(await readdir(join(imagesDir, 'tmp'))).toEqual([])
  })

  test('images are listed, and removed by reference or digest', async () => {
    const images = await Images.open({ imagesDir })
    const ref = `${registry.address}/listed:1`
    const digest = await registry.push('listed:1', await simple('listed'))
    await images.ensure(ref)
    expect(await images.list()).toContainEqual(expect.objectContaining({ ref, digest, kind: 'oci', state: 'ready' }))
    expect(await images.list()).toContainEqual(expect.objectContaining({ ref: 'python', digest: null, state: 'available' }))
    expect(await images.remove(ref)).toMatchObject({ removed: [digest] })
    expect(await images.find(digest)).toBeNull()
    await expect(images.remove(digest)).rejects.toMatchObject({ code: 'image_not_found' })
    expect((await images.ensure(ref)).digest).toBe(digest)
  })

  test('prune removes what nobody uses, and never what this or another living server uses', async () => {
    const images = await Images.open({ imagesDir })
    const digests: string[] = []
    for (const name of ['unused', 'in-use', 'recent', 'elsewhere']) {
      digests.push(await registry.push(`${name}:1`, await simple(name)))
      if (name !== 'elsewhere') await images.ensure(`${registry.address}/${name}:1`)
    }
    const [unused = '', inUse = '', recent = '', elsewhere = ''] = digests
    const script = `
      const { Images } = await import(${JSON.stringify(new URL('../../packages/server/src/images/images.ts', import.meta.url).href)})
      const images = await Images.open({ imagesDir: ${JSON.stringify(imagesDir)} })
      await images.ensure(${JSON.stringify(`${registry.address}/elsewhere:1`)})
      process.stdin.resume().once('end', () => process.exit(0))
      console.log('ready')`
    const other = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: ['pipe', 'pipe', 'inherit'] })
    await once(other.stdout, 'data')
    for (const digest of [unused, inUse, elsewhere]) await utimes(join(imagesDir, digest.replace(':', '-'), 'last_used'), 0, 0)

    const pruned = await images.prune({ inUse: new Set([inUse]), olderThanMs: 60_000 })
    expect(pruned.removed).toEqual([unused])
    expect(pruned.freed_bytes).toBeGreaterThan(0)
    await expect(images.remove(elsewhere)).rejects.toMatchObject({ code: 'image_in_use' })
    expect(await images.find(recent)).not.toBeNull()

    other.stdin.end()
    await once(other, 'close')
    expect((await images.prune({ inUse: new Set([inUse, recent]), olderThanMs: 60_000 })).removed).toEqual([elsewhere])
  })

  test('what a killed server left half made is swept at the next start, and what a living one makes is not', async () => {
    await Images.open({ imagesDir })
    const dead = spawn('true')
    await once(dead, 'close')
    const leftover = join(imagesDir, 'tmp', `${dead.pid}.12345-aaaa`)
    await mkdir(join(leftover, 'rootfs/etc'), { recursive: true })
    await writeFile(join(leftover, 'rootfs/etc/passwd'), 'half')
    const init = (await readFile('/proc/1/stat', 'latin1')).split(') ').at(-1)?.split(' ')[19]
    const living = join(imagesDir, 'tmp', `1.${init}-bbbb`)
    await mkdir(living)
    await Images.open({ imagesDir })
    expect(await readdir(join(imagesDir, 'tmp'))).toEqual([`1.${init}-bbbb`])
  })

  test('a lock of a killed process is free at once', async () => {
    await Images.open({ imagesDir })
    const { withLock } = await import('../../packages/server/src/images/lock.ts')
    const path = join(imagesDir, 'locks', 'test')
    const script = `
      const { withLock } = await import(${JSON.stringify(new URL('../../packages/server/src/images/lock.ts', import.meta.url).href)})
      await withLock(${JSON.stringify(path)}, () => new Promise(() => { console.log('locked'); setInterval(() => {}, 1000) }))`
    const holder = spawn(process.execPath, ['--input-type=module', '--eval', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(holder.stdout, 'data')
    const waiting = Promise.withResolvers<void>()
    const taken = withLock(path, async () => 'mine', { onWait: waiting.resolve })
    await waiting.promise
    holder.kill('SIGKILL')
    expect(await taken).toBe('mine')
  })
})

test('errors are ThawErrors with a fix', async () => {
  const images = await Images.open({ imagesDir })
  for (const ref of ['', 'app/UPPER', '../x', '-o', 'a b', 'docker://x', 'x@sha256:12', `a${'/b'.repeat(300)}`]) {
    const error: unknown = await images.ensure(ref).catch((thrown: unknown) => thrown)
    expect(error, ref).toBeInstanceOf(ThawError)
    expect(error, ref).toMatchObject({ code: 'image_unresolvable' })
  }
})
