import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { expect, test } from 'vitest'
import { type Json, type Message, startAgent } from '../support/agent.ts'
import { eventually } from '../support/eventually.ts'

const isRoot = process.getuid?.() === 0
const user = (name: string) => ({ authorization: `Basic ${Buffer.from(`${name}:`).toString('base64')}` })
const query = (path: string, more = '') => `?path=${encodeURIComponent(path)}${more}`

test('a file is written whole, with its parents, and keeps the mode that it had', async () => {
  await using agent = await startAgent()
  const path = `${agent.folder}/a/b/c.bin`
  const data = Buffer.alloc(5 << 20, 'data')
  expect((await agent.call(`/files${query(path)}`, { method: 'POST', body: data })).json).toEqual([{ path, name: 'c.bin', type: 'file' }])
  expect(readFileSync(path).equals(data)).toBe(true)
  chmodSync(path, 0o750)
  await agent.call(`/files${query(path)}`, { method: 'PUT', body: 'short' })
  expect(statSync(path).mode & 0o777).toBe(0o750)
  expect(readdirSync(`${agent.folder}/a/b`)).toEqual(['c.bin'])
  symlinkSync('c.bin', `${agent.folder}/a/b/link`)
  await agent.call(`/files${query(`${agent.folder}/a/b/link`)}`, { method: 'PUT', body: 'through the link' })
  expect(lstatSync(`${agent.folder}/a/b/link`).isSymbolicLink()).toBe(true)
  expect(readFileSync(path, 'utf8')).toBe('through the link')

  expect((await agent.call(`/files${query(path)}`, { headers: { range: 'bytes=8-10' } })).body.toString()).toBe('the')
  expect((await agent.call(`/files${query(path)}`, { method: 'HEAD' })).headers['content-length']).toBe('16')
  expect((await agent.call(`/files${query(path)}`, { headers: { 'accept-encoding': 'gzip' } })).headers['content-encoding']).toBe('gzip')
  expect((await agent.call(`/files${query(path)}`, { headers: { 'accept-encoding': 'identity;q=0' } })).status).toBe(406)
  expect((await agent.call(`/files${query(path)}`, { method: 'DELETE' })).status).toBe(204)
  expect((await agent.call(`/files${query(path)}`, { method: 'DELETE' })).status).toBe(404)
  expect((await agent.call(`/files${query(path)}`)).json).toEqual({ code: 404, message: `path '${path}' does not exist` })
})

test('an upload that is cut off leaves the old content and nothing else', async () => {
  await using agent = await startAgent()
  const path = `${agent.folder}/kept`
  writeFileSync(path, 'old')
  const { request } = await import('node:http')
  const upload = request({
    socketPath: agent.socketPath,
    path: `/files${query(path)}`,
    method: 'PUT',
    headers: { 'content-length': '1000' },
  })
  upload.on('error', () => {})
  upload.write('new')
  expect(await eventually(() => readdirSync(agent.folder).some((name) => name.startsWith('.thaw-')))).toBe(true)
  upload.destroy()
  expect(await eventually(() => readdirSync(agent.folder).join() === 'agent.sock,kept')).toBe(true)
  expect(readFileSync(path, 'utf8')).toBe('old')
})

test('a form uploads several files, and compose joins them', async () => {
  await using agent = await startAgent()
  const form = new FormData()
  form.append('file', new Blob(['one ']), `${agent.folder}/x/1`)
  form.append('file', new Blob(['two']), `${agent.folder}/y/2`)
  const encoded = new Response(form)
  const body = Buffer.from(await encoded.arrayBuffer())
  const headers = { 'content-type': encoded.headers.get('content-type') ?? '', 'x-metadata-Color': 'red' }
  const written = await agent.call('/files', { method: 'POST', headers, body })
  expect(written.json.map((item: Json) => [item.path, item.metadata])).toEqual([
    [`${agent.folder}/x/1`, { color: 'red' }],
    [`${agent.folder}/y/2`, { color: 'red' }],
  ])
  const compose = { source_paths: [`${agent.folder}/x/1`, `${agent.folder}/y/2`], destination: `${agent.folder}/both` }
  const joined = await agent.call('/files/compose', { method: 'POST', body: JSON.stringify(compose) })
  expect(joined.json.path).toBe(`${agent.folder}/both`)
  expect(readFileSync(`${agent.folder}/both`, 'utf8')).toBe('one two')
  expect(readdirSync(`${agent.folder}/x`)).toEqual([])
})

test('pipes, devices and sockets are refused at once, for reading and for writing', async () => {
  await using agent = await startAgent()
  execFileSync('mkfifo', [`${agent.folder}/fifo`])
  for (const path of [`${agent.folder}/fifo`, '/dev/zero', '/dev/null', agent.socketPath]) {
    for (const method of ['GET', 'PUT']) {
      const answer = await agent.call(`/files${query(path)}`, { method, ...(method === 'PUT' ? { body: 'x' } : {}) })
      expect([path, method, answer.status, answer.json.message]).toEqual([
        path,
        method,
        400,
        expect.stringContaining('is not a regular file'),
      ])
    }
  }
  expect((await agent.call(`/files${query(agent.folder)}`)).json.message).toBe(`path '${agent.folder}' is a directory`)
})

test('a hundred thousand entries and the strangest names are listed as valid JSON', async () => {
  await using agent = await startAgent()
  const many = `${agent.folder}/many`
  mkdirSync(many)
  execFileSync('sh', ['-c', 'seq 100000 | xargs touch'], { cwd: many })
  const listed = await agent.rpc('filesystem.Filesystem/ListDir', { path: many, depth: 1 })
  expect(listed.json.entries).toHaveLength(100_000)
  const odd = `${agent.folder}/odd`
  mkdirSync(odd)
  writeFileSync(Buffer.concat([Buffer.from(`${odd}/`), Buffer.from([0xff, 0x0a, 0x22, 0x5c])]), '')
  symlinkSync('nowhere', `${odd}/broken`)
  const { json } = await agent.rpc('filesystem.Filesystem/ListDir', { path: odd })
  expect(json.entries.map((item: Json) => [item.name, item.type])).toEqual([
    ['broken', 'FILE_TYPE_SYMLINK'],
    ['\uFFFD\n"\\', 'FILE_TYPE_FILE'],
  ])
})

test('directories are made, moved and removed with the errors that clients expect', async () => {
  await using agent = await startAgent()
  const fs = (name: string, message: unknown) => agent.rpc(`filesystem.Filesystem/${name}`, message)
  const path = `${agent.folder}/d/e`
  expect((await fs('MakeDir', { path })).json.entry).toMatchObject({ name: 'e', type: 'FILE_TYPE_DIRECTORY', permissions: 'drwxr-xr-x' })
  expect((await fs('MakeDir', { path })).json.code).toBe('already_exists')
  expect((await fs('Move', { source: path, destination: `${agent.folder}/f/g` })).json.entry.path).toBe(`${agent.folder}/f/g`)
  expect((await fs('Stat', { path })).json).toEqual({ code: 'not_found', message: `path '${path}' does not exist` })
  expect((await fs('ListDir', { path })).json.code).toBe('not_found')
  expect((await fs('ListDir', { path: agent.socketPath })).json.code).toBe('invalid_argument')
  expect((await fs('Remove', { path: `${agent.folder}/f` })).status).toBe(200)
  expect(existsSync(`${agent.folder}/f`)).toBe(false)
})

test('each call has the permissions of its user and no others', async () => {
  await using agent = await startAgent()
  const secret = `${agent.folder}/secret`
  writeFileSync(secret, 'root only', { mode: 0o600 })
  if (!isRoot) {
    expect((await agent.call(`/files${query(secret, '&username=root')}`)).status).toBe(403)
    return
  }
  const shared = `${agent.folder}/shared`
  mkdirSync(shared)
  chmodSync(shared, 0o777)
  const asNobody = '&username=nobody'
  expect((await agent.call(`/files${query(secret, asNobody)}`)).status).toBe(403)
  expect((await agent.call(`/files${query(secret, asNobody)}`, { method: 'PUT', body: 'x' })).status).toBe(403)
  expect((await agent.rpc('filesystem.Filesystem/Remove', { path: secret }, user('nobody'))).json.code).toBe('permission_denied')
  expect((await agent.call(`/files${query(`${shared}/mine`, asNobody)}`, { method: 'PUT', body: 'x' })).status).toBe(200)
  expect(statSync(`${shared}/mine`).uid).toBe(65534)
  // Many at once, with and without the change of identity, on shared threads.
  const answers = await Promise.all(Array.from({ length: 200 }, (_, i) => agent.call(`/files${query(secret, i % 2 ? asNobody : '')}`)))
  expect(answers.every(({ status }, i) => status === (i % 2 ? 403 : 200))).toBe(true)
  expect((await agent.call(`/files${query(secret, '&username=not-here')}`)).status).toBe(401)
})

test('a directory goes out as tar and comes back the same', async () => {
  await using agent = await startAgent()
  const from = `${agent.folder}/from`
  mkdirSync(`${from}/sub/empty`, { recursive: true })
  writeFileSync(`${from}/sub/run`, '#!/bin/sh\n', { mode: 0o755 })
  symlinkSync('sub/run', `${from}/link`)
  execFileSync('mkfifo', [`${from}/fifo`])
  const packed = await agent.call(`/files/tar${query(from)}`)
  expect(packed.headers['content-type']).toBe('application/x-tar')
  for (const target of [`${agent.folder}/new/place`, `${agent.folder}/there`]) {
    if (target.endsWith('there')) mkdirSync(`${target}/sub`, { recursive: true })
    expect((await agent.call(`/files/tar${query(target)}`, { method: 'PUT', body: packed.body })).status).toBe(204)
    expect(readdirSync(target)).toEqual(['link', 'sub'])
    expect(readlinkSync(`${target}/link`)).toBe('sub/run')
    expect(statSync(`${target}/sub/run`).mode & 0o777).toBe(0o755)
    expect(existsSync(`${target}/sub/empty`)).toBe(true)
  }
})

test('archives that lead out of their directory are refused and change nothing', async () => {
  await using agent = await startAgent()
  const target = `${agent.folder}/target`
  mkdirSync(target)
  const python = (script: string) =>
    execFileSync('python3', [
      '-c',
      `import tarfile,io,sys\nt=tarfile.open(fileobj=sys.stdout.buffer,mode='w|')\ndef add(n,k,l='',d=b''):\n i=tarfile.TarInfo(n);i.type=k;i.linkname=l;i.size=len(d);t.addfile(i,io.BytesIO(d))\nF,S,H,D,C,P=b'0',b'2',b'1',b'5',b'3',b'6'\nadd('ok',F,'',b'ok')\n${script}\nt.close()`,
    ])
  const bad: Record<string, string> = {
    'parent directory': "add('../out',F,'',b'x')",
    'absolute name': "add('/tmp/thaw-out',F,'',b'x')",
    'link upwards': "add('l',S,'../..')",
    'absolute link': "add('l',S,'/etc/passwd')",
    'file behind a link': "add('sub',D);add('l',S,'sub');add('l/x',F,'',b'x')",
    'link that climbs through another': "add('d/s',S,'.');add('d/l',S,'s/../../x')",
    'hard link outside': "add('l',H,'../secret')",
    'hard link to a link': "add('a/b/l',S,'../x');add('l',H,'a/b/l')",
    device: "add('null',C)",
    pipe: "add('pipe',P)",
  }
  for (const [what, script] of Object.entries(bad)) {
    const answer = await agent.call(`/files/tar${query(target)}`, { method: 'PUT', body: python(script) })
    expect([what, answer.status]).toEqual([what, 400])
    expect(readdirSync(target)).toEqual([])
  }
  const cut = python('').subarray(0, 700)
  expect((await agent.call(`/files/tar${query(target)}`, { method: 'PUT', body: cut })).status).toBe(400)
  expect((await agent.call(`/files/tar${query(target)}`, { method: 'PUT', body: python("add('d/l',S,'../ok')") })).status).toBe(204)
  expect(readdirSync(target)).toEqual(['d', 'ok'])
})

test('a watch tells what happens below a directory, new ones included, and ends when it is removed', async () => {
  await using agent = await startAgent()
  const root = `${agent.folder}/watched`
  mkdirSync(root)
  const { messages } = await agent.stream('filesystem.Filesystem/WatchDir', { path: root, recursive: true, includeEntry: true })
  const next = async (): Promise<Json> => ((await messages.next()).value as Message).message
  expect(await next()).toEqual({ start: {} })
  const see = async (name: string, type: string) => {
    for (;;) {
      const message = await next()
      if (message.error) throw new Error(`${name} ${type}: ${message.error.message}`)
      const event = message.filesystem
      expect(event.name).not.toContain('.thaw-')
      if (event.name === name && event.type === `EVENT_TYPE_${type}`) return event
    }
  }
  mkdirSync(`${root}/a/b`, { recursive: true })
  await see('a/b', 'CREATE')
  const upload = () => agent.call(`/files${query(`${root}/a/b/f`)}`, { method: 'PUT', body: '12345' })
  await upload()
  await see('a/b/f', 'CREATE')
  expect((await see('a/b/f', 'WRITE')).entry.size).toBe('5')
  await upload()
  expect((await next()).filesystem).toMatchObject({ name: 'a/b/f', type: 'EVENT_TYPE_WRITE' })
  renameSync(`${root}/a`, `${root}/z`)
  await see('a', 'RENAME')
  await see('z', 'CREATE')
  writeFileSync(`${root}/z/b/g`, '')
  await see('z/b/g', 'CREATE')
  await agent.rpc('filesystem.Filesystem/Remove', { path: root })
  let last: Json
  for await (const { message } of messages) last = message
  expect(last.error).toEqual({ code: 'not_found', message: expect.stringContaining('was removed') })
})

test('a polled watcher keeps its events until they are fetched', async () => {
  await using agent = await startAgent()
  const fs = (name: string, message: unknown) => agent.rpc(`filesystem.Filesystem/${name}`, message)
  const { watcherId } = (await fs('CreateWatcher', { path: agent.folder })).json
  writeFileSync(`${agent.folder}/seen`, '')
  const names: string[] = []
  const arrived = async () => {
    for (const event of (await fs('GetWatcherEvents', { watcherId })).json.events) names.push(event.name)
    return names.includes('seen')
  }
  expect(await eventually(arrived)).toBe(true)
  expect((await fs('RemoveWatcher', { watcherId })).status).toBe(200)
  expect((await fs('GetWatcherEvents', { watcherId })).json.code).toBe('not_found')
})
