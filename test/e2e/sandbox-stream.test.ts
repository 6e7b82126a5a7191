import { randomBytes } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'

const mib = 1024 * 1024

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`the stream of a sandbox over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let api: Api
    let id: string
    let folder: string

    beforeAll(async () => {
      server = await startServer({ driver, pools: { size: 0 }, limits: { websocket_stall_ms: 500 } })
      api = new Api(server.url)
      id = (await api.sandbox({ driver, network: 'none', name: 'main' })).id
      // With the driver process, /tmp is that of the host.
      folder = (await api.stdout(id, 'mktemp -d')).trim()
    })
    afterAll(async () => {
      await api.exec(id, `rm -rf ${folder}`)
      await server[Symbol.asyncDispose]()
    })

    const open = (query = '', of = id) => StreamClient.open(server.url, of, query)

    test('a command: its start, both outputs and its exit', async () => {
      using client = await open()
      client.send({ type: 'exec', id: 'a', command: 'echo "$X in $PWD"; echo bad >&2; exit 3', env: { X: 'yes' }, cwd: '/tmp' })
      const { pid } = await client.event('started', { id: 'a' })
      expect(pid).toBeGreaterThan(0)
      expect(await client.event('exit', { id: 'a' })).toEqual({ type: 'exit', id: 'a', exit_code: 3, signal: null })
      expect([client.text('a'), client.text('a', 'stderr')]).toEqual(['yes in /tmp\n', 'bad\n'])
    })

    test('a program that is not there, a folder that is not there, a user that is not there: an error that ends the id', async () => {
      using client = await open()
      client.send({ type: 'exec', id: 'a', command: ['/no/such/program'] })
      expect(await client.event('error', { id: 'a' })).toMatchObject({
        ended: true,
        error: { code: 'command_not_found', fix: expect.any(String) },
      })
      client.send({ type: 'exec', id: 'b', command: 'true', cwd: '/no/such/folder' })
      expect(await client.event('error', { id: 'b' })).toMatchObject({ ended: true })
      client.send({ type: 'exec', id: 'c', command: 'true', user: 'nobody-at-all' })
      expect(await client.event('error', { id: 'c' })).toMatchObject({ ended: true })
      client.send({ type: 'exec', id: 'a', command: 'echo again' })
      await client.event('exit', { id: 'a', exit_code: 0 })
    })

    test('stdin arrives whole and in order, and ends', async () => {
      using client = await open('?encoding=base64')
      const bytes = randomBytes(4 * mib)
      client.send({ type: 'exec', id: 'a', command: 'cat', stdin: true })
      for (let at = 0; at < bytes.length; at += 100_000) {
        client.send({ type: 'stdin', id: 'a', data: bytes.subarray(at, at + 100_000).toString('base64') })
      }
      client.send({ type: 'stdin', id: 'a', eof: true })
      await client.event('exit', { id: 'a', exit_code: 0 })
      expect(client.bytes('a').equals(bytes)).toBe(true)
    })

    test('without stdin there is none: a command that reads ends at once', async () => {
      using client = await open()
      client.send({ type: 'exec', id: 'a', command: 'cat; echo done' })
      await client.event('exit', { id: 'a', exit_code: 0 })
      client.send({ type: 'exec', id: 'b', command: 'sleep 1000' })
      await client.event('started', { id: 'b' })
      client.send({ type: 'stdin', id: 'b', data: 'x' })
      expect(await client.event('error', { id: 'b' })).toMatchObject({ ended: false, error: { code: 'invalid_request' } })
      client.send({ type: 'signal', id: 'b', signal: 'SIGKILL' })
      await client.event('exit', { id: 'b' })
    })

    test('signals are as they are for any program: a pipe whose reader has gone ends its writer', async () => {
      using client = await open()
      client.send({ type: 'exec', id: 'a', command: ['bash', '-c', 'set -o pipefail; yes | head -1; echo $?'] })
      await client.event('exit', { id: 'a' })
      expect([client.text('a'), client.text('a', 'stderr')]).toEqual(['y\n141\n', ''])
    })

    test('input for a process that does not read waits, without a limit for the rest', async () => {
      using client = await open('?encoding=base64')
      await api.exec(id, `mkfifo ${folder}/go`)
      client.send({ type: 'exec', id: 'a', command: `read x < ${folder}/go; wc -c`, stdin: true })
      client.send({ type: 'exec', id: 'b', command: 'echo "still here"' })
      await client.event('exit', { id: 'b' })
      for (let i = 0; i < 40; i++) client.send({ type: 'stdin', id: 'a', data: Buffer.alloc(100_000).toString('base64') })
      client.send({ type: 'stdin', id: 'a', eof: true })
      await api.exec(id, `echo > ${folder}/go`)
      await client.event('exit', { id: 'a', exit_code: 0 })
      expect(client.bytes('a').toString().trim()).toBe('4000000')
    })

    test('a terminal: echo, size, resize, Ctrl-C and its end', async () => {
      using client = await open()
      client.send({ type: 'exec', id: 't', command: ['/bin/sh'], pty: { cols: 91, rows: 17 } })
      await client.event('started', { id: 't' })
      client.send({ type: 'stdin', id: 't', data: 'stty size; tty\r' })
      await client.writes('t', '17 91')
      await client.writes('t', '/dev/pts/')
      client.send({ type: 'resize', id: 't', cols: 40, rows: 10 })
      client.send({ type: 'resize', id: 't', cols: 120, rows: 33 })
      await eventually(async () => {
        client.send({ type: 'stdin', id: 't', data: 'stty size\r' })
        return client.text('t').includes('33 120')
      })
      client.send({ type: 'stdin', id: 't', data: 'sleep 1000; echo "left $?"\r' })
      await client.writes('t', 'sleep 1000')
      client.send({ type: 'stdin', id: 't', data: '\u0003' })
      client.send({ type: 'stdin', id: 't', data: 'echo still $((40+2))\r' })
      await client.writes('t', 'still 42')
      client.send({ type: 'stdin', id: 't', eof: true })
      expect(await client.event('exit', { id: 't' })).toMatchObject({ signal: null })
    })

    test.each([
      ['SIGINT', 130],
      ['SIGTERM', 143],
      ['SIGKILL', 137],
      ['SIGHUP', 129],
      ['SIGUSR1', 138],
    ] as const)('%s ends a whole group, and the exit says so', async (signal, code) => {
      using client = await open()
      client.send({ type: 'exec', id: 'a', command: 'sleep 1000 & echo up; wait' })
      await client.writes('a', 'up')
      client.send({ type: 'signal', id: 'a', signal })
      expect(await client.event('exit', { id: 'a' })).toEqual({ type: 'exit', id: 'a', exit_code: code, signal })
    })

    test('a signal can be caught', async () => {
      using client = await open()
      client.send({
        type: 'exec',
        id: 'a',
        command: [
          'python3',
          '-uc',
          'import signal,time\nsignal.signal(signal.SIGUSR2, lambda *_: (print("caught"), exit(7)))\nprint("up")\nwhile True: time.sleep(1)',
        ],
      })
      await client.writes('a', 'up')
      client.send({ type: 'signal', id: 'a', signal: 'SIGUSR2' })
      await client.event('exit', { id: 'a', exit_code: 7, signal: null })
      expect(client.text('a')).toContain('caught')
    })

    test('fault 43: characters that arrive in two pieces are whole, and what is no UTF-8 is carried in base64', async () => {
      using client = await open()
      const program =
        'import os,time\nfor b in "€😀".encode(): os.write(1, bytes([b])); time.sleep(0.02)\nos.write(1, b"\\xff\\x1b[31m\\xe2")'
      client.send({ type: 'exec', id: 'a', command: ['python3', '-c', program] })
      await client.event('exit', { id: 'a' })
      expect(client.text('a')).toBe('€😀\ufffd\u001b[31m\ufffd')
      using exact = await open('?encoding=base64')
      exact.send({ type: 'exec', id: 'a', command: ['python3', '-c', program] })
      await exact.event('exit', { id: 'a' })
      expect(exact.bytes('a').toString('hex')).toBe('e282acf09f9880ff1b5b33316de2')
    })

    test('64 processes run at a time over one connection; the 65th and an id in use are refused, the rest goes on', async () => {
      using client = await open()
      for (let i = 0; i < 65; i++)
        client.send({ type: 'exec', id: `p${i}`, command: 'read x; echo "got $x"', stdin: true, kill_on_close: true })
      expect(await client.event('error', { id: 'p64' })).toMatchObject({ ended: true, error: { code: 'too_many_requests' } })
      client.send({ type: 'watch', id: 'p3', path: '/tmp' })
      expect(await client.event('error', { id: 'p3' })).toMatchObject({ ended: false, error: { code: 'invalid_request' } })
      for (let i = 0; i < 64; i++) client.send({ type: 'stdin', id: `p${i}`, data: `${i}\n` })
      for (let i = 0; i < 64; i++) {
        await client.event('exit', { id: `p${i}`, exit_code: 0 })
        expect(client.text(`p${i}`)).toBe(`got ${i}\n`)
      }
    })

    test('a process outlives its connection; another one attaches to it and misses nothing', async () => {
      const first = await open()
      first.send({ type: 'exec', id: 'a', command: 'echo one; read x; echo "two $x"; read x; echo "three $x"', stdin: true })
      const { pid } = await first.event('started', { id: 'a' })
      await first.writes('a', 'one\n')
      first.socket.terminate()
      using second = await open()
      second.send({ type: 'attach', id: 'b', pid, offset: { stdout: 0, stderr: 0 } })
      expect(await second.event('started', { id: 'b' })).toEqual({ type: 'started', id: 'b', pid, offset: { stdout: 0, stderr: 0 } })
      await second.writes('b', 'one\n')
      second.send({ type: 'stdin', id: 'b', data: 'x\n' })
      await second.writes('b', 'two x\n')
      using third = await open()
      third.send({ type: 'attach', id: 'c', pid })
      expect(await third.event('started', { id: 'c' })).toMatchObject({ offset: { stdout: 10, stderr: 0 } })
      third.send({ type: 'stdin', id: 'c', data: 'y\n' })
      for (const [client, name] of [
        [second, 'b'],
        [third, 'c'],
      ] as const)
        await client.event('exit', { id: name, exit_code: 0 })
      expect([second.text('b'), third.text('c')]).toEqual(['one\ntwo x\nthree y\n', 'three y\n'])
      third.send({ type: 'attach', id: 'd', pid: 4_000_000 })
      expect(await third.event('error', { id: 'd' })).toMatchObject({ ended: true, error: { code: 'process_not_found' } })
    })

    test('kill_on_close: it ends with the connection', async () => {
      using watcher = await open()
      const client = await open()
      client.send({ type: 'exec', id: 'a', command: 'sleep 1000', kill_on_close: true })
      client.send({ type: 'exec', id: 'b', command: 'sleep 1001' })
      const { pid } = await client.event('started', { id: 'a' })
      const { pid: other } = await client.event('started', { id: 'b' })
      client.socket.terminate()
      const ended = (await watcher.event('process_event', { event: 'ended', pid })) as unknown
      expect(ended).toMatchObject({ exit_code: 137, signal: 'SIGKILL' })
      watcher.send({ type: 'attach', id: 'b', pid: other })
      await watcher.event('started', { id: 'b' })
      watcher.send({ type: 'signal', id: 'b', signal: 'SIGTERM' })
      await watcher.event('exit', { id: 'b' })
    })

    test('messages that are not understood are answered with an error, and the connection stays', async () => {
      using client = await open()
      const bad = [
        'no json',
        '[]',
        '"x"',
        '{}',
        '{"type":"dance"}',
        '{"type":"exec"}',
        '{"type":"exec","id":"","command":"x"}',
        '{"type":"exec","id":"e","command":"x","__proto__":{}}',
        '{"type":"exec","id":"e","id":"f","command":"x"}',
        '{"type":"exec","id":"e","command":"x","colour":1}',
        '{"type":"resize","id":"e","cols":0,"rows":1}',
        '{"type":"signal","id":"e","signal":"SIGNOT"}',
        '{"type":"stdin","id":"e","data":"x"}',
        '{"type":"unwatch","id":"e"}',
      ]
      for (const text of bad) client.socket.send(text)
      client.socket.send(Buffer.from('{"type":"stop"}'), { binary: true })
      await client.until((heard) => (heard.filter((event) => event.type === 'error').length === bad.length + 1 ? true : undefined))
      for (const event of client.heard) {
        if (event.type === 'error')
          expect(event.error).toMatchObject({
            code: expect.stringMatching(/^(invalid_json|invalid_request|process_not_found)$/),
            fix: expect.any(String),
          })
      }
      client.send({ type: 'exec', id: 'ok', command: 'echo fine' })
      await client.event('exit', { id: 'ok', exit_code: 0 })
    })

    test('fault 20: a message over 1 MiB closes the connection with 1009', async () => {
      using client = await open()
      client.send({ type: 'stdin', id: 'a', data: 'x'.repeat(mib) })
      expect((await client.closed).code).toBe(1009)
    })

    test('fault 21: a client that reads nothing makes the process wait, and is closed with 1013', async () => {
      using watcher = await open()
      const client = await open()
      const program = 'import os\nn = 0\nwhile True:\n  n += os.write(1, b"x" * 65536)\n  open("written", "w").write(str(n))'
      client.send({ type: 'exec', id: 'a', command: ['python3', '-c', program], cwd: folder, kill_on_close: true })
      const { pid } = await client.event('started', { id: 'a' })
      await client.event('stdout', { id: 'a' })
      client.socket.pause()
      await watcher.event('process_event', { event: 'ended', pid })
      expect(Number(await api.stdout(id, `cat ${folder}/written`))).toBeLessThan(64 * mib)
      client.socket.resume()
      expect(await client.closed).toEqual({ code: 1013, reason: 'too slow in reading' })
    })

    test('a folder is watched: what happens in it, deep inside where asked for, and no more after unwatch', async () => {
      await api.exec(id, `mkdir -p ${folder}/watched/deep`)
      using client = await open()
      client.send({ type: 'watch', id: 'flat', path: `${folder}/watched` })
      client.send({ type: 'watch', id: 'all', path: `${folder}/watched`, recursive: true })
      expect(await client.event('started', { id: 'flat' })).toEqual({ type: 'started', id: 'flat', pid: null })
      await client.event('started', { id: 'all' })
      await api.exec(
        id,
        `cd ${folder}/watched; echo 1 > a; chmod 600 a; mv a b; rm b; echo 2 > deep/c; mkdir new; sleep 0.2; echo 3 > new/d`,
      )
      for (const [path, event] of [
        ['a', 'create'],
        ['a', 'write'],
        ['a', 'chmod'],
        ['a', 'rename'],
        ['b', 'create'],
        ['b', 'remove'],
        ['deep/c', 'write'],
        ['new/d', 'create'],
      ] as const) {
        await client.event('file_event', { id: 'all', path: `${folder}/watched/${path}`, event })
      }
      await client.event('file_event', { id: 'flat', path: `${folder}/watched/new` })
      expect(client.heard.filter((event) => event.type === 'file_event' && event.id === 'flat' && event.path.endsWith('deep/c'))).toEqual(
        [],
      )
      client.send({ type: 'unwatch', id: 'flat' })
      client.send({ type: 'watch', id: 'flat', path: `${folder}/watched/deep` })
      await client.until((heard) =>
        heard.filter((event) => event.type === 'started' && event.id === 'flat').length === 2 ? true : undefined,
      )
      await api.exec(id, `rm -rf ${folder}/watched`)
      expect(await client.event('error', { id: 'flat' })).toMatchObject({
        ended: true,
        error: { code: expect.stringMatching(/not_found|file/) },
      })
      client.send({ type: 'watch', id: 'none', path: '/no/such/folder' })
      expect(await client.event('error', { id: 'none' })).toMatchObject({ ended: true })
    })

    test('what others start and what ends is told, and so are sleep and waking', async () => {
      using client = await open()
      using other = await open()
      other.send({ type: 'exec', id: 'a', command: ['sleep', '1000'] })
      const { pid } = await other.event('started', { id: 'a' })
      expect(await client.event('process_event', { event: 'started', pid })).toMatchObject({ command: ['sleep', '1000'] })
      other.send({ type: 'signal', id: 'a', signal: 'SIGTERM' })
      expect(await client.event('process_event', { event: 'ended', pid })).toMatchObject({ exit_code: 143, signal: 'SIGTERM' })
      await api.exec(id, 'exit 5')
      await client.until((heard) =>
        heard.find((event) => event.type === 'process_event' && event.event === 'ended' && event.exit_code === 5),
      )
      await api.send('POST', `/v1/sandboxes/${id}/pause`)
      await client.event('process_event', { event: 'paused' })
      client.send({ type: 'exec', id: 'wake', command: 'echo awake' })
      await client.event('process_event', { event: 'resumed' })
      await client.event('exit', { id: 'wake', exit_code: 0 })
    })

    test('a process whose client has gone is still told of when it ends, with its exit code', async () => {
      using watcher = await open()
      await api.exec(id, `mkfifo ${folder}/end`)
      const client = await open()
      client.send({ type: 'exec', id: 'a', command: `read x < ${folder}/end; exit 9` })
      const { pid } = await client.event('started', { id: 'a' })
      client.socket.terminate()
      await client.closed
      await api.exec(id, `echo > ${folder}/end`)
      expect(await watcher.event('process_event', { event: 'ended', pid })).toMatchObject({ exit_code: 9, signal: null })
    })

    test('a checkpoint keeps the sandbox, and its processes go on without a gap', async () => {
      const own = await api.sandbox({ driver, network: 'none' })
      using client = await open('', own.id)
      const count = 'import time\nfor i in range(100): print(i, flush=True); time.sleep(0.02)'
      client.send({ type: 'exec', id: 'a', command: ['python3', '-c', count] })
      await client.writes('a', '5\n')
      client.send({ type: 'checkpoint', id: 'c', name: 'here' })
      const answer = await client.until((heard) =>
        heard.find((event) => (event.type === 'checkpoint' || event.type === 'error') && event.id === 'c'),
      )
      if (driver === 'process') expect(answer).toMatchObject({ type: 'error', error: { code: 'snapshot_unsupported' } })
      else expect(answer).toMatchObject({ type: 'checkpoint', snapshot: { name: 'here', state: 'ready', sandbox_id: own.id } })
      await client.event('exit', { id: 'a', exit_code: 0 })
      expect(client.text('a')).toBe(Array.from({ length: 100 }, (_, i) => `${i}\n`).join(''))
      await api.send('DELETE', `/v1/sandboxes/${own.id}`)
    })

    test('a process that is held waits and loses nothing, others go on, and the end of the sandbox is told all the same', async () => {
      const own = await api.sandbox({ driver, network: 'none' })
      using client = await open('', own.id)
      client.send({ type: 'exec', id: 'a', command: 'seq 3000000' })
      client.send({ type: 'hold', id: 'a', held: true })
      client.send({ type: 'exec', id: 'b', command: 'echo meanwhile' })
      await client.event('exit', { id: 'b' })
      const ended = () => client.heard.some((event) => event.type === 'exit' && event.id === 'a')
      expect(await eventually(ended, 2000)).toBe(false)
      client.send({ type: 'hold', id: 'a', held: false })
      await client.event('exit', { id: 'a', exit_code: 0 })
      expect(client.text('a').length).toBe(
        Array.from({ length: 3_000_000 }, (_, i) => String(i + 1).length + 1).reduce((sum, length) => sum + length),
      )
      client.send({ type: 'exec', id: 'c', command: 'yes' })
      client.send({ type: 'hold', id: 'c', held: true })
      await client.until((heard) => heard.find((event) => event.type === 'stdout' && event.id === 'c'))
      client.send({ type: 'stop' })
      expect(await client.event('error', { id: 'c' })).toMatchObject({ ended: true, error: { code: 'sandbox_not_running' } })
      expect((await client.closed).code).toBe(1001)
    })

    test('stop ends the sandbox: what runs is told, then the connection ends', async () => {
      const own = await api.sandbox({ driver, network: 'none' })
      using client = await open('', own.id)
      client.send({ type: 'exec', id: 'a', command: 'sleep 1000' })
      client.send({ type: 'watch', id: 'w', path: '/tmp' })
      await client.event('started', { id: 'a' })
      await client.event('started', { id: 'w' })
      client.send({ type: 'stop' })
      for (const name of ['a', 'w'])
        expect(await client.event('error', { id: name })).toMatchObject({ ended: true, error: { code: 'sandbox_not_running' } })
      await client.event('process_event', { event: 'stopped' })
      expect((await client.closed).code).toBe(1001)
      expect((await api.item(own.id)).state).toBe('stopped')
    })

    test('the sandbox is killed in the middle of everything: each call is told, and nothing hangs', async () => {
      const own = await api.sandbox({ driver, network: 'none' })
      using client = await open('', own.id)
      client.send({ type: 'exec', id: 'out', command: 'while :; do echo x; done' })
      client.send({ type: 'exec', id: 'in', command: 'sleep 1000', stdin: true })
      client.send({ type: 'exec', id: 'pty', command: ['/bin/sh'], pty: { cols: 80, rows: 24 } })
      client.send({ type: 'watch', id: 'watch', path: '/tmp', recursive: true })
      for (const name of ['out', 'in', 'pty', 'watch']) await client.event('started', { id: name })
      client.send({ type: 'stdin', id: 'in', data: 'x'.repeat(500_000) })
      expect((await api.send('DELETE', `/v1/sandboxes/${own.id}`)).status).toBe(204)
      for (const name of ['out', 'in', 'pty', 'watch'])
        expect(await client.event('error', { id: name, ended: true })).toMatchObject({ error: { code: 'sandbox_not_running' } })
      expect((await client.closed).code).toBe(1001)
    })

    test('handshakes are refused as requests are: unknown sandbox, foreign Origin (fault 19), bad encoding', async () => {
      const path = `/v1/sandboxes/${id}/stream`
      expect(await StreamClient.refused(server.url, '/v1/sandboxes/nobody/stream')).toBe(404)
      expect(await StreamClient.refused(server.url, path, { origin: 'http://evil.example' })).toBe(403)
      expect(await StreamClient.refused(server.url, `${path}?encoding=utf16`)).toBe(400)
      expect((await api.send('GET', path)).body.error.code).toBe('invalid_request')
      for (const same of ['/v1/sandboxes/main/stream', `/v1/instances/${id}/stream`, `/api/v1/sandboxes/${id}/stream`]) {
        using client = await StreamClient.openAt(server.url, same)
        client.send({ type: 'exec', id: 'a', command: 'true' })
        await client.event('exit', { id: 'a' })
      }
    })
  })
}

describe('connections', () => {
  test('heartbeats come, and a peer that shows no life is dropped', async () => {
    await using server = await startServer({ driver: 'process', pools: { size: 0 } })
    const { id } = await new Api(server.url).sandbox()
    using dead = await StreamClient.open(server.url, id, '', { autoPong: false })
    using live = await StreamClient.open(server.url, id)
    expect(Date.parse((await dead.event('heartbeat')).time)).toBeGreaterThan(0)
    expect((await dead.closed).code).toBe(1006)
    live.send({ type: 'exec', id: 'a', command: 'true' })
    await live.event('exit', { id: 'a' })
  })

  test('fault 2: with its key gone, a stream is closed, and what was to end with it ends', async () => {
    await using server = await startServer({ driver: 'process', pools: { size: 0 } })
    const { key: admin } = await server.thaw.keys.create({ name: 'first' })
    const headers = { authorization: `Bearer ${admin}`, 'content-type': 'application/json' }
    const post = async (path: string, body: object) =>
      (
        (await (await fetch(server.url + path, { method: 'POST', headers, body: JSON.stringify(body) })).json()) as {
          item: { id: string; key: string }
        }
      ).item
    const { id } = await post('/v1/sandboxes', {})
    const second = await post('/v1/api-keys', { name: 'second' })
    expect(await StreamClient.refused(server.url, `/v1/sandboxes/${id}/stream`)).toBe(401)
    using watcher = await StreamClient.open(server.url, id, '', { headers })
    using client = await StreamClient.open(server.url, id, '', { headers: { 'x-api-key': second.key } })
    client.send({ type: 'exec', id: 'a', command: 'sleep 1000', kill_on_close: true })
    const { pid } = await client.event('started', { id: 'a' })
    expect(
      (await fetch(`${server.url}/v1/api-keys/${second.id}`, { method: 'DELETE', headers: { authorization: headers.authorization } }))
        .status,
    ).toBe(204)
    expect((await client.closed).code).toBe(1006)
    await watcher.event('process_event', { event: 'ended', pid })
    await fetch(`${server.url}/v1/sandboxes/${id}`, { method: 'DELETE', headers: { 'x-api-key': admin } })
  })
})
