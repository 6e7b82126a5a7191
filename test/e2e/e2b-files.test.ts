import { FilesystemEventType, FileType, NotFoundError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type DisposableSandbox, e2bSandbox } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

for (const driver of ['oci', 'process'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`files, with the client e2b over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let sandbox: DisposableSandbox
    let home: string

    beforeAll(async () => {
      server = await startServer({ driver })
      sandbox = await e2bSandbox(server)
      home = (await sandbox.commands.run('pwd')).stdout.trim()
    })
    afterAll(() => server[Symbol.asyncDispose]())

    test('text, bytes, blobs and streams go in and come out', async () => {
      const text = 'Grüße, 世界\n'
      const bytes = new Uint8Array(70_000).map((_, i) => i * 31)
      const info = await sandbox.files.write('plain/text.txt', text)
      expect(info).toMatchObject({ name: 'text.txt', path: `${home}/plain/text.txt`, type: FileType.FILE })
      expect(await sandbox.files.read('plain/text.txt')).toBe(text)
      expect(await sandbox.files.read(`${home}/plain/text.txt`, { format: 'text' })).toBe(text)

      await sandbox.files.write('plain/bytes', bytes.buffer as ArrayBuffer)
      expect(await sandbox.files.read('plain/bytes', { format: 'bytes' })).toEqual(bytes)
      await sandbox.files.write('plain/blob', new Blob([bytes]))
      expect(new Uint8Array(await (await sandbox.files.read('plain/blob', { format: 'blob' })).arrayBuffer())).toEqual(bytes)
      await sandbox.files.write('plain/stream', new Blob([bytes]).stream())
      const pieces: Uint8Array[] = []
      for await (const piece of await sandbox.files.read('plain/stream', { format: 'stream' })) pieces.push(piece)
      expect(new Uint8Array(Buffer.concat(pieces))).toEqual(bytes)
      await sandbox.files.write('plain/packed', text.repeat(1000), { gzip: true })
      expect(await sandbox.files.read('plain/packed')).toBe(text.repeat(1000))
      expect(await sandbox.files.read('plain/packed', { gzip: true })).toBe(text.repeat(1000))
      await sandbox.files.write('plain/empty', '')
      expect(await sandbox.files.read('plain/empty')).toBe('')
    })

    test('several files in one call, with names of all kinds', async () => {
      const names = ['many/één.txt', 'many/日本 語.txt', 'many/deep/er/#?%.txt', 'many/🙂']
      const written = await sandbox.files.writeFiles(names.map((path) => ({ path, data: `of ${path}` })))
      expect(written.map((info) => info.path)).toEqual(names.map((path) => `${home}/${path}`))
      for (const path of names) expect(await sandbox.files.read(path)).toBe(`of ${path}`)
      expect(await sandbox.files.writeFiles([])).toEqual([])
      const quoted = 'many/it\'s "quoted".txt'
      await sandbox.files.write(quoted, 'of quotes')
      expect((await sandbox.commands.run('cat many/*quoted*')).stdout).toBe('of quotes')
      expect((await sandbox.files.list('many')).map((entry) => entry.path)).toContain(`${home}/${quoted}`)
    })

    test('30 MiB come back as they went in', async () => {
      const size = 30 * 1024 * 1024
      const large = Buffer.alloc(size)
      for (let i = 0; i < size; i += 4096) large.writeUInt32LE(i, i)
      await sandbox.files.write('large', new Blob([large]))
      expect((await sandbox.files.getInfo('large')).size).toBe(size)
      expect(large.equals(await sandbox.files.read('large', { format: 'bytes' }))).toBe(true)
      await sandbox.files.remove('large')
    })

    test('folders are made, listed by depth, renamed and removed', async () => {
      expect(await sandbox.files.makeDir('tree/a/b')).toBe(true)
      expect(await sandbox.files.makeDir('tree/a/b')).toBe(false)
      await sandbox.files.write('tree/a/b/leaf', '1234')
      const list = async (depth?: number) =>
        (await sandbox.files.list('tree', depth === undefined ? {} : { depth }))
          .map((entry) => entry.path.slice(home.length + 1))
          .toSorted()
      expect(await list()).toEqual(['tree/a'])
      expect(await list(2)).toEqual(['tree/a', 'tree/a/b'])
      expect(await list(9)).toEqual(['tree/a', 'tree/a/b', 'tree/a/b/leaf'])

      const moved = await sandbox.files.rename('tree/a/b/leaf', 'tree/leaf')
      expect(moved).toMatchObject({ name: 'leaf', path: `${home}/tree/leaf`, type: FileType.FILE, size: 4 })
      expect(await sandbox.files.exists('tree/leaf')).toBe(true)
      expect(await sandbox.files.exists('tree/a/b/leaf')).toBe(false)
      await sandbox.files.remove('tree')
      expect(await sandbox.files.exists('tree')).toBe(false)
    })

    test('what is said about a file is true', async () => {
      await sandbox.files.write('facts', 'abc')
      await sandbox.commands.run('chmod 640 facts; ln -s facts link')
      expect(await sandbox.files.getInfo('facts')).toMatchObject({
        name: 'facts',
        type: FileType.FILE,
        size: 3,
        mode: 0o640,
        permissions: expect.stringContaining('rw-r-----'),
        owner: driver === 'oci' ? 'user' : expect.any(String),
      })
      expect((await sandbox.files.getInfo('facts')).modifiedTime?.getTime()).toBeGreaterThan(Date.now() - 60_000)
      expect((await sandbox.files.getInfo('link')).symlinkTarget).toBe(`${home}/facts`)
      expect((await sandbox.files.getInfo('.')).type).toBe(FileType.DIR)
      // Writing again keeps the mode.
      await sandbox.files.write('facts', 'abcd')
      expect((await sandbox.files.getInfo('facts')).mode).toBe(0o640)
    })

    test('metadata is kept with a file', async () => {
      const info = await sandbox.files.write('labelled', 'x', { metadata: { source: 'test', n: '1' } })
      expect(info.metadata).toEqual({ source: 'test', n: '1' })
      expect((await sandbox.files.getInfo('labelled')).metadata).toEqual({ source: 'test', n: '1' })
    })

    test('what is not there, or not allowed, is an error of its kind', async () => {
      await expect(sandbox.files.read('nothing')).rejects.toThrow(NotFoundError)
      await expect(sandbox.files.list('nothing')).rejects.toThrow(NotFoundError)
      await expect(sandbox.files.getInfo('nothing')).rejects.toThrow(NotFoundError)
      await expect(sandbox.files.rename('nothing', 'other')).rejects.toThrow(NotFoundError)
      await sandbox.files.makeDir('folder')
      await expect(sandbox.files.read('folder')).rejects.toThrow()
      await expect(sandbox.files.list('facts')).rejects.toThrow()
      await expect(sandbox.files.write('folder', 'x')).rejects.toThrow()
      if (driver === 'process') return
      await expect(sandbox.files.write('/etc/mine', 'x')).rejects.toThrow()
      await sandbox.files.write('/etc/mine', 'x', { user: 'root' })
      expect((await sandbox.files.getInfo('/etc/mine', { user: 'root' })).owner).toBe('root')
      expect(await sandbox.files.read('/etc/mine')).toBe('x')
    })

    test('changes are watched, in folders below too', async () => {
      await sandbox.files.makeDir('watched')
      const flat: string[] = []
      const deep: string[] = []
      const first = await sandbox.files.watchDir('watched', (event) => void flat.push(`${event.type} ${event.name}`))
      const second = await sandbox.files.watchDir('watched', (event) => void deep.push(`${event.type} ${event.name}`), {
        recursive: true,
        includeEntry: true,
      })
      await sandbox.files.makeDir('watched/sub')
      await sandbox.files.write('watched/one', '1')
      expect(await eventually(() => flat.includes(`${FilesystemEventType.WRITE} one`))).toBe(true)
      expect(flat).toContain(`${FilesystemEventType.CREATE} sub`)
      await sandbox.files.write('watched/sub/two', '2')
      expect(await eventually(() => deep.includes(`${FilesystemEventType.WRITE} sub/two`))).toBe(true)
      expect(flat.some((line) => line.includes('two'))).toBe(false)
      await sandbox.files.rename('watched/one', 'watched/uno')
      expect(await eventually(() => flat.includes(`${FilesystemEventType.RENAME} one`))).toBe(true)
      await sandbox.files.remove('watched/uno')
      expect(await eventually(() => flat.includes(`${FilesystemEventType.REMOVE} uno`))).toBe(true)
      await first.stop()
      await second.stop()
      const count = flat.length
      await sandbox.files.write('watched/late', '3')
      expect(flat.length).toBe(count)
      await expect(sandbox.files.watchDir('nothing', () => undefined)).rejects.toThrow(NotFoundError)
    })

    test('signed addresses let files through, and nothing else', async () => {
      await sandbox.files.write('sig ned.txt', 'signed')
      // As a browser would: without any header of the client, but for those that name the sandbox.
      const headers = { 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '49983' }
      const url = await sandbox.downloadUrl('sig ned.txt', { useSignatureExpiration: 60_000 })
      expect(url).toContain('signature=v1_')
      const answer = await fetch(url, { headers })
      expect(await answer.text()).toBe('signed')
      expect((await fetch(url.replace('ned.txt', 'ned2.txt'), { headers })).status).toBe(401)
      expect((await fetch(url.replace(/signature=v1_.{5}/, 'signature=v1_aaaaa'), { headers })).status).toBe(401)
      expect((await fetch(`${server.url}/files?path=x`, { headers })).status).toBe(401)
      const expired = await sandbox.downloadUrl('sig ned.txt', { useSignatureExpiration: -60_000 })
      expect((await fetch(expired, { headers })).status).toBe(401)

      const form = new FormData()
      form.append('file', new Blob(['up']), 'ignored.txt')
      const upload = await fetch(await sandbox.uploadUrl('uploaded.txt'), { method: 'POST', body: form, headers })
      expect(upload.status).toBe(200)
      expect(await sandbox.files.read('uploaded.txt')).toBe('up')
    })
  })
}
