import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { request as sendRequest } from 'node:http'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { sendRaw } from '../support/http.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { type ChildServer, startChildServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'
import { tempDir } from '../support/temp.ts'

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`bad input to files of sandboxes, over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let dir: ReturnType<typeof tempDir>
    let dataDir: string
    let server: ChildServer
    let api: Api
    let id: string
    let home: string

    beforeAll(async () => {
      dir = tempDir()
      dataDir = join(dir.path, 'data')
      server = await startChildServer(dataDir, { driver, scope: 'suite' })
      api = new Api(server.url)
      id = (await api.sandbox()).id
      home = (await api.stdout(id, 'cd; pwd')).trim()
    })
    afterAll(async () => {
      if (server?.process.exitCode === null) await api.send('DELETE', `/v1/sandboxes/${id}`)
      await server?.[Symbol.asyncDispose]()
      dir[Symbol.dispose]()
    })

    const files = (path: string, rest = '', more = '') => `/v1/sandboxes/${id}/files${rest}?path=${encodeURIComponent(path)}${more}`
    const code = async (method: string, path: string, body?: string | Uint8Array) => {
      const answer = await api.send(method, path, body)
      return answer.status < 400 ? String(answer.status) : `${answer.status} ${answer.body.error.code}`
    }
    const rss = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${server.process.pid}/status`, 'latin1'))?.[1]) / 1024

    test('paths lead nowhere that the user of the sandbox may not go', async () => {
      for (const path of ['a\0b', 'x'.repeat(5000), `/${'y/'.repeat(2500)}`, 'n'.repeat(300)])
        for (const method of ['GET', 'PUT', 'DELETE'])
          expect([path.slice(0, 5), await code(method, files(path), method === 'PUT' ? 'x' : undefined)]).toEqual([
            path.slice(0, 5),
            '400 file_invalid',
          ])
      expect(await code('GET', `/v1/sandboxes/${id}/files`)).toBe('400 invalid_request')
      for (const path of ['../../../../../../../../etc/shadow', '/etc/shadow', '/proc/1/root/etc/shadow', '/etc/../etc//shadow']) {
        const mine = readFileSync('/etc/shadow', 'latin1')
        const answer = await api.send('GET', files(path))
        // In a container it is the file of the image.
        if (driver === 'process') expect([path, answer.status]).toEqual([path, 403])
        else expect(answer.body).not.toBe(mine)
      }
      if (driver === 'process') {
        expect(await code('PUT', files('/etc/thaw-was-here'), 'x')).toBe('403 file_forbidden')
        expect(await code('DELETE', files('/etc/hostname'))).toBe('403 file_forbidden')
      }
      expect(await code('PUT', files('/proc/version'), 'x')).toMatch(/^40[03] file_(forbidden|invalid)$/)
      // What is mounted read-only stays as it is.
      expect(await code('PUT', files(driver === 'oci' ? '/thaw/runtime/x' : '/sys/x'), 'x')).toBe('403 file_forbidden')
    })

    test('a refusal that comes while the client still sends reaches it, every time', async () => {
      const piece = new Uint8Array(65_536)
      for (let round = 0; round < 20; round++) {
        let left = 100
        const body = new ReadableStream<Uint8Array>({ pull: (to) => (left-- > 0 ? to.enqueue(piece) : to.close()) })
        const answer = await fetch(server.url + files('/etc'), { method: 'PUT', body, duplex: 'half' } as RequestInit)
        expect(answer.status).toBe(400)
        expect(((await answer.json()) as { error: { code: string } }).error.code).toBe('file_invalid')
      }
    })

    test('pipes, sockets, devices and folders are refused at once, whatever is asked of them', async () => {
      await api.stdout(
        id,
        `cd; mkfifo pipe; mkdir folder; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'; ln -s pipe link; ln -s loop loop`,
      )
      for (const path of ['pipe', 'socket', 'folder', 'link', 'loop', '/dev/null', '/dev/tty'])
        for (const method of ['GET', 'PUT'])
          expect([path, method, await code(method, files(path), method === 'PUT' ? 'x' : undefined)]).toEqual([
            path,
            method,
            '400 file_invalid',
          ])
      expect(await code('GET', files('pipe', '/tar'))).toBe('400 file_invalid')
      expect(await code('PUT', files('pipe', '/tar'), 'x')).toBe('400 file_invalid')
      expect(await code('GET', files('pipe', '/list'))).toBe('400 file_invalid')
      // As tar they are left out.
      expect((await api.send('GET', files('.', '/tar'))).status).toBe(200)
    })

    test('names with newlines, and such that are no UTF-8, are listed, and move as tar unchanged', async () => {
      await api.stdout(
        id,
        [
          'python3',
          '-c',
          `import os; os.makedirs(b"odd"); [open(b"odd/" + name, "w").close() for name in (b"a\\nb", b"\\xff\\xfe", b"\\xe2\\x80\\xa8", b" ", b"-rf")]`,
        ],
        { cwd: home },
      )
      const { status, body } = await api.send('GET', files('odd', '/list'))
      expect([status, body.items.length]).toEqual([200, 5])
      const tar = await fetch(server.url + files('odd', '/tar'))
      expect(await code('PUT', files('odd2', '/tar'), new Uint8Array(await tar.arrayBuffer()))).toBe('204')
      expect(
        await api.stdout(
          id,
          'cd; diff <(ls -b odd) <(ls -b odd2) || exit 1'.replace(/diff <\((.*?)\) <\((.*?)\)/, 'test "$($1)" = "$($2)"'),
        ),
      ).toBe('')
    })

    test('a folder in which folders and files change places with links all the time: as tar it has nothing from elsewhere', async () => {
      const pairs = 64
      const swap = `
import ctypes, itertools, os
libc = ctypes.CDLL(None)
os.makedirs('race/elsewhere')
os.makedirs('race/asked')
open('race/elsewhere/foreign', 'w').write('foreign')
for i in range(${pairs}):
  os.mkdir(f'race/asked/folder-{i}')
  open(f'race/asked/folder-{i}/mine', 'w').write('mine')
  open(f'race/asked/file-{i}', 'w').write('mine')
  os.symlink('../elsewhere', f'race/asked/folder-link-{i}')
  os.symlink('../elsewhere/foreign', f'race/asked/file-link-{i}')
print('ready', flush=True)
for i in itertools.cycle(range(${pairs})):
  for kind in ('folder', 'file'):
    libc.renameat2(-100, f'race/asked/{kind}-{i}'.encode(), -100, f'race/asked/{kind}-link-{i}'.encode(), 2)
`
      using client = await StreamClient.open(server.url, id)
      client.send({ type: 'exec', id: 'swap', command: ['python3', '-c', swap], cwd: home, kill_on_close: true })
      await client.writes('swap', 'ready')
      let kept = 0
      for (let round = 0; round < 20; round++) {
        const tar = Buffer.from(await (await fetch(server.url + files(`${home}/race/asked`, '/tar'))).arrayBuffer())
        const names = spawnSync('tar', ['-tf', '-'], { input: tar, encoding: 'utf8' })
        expect(names.status, names.stderr).toBe(0)
        expect(names.stdout.split('\n').filter((name) => name.includes('foreign'))).toEqual([])
        const contents = spawnSync('tar', ['-xOf', '-'], { input: tar, encoding: 'utf8' }).stdout
        expect(contents).toMatch(/^(mine)*$/)
        kept += contents.length / 'mine'.length
      }
      // What stood still while it was looked at is there.
      expect(kept).toBeGreaterThan(0)
      client.send({ type: 'signal', id: 'swap', signal: 'SIGKILL' })
      await client.event('exit', { id: 'swap' })
      expect(await code('DELETE', files(`${home}/race`))).toBe('204')
    })

    test('a folder of 100,000 files is listed and moves as tar, in bounded memory', { timeout: 180_000 }, async () => {
      await api.stdout(
        id,
        ['python3', '-c', 'import os; os.mkdir("many"); [open(f"many/file-{i:06}", "w").close() for i in range(100_000)]'],
        { cwd: home },
      )
      const before = rss()
      const { status, body } = await api.send('GET', files('many', '/list'))
      expect([status, body.items?.length]).toEqual([200, 100_000])
      const tar = await fetch(server.url + files('many', '/tar'))
      let bytes = 0
      for await (const piece of tar.body as unknown as AsyncIterable<Uint8Array>) bytes += piece.length
      expect(bytes).toBeGreaterThan(100_000 * 512)
      expect(rss() - before).toBeLessThan(600)
      expect(await code('DELETE', files('many'))).toBe('204')
    })

    test('an upload that breaks off, or lies about its length, leaves nothing, and the old file as it was', async () => {
      expect(await code('PUT', files('up/old'), 'old')).toBe('200')
      const { host } = new URL(server.url)
      for (const name of ['old', 'new']) {
        for (const head of ['content-length: 1000', 'transfer-encoding: chunked']) {
          const outgoing = sendRequest(server.url + files(`up/${name}`), {
            method: 'PUT',
            agent: false,
            headers: Object.fromEntries([head.split(': ')]),
          })
          outgoing.on('error', () => undefined)
          outgoing.write('only a part')
          expect(await eventually(async () => (await api.stdout(id, 'ls -A ~/up')).includes('.thaw-'))).toBe(true)
          outgoing.destroy()
          expect(await eventually(async () => (await api.stdout(id, 'ls -A ~/up')) === 'old\n')).toBe(true)
        }
      }
      const short = await sendRaw(
        server.url,
        `PUT ${files('up/short')} HTTP/1.1\r\nhost: ${host}\r\ncontent-length: 3\r\n\r\nabcdef GARBAGE`,
      )
      // What stands behind the body is no request; it may be refused before the body is answered.
      expect([200, 400]).toContain(short.status)
      await api.send('DELETE', files('up/short'))
      for (const length of ['-1', '1e3', '5, 6', '99999999999999999999'])
        expect(
          (await sendRaw(server.url, `PUT ${files('up/lie')} HTTP/1.1\r\nhost: ${host}\r\ncontent-length: ${length}\r\n\r\nabc`)).status,
        ).toBeGreaterThanOrEqual(400)
      expect(await api.stdout(id, 'cd ~/up; cat old; ls -A')).toBe('oldold\n')
      const tar = await code('PUT', files('up/cut', '/tar'), 'this is no archive')
      expect(tar).toBe('400 file_invalid')
      expect(await api.stdout(id, 'ls -A ~/up')).toBe('old\n')
    })

    test('ranges that make no sense, files with holes, and files that change while they are read', async () => {
      await api.send('PUT', files('ten'), '0123456789')
      const range = async (text: string) => {
        const answer = await fetch(server.url + files('ten'), { headers: { range: text } })
        return `${answer.status} ${answer.status < 400 ? await answer.text() : ((await answer.json()) as { error: { code: string } }).error.code}`
      }
      expect(await range('bytes=20-30')).toBe('416 range_not_satisfiable')
      expect(await range('bytes=5-2')).toBe('416 range_not_satisfiable')
      expect(await range('bytes=-3')).toBe('206 789')
      expect(await range('bytes=8-999999999999999999')).toBe('206 89')
      for (const odd of ['bytes=a-b', 'bytes=99999999999999999999999-']) expect(await range(odd)).toMatch(/^(416|200)/)
      await api.stdout(id, 'cd; truncate -s 1T holes')
      expect((await api.send('GET', files('holes', '/stat'))).body.item.size_bytes).toBe(2 ** 40)
      const tail = await fetch(server.url + files('holes'), { headers: { range: 'bytes=-5' } })
      expect([tail.status, (await tail.arrayBuffer()).byteLength]).toEqual([206, 5])

      await api.stdout(id, 'cd; truncate -s 64M shrinks')
      const [answer] = await once(sendRequest(server.url + files('shrinks'), { agent: false }).end(), 'response')
      await once(answer, 'readable')
      await api.stdout(id, 'cd; truncate -s 0 shrinks; rm holes')
      let bytes = 0
      const whole = await (async () => {
        for await (const piece of answer) bytes += piece.length
      })().then(
        () => true,
        () => false,
      )
      expect(whole).toBe(bytes === 64 << 20)
    })

    test('a file that is written over keeps its mode and its owner', async () => {
      await api.stdout(id, `cd; echo x > kept; chmod 640 kept; ${driver === 'oci' ? 'chown 1234:1235 kept' : 'true'}`)
      const before = await api.stdout(id, 'stat -c "%a %u %g" ~/kept')
      expect(await code('PUT', files('kept'), 'new')).toBe('200')
      expect(await api.stdout(id, 'stat -c "%a %u %g" ~/kept; cat ~/kept')).toBe(`${before}new`)
    })

    test('a link that is swapped all the time never leads a write to where its user may not write', async () => {
      const user = driver === 'oci' ? '&user=nobody' : ''
      const place = `/tmp/race-${id}`
      await api.stdout(id, `mkdir -p ${place}/real && chmod 777 ${place} ${place}/real`)
      const put = (index: number) => code('PUT', files(`${place}/dir/thaw-race-${index}`, '', user), 'x')
      await api.stdout(id, `cd ${place}; ln -sfn real dir`)
      expect(await put(0)).toBe('200')
      await api.stdout(id, `cd ${place}; ln -sfn /etc dir`)
      expect(await put(0)).toBe('403 file_forbidden')
      const swap = 'ln -sfn real dir; ln -sfn /etc dir; i=$((i+1)); echo $i >swaps'
      await api.exec(id, `cd ${place}; i=0; (while [ -d ${place} ]; do ${swap}; done) >/dev/null 2>&1 &`)
      const swaps = async () => Number(await api.stdout(id, `cat ${place}/swaps 2>/dev/null || echo 0`))
      const answers: string[] = []
      // Until it has been swapped often enough while files were written.
      const often = await eventually(async () => {
        answers.push(...(await Promise.all(Array.from({ length: 20 }, (_, index) => put(answers.length + index)))))
        return answers.length >= 200 && (await swaps()) > 200
      }, 50_000)
      expect(often, `swapped ${await swaps()} times`).toBe(true)
      for (const answer of answers) expect(answer).toMatch(/^(200|40[034] file_(forbidden|not_found|invalid))$/)
      expect(await api.stdout(id, 'ls /etc | grep -c thaw-race || true')).toBe('0\n')
      await api.exec(id, `rm -rf ${place}; true`)
    })

    test('a folder that is watched and removed ends the watch with the reason', async () => {
      await api.stdout(id, 'mkdir ~/watched')
      using client = await StreamClient.open(server.url, id)
      client.send({ type: 'watch', id: 'w', path: `${home}/watched` })
      await client.event('started', { id: 'w' })
      await api.stdout(id, 'rmdir ~/watched')
      expect((await client.event('error', { id: 'w' })).error.code).toBe('file_not_found')
    })

    test('nothing is left of it', async () => {
      expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
      await server[Symbol.asyncDispose]()
      expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
    })
  })
}
