import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Thaw, ThawError } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

// The SDK against the real server, its agent and its drivers.

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`the SDK and sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let thaw: Thaw

    beforeAll(async () => {
      // Short, so that a listener that is slow would be given up on if it did not read the connection.
      server = await startServer({ driver, limits: { websocket_stall_ms: 500 } })
      thaw = server.thaw
    }, 120_000)
    afterAll(() => server?.[Symbol.asyncDispose](), 60_000)

    const gone = async (id: string) => (await thaw.sandboxes.list().all()).every((sandbox) => sandbox.id !== id)

    test('a sandbox lives from create to the end of its block, and is found by id, name and metadata', async () => {
      let id: string
      {
        await using sandbox = await thaw.sandboxes.create({ name: 'found', metadata: { team: 'data & co', kind: 'x' } })
        id = sandbox.id
        expect(sandbox.item).toMatchObject({ state: 'running', driver, name: 'found' })
        expect((await thaw.sandboxes.get(id)).item.name).toBe('found')
        expect((await thaw.sandboxes.get('found')).id).toBe(id)
        const ids = async (query: Parameters<typeof thaw.sandboxes.list>[0]) =>
          (await thaw.sandboxes.list(query).all()).map((each) => each.id)
        expect(await ids({ metadata: { team: 'data & co' }, state: ['running', 'paused'] })).toEqual([id])
        expect(await ids({ metadata: { team: 'other' } })).toEqual([])
        expect(await ids({ state: 'stopped' })).toEqual([])
        // With a name that is taken, the one that has it.
        expect((await thaw.sandboxes.create({ name: 'found' })).id).toBe(id)
      }
      expect(await gone(id)).toBe(true)
      await expect(thaw.sandboxes.get(id)).rejects.toMatchObject({ code: 'sandbox_not_found', fix: expect.stringContaining('sandbox ls') })
    })

    test('lists come in pages', async () => {
      await using _a = await thaw.sandboxes.create({ metadata: { page: '1' } })
      await using _b = await thaw.sandboxes.create({ metadata: { page: '1' } })
      const first = await thaw.sandboxes.list({ metadata: { page: '1' }, limit: 1 }).page()
      expect(first.items).toHaveLength(1)
      expect(first.next).not.toBeNull()
      expect(await thaw.sandboxes.list({ metadata: { page: '1' }, limit: 1 }).all()).toHaveLength(2)
    })

    test('exec gives the output and the exit code, with environment, folder and standard input', async () => {
      await using sandbox = await thaw.sandboxes.create({ env: { A: 'sandbox', B: 'sandbox' } })
      const result = await sandbox.exec('echo $A $B; pwd; cat; echo problem >&2; exit 3', {
        env: { B: 'call' },
        cwd: '/usr',
        stdin: 'grüße',
      })
      expect(result).toMatchObject({
        stdout: 'sandbox call\n/usr\ngrüße',
        stderr: 'problem\n',
        exit_code: 3,
        signal: null,
        timed_out: false,
      })
      const bytes = await sandbox.exec(['cat'], { stdin: new Uint8Array([0, 255, 10]), encoding: 'base64' })
      expect(Buffer.from(bytes.stdout, 'base64')).toEqual(Buffer.from([0, 255, 10]))
      expect((await sandbox.exec('cat', { stdin: new TextEncoder().encode('ü') })).stdout).toBe('ü')
      expect(await sandbox.exec('sleep 60', { timeoutMs: 100 })).toMatchObject({ timed_out: true, exit_code: null })
      await expect(sandbox.exec(['no-such-program'])).rejects.toBeInstanceOf(ThawError)
    })

    test('exec with callbacks hears output while the command runs, characters whole, and gives the same result', async () => {
      await using sandbox = await thaw.sandboxes.create()
      const heard: string[] = []
      const errors: string[] = []
      let first: () => void = () => undefined
      const begun = new Promise<void>((resolve) => {
        first = resolve
      })
      // Only when its beginning was heard may the command go on: it cannot have been kept back until the end.
      const running = sandbox.exec(
        'printf "one "; while ! [ -e go ]; do sleep 0.02; done; printf "\\303"; sleep 0.1; printf "\\274"; echo oops >&2; exit 4',
        {
          onStdout: (text) => {
            heard.push(text)
            first()
          },
          onStderr: (text) => void errors.push(text),
        },
      )
      await begun
      await sandbox.files.write('go', '')
      expect(await running).toMatchObject({ stdout: 'one ü', stderr: 'oops\n', exit_code: 4, timed_out: false, truncated: false })
      expect(heard.join('')).toBe('one ü')
      expect(heard.every((text) => !text.includes('\ufffd'))).toBe(true)
      expect(errors.join('')).toBe('oops\n')
      const late = await sandbox.exec('echo begun; sleep 60', { timeoutMs: 1000, onStdout: () => undefined })
      expect(late).toMatchObject({ stdout: 'begun\n', timed_out: true, exit_code: null, signal: 'SIGKILL' })
      expect((await sandbox.exec('cat', { stdin: 'in', onStdout: () => undefined })).stdout).toBe('in')
    })

    test('an aborted exec ends the command', async () => {
      await using sandbox = await thaw.sandboxes.create()
      for (const callbacks of [{}, { onStdout: () => undefined }]) {
        const abort = new AbortController()
        const call = sandbox.exec('echo $$ > pid; exec sleep 600', { signal: abort.signal, ...callbacks })
        expect(await eventually(() => sandbox.files.exists('pid'))).toBe(true)
        expect(await eventually(async () => (await sandbox.files.readText('pid')) !== '')).toBe(true)
        const pid = (await sandbox.files.readText('pid')).trim()
        abort.abort(new Error('enough'))
        await expect(call).rejects.toThrow('enough')
        const alive = async () => (await sandbox.exec(`kill -0 ${pid}`)).exit_code === 0
        expect(await eventually(async () => !(await alive()))).toBe(true)
        await sandbox.files.remove('pid')
      }
    })

    test('a process takes input, gives output as bytes, takes signals, and can be taken up again by its pid', async () => {
      await using sandbox = await thaw.sandboxes.create()
      let output = Buffer.alloc(0)
      const keep = (bytes: Uint8Array) => {
        output = Buffer.concat([output, bytes])
      }
      const child = await sandbox.start(['cat'], { stdin: true, onStdout: keep })
      expect(child.pid).toBeGreaterThan(0)
      const big = Buffer.alloc(3_000_000, 'abcdefg')
      await child.stdin.write('first\n')
      await child.stdin.write(big)
      await child.stdin.end()
      expect(await child.wait()).toEqual({ exit_code: 0, signal: null })
      expect(output.equals(Buffer.concat([Buffer.from('first\n'), big]))).toBe(true)

      const left = await sandbox.start('echo before; while ! [ -e on ]; do sleep 0.02; done; echo after; sleep 600')
      left.detach()
      await expect(left.wait()).rejects.toMatchObject({ code: 'cancelled' })
      let again = ''
      const found = await sandbox.attach(left.pid, {
        offset: { stdout: 0 },
        onStdout: (bytes) => {
          again += Buffer.from(bytes)
        },
      })
      await sandbox.files.write('on', '')
      expect(await eventually(() => again === 'before\nafter\n')).toBe(true)
      await found.kill('SIGTERM')
      expect(await found.wait()).toEqual({ exit_code: 143, signal: 'SIGTERM' })
      await expect(sandbox.attach(999_999)).rejects.toMatchObject({ code: 'process_not_found' })
    })

    test('a listener that is slow makes the process wait, and nothing is lost', async () => {
      await using sandbox = await thaw.sandboxes.create()
      let release: () => void = () => undefined
      const gate = new Promise<void>((resolve) => {
        release = resolve
      })
      let bytes = 0
      const child = await sandbox.start('dd if=/dev/zero bs=1M count=64 2>/dev/null; echo done > end', {
        onStdout: async (piece) => {
          bytes += piece.length
          await gate
        },
      })
      // What lies between the two ends holds a few megabytes; the rest cannot have been written.
      expect(await eventually(() => bytes > 0)).toBe(true)
      expect(await eventually(() => sandbox.files.exists('end'), 3000)).toBe(false)
      release()
      expect(await child.wait()).toEqual({ exit_code: 0, signal: null })
      expect(bytes).toBe(64 * 1024 * 1024)
    })

    test('a process that was started to end with its connection does', async () => {
      await using sandbox = await thaw.sandboxes.create()
      const child = await sandbox.start('sleep 600', { killOnClose: true })
      child.detach()
      expect(await eventually(async () => (await sandbox.exec(`kill -0 ${child.pid}`)).exit_code !== 0)).toBe(true)
    })

    test('a terminal echoes, has a size that can change, and passes Ctrl-C on', async () => {
      await using sandbox = await thaw.sandboxes.create()
      let screen = ''
      const terminal = await sandbox.terminal({
        command: ['/bin/sh'],
        cols: 91,
        rows: 23,
        env: { PS1: '> ' },
        onData: (bytes) => {
          screen += Buffer.from(bytes)
        },
      })
      const shows = (text: string) => eventually(() => screen.includes(text))
      await terminal.write('stty size\n')
      expect(await shows('23 91')).toBe(true)
      expect(screen).toContain('stty size')
      await terminal.resize({ cols: 120, rows: 40 })
      await terminal.write('stty size; echo wait$((1+1)); sleep 600\n')
      expect(await shows('40 120')).toBe(true)
      expect(await shows('wait2')).toBe(true)
      await terminal.write('\x03')
      await terminal.write('exit 5\n')
      expect(await terminal.exited).toEqual({ exit_code: 5, signal: null })
    })

    test('files are written, read, listed, moved and removed', async () => {
      await using sandbox = await thaw.sandboxes.create()
      const { files } = sandbox
      await files.write('deep/er/a.txt', 'grüße')
      expect(await files.readText('deep/er/a.txt')).toBe('grüße')
      await files.write('deep/bytes', new Uint8Array([0, 255]))
      expect(await files.read('deep/bytes')).toEqual(new Uint8Array([0, 255]))
      await files.write('deep/stream', new Blob(['from ', 'a blob']).stream())
      expect((await files.list('deep')).map((item) => item.name).sort()).toEqual(['bytes', 'er', 'stream'])
      expect((await files.list('deep', { depth: 2 })).some((item) => item.path.endsWith('/er/a.txt'))).toBe(true)
      expect(await files.stat('deep/bytes')).toMatchObject({ type: 'file', size_bytes: 2 })
      await files.move('deep/bytes', 'deep/moved')
      expect(await files.exists('deep/bytes')).toBe(false)
      expect(await files.exists('deep/moved')).toBe(true)
      expect(await files.mkdir('x/y/z')).toMatchObject({ type: 'directory' })
      await files.remove('deep')
      await expect(files.read('deep/moved')).rejects.toMatchObject({ code: 'file_not_found' })
      let bytes = 0
      await files.write(
        'big',
        (async function* () {
          for (let i = 0; i < 20; i++) yield new Uint8Array(1024 * 1024)
        })(),
      )
      for await (const piece of files.readStream('big')) bytes += piece.length
      expect(bytes).toBe(20 * 1024 * 1024)
    })

    test('folders are uploaded and downloaded with their modes, and the progress is told', async () => {
      using dir = tempDir()
      const from = join(dir.path, 'from')
      mkdirSync(join(from, 'sub'), { recursive: true })
      writeFileSync(join(from, 'run.sh'), '#!/bin/sh\necho it runs\n', { mode: 0o755 })
      writeFileSync(join(from, 'sub', 'data'), Buffer.alloc(2_000_000, 'x'))
      await using sandbox = await thaw.sandboxes.create()
      const told: number[] = []
      await sandbox.files.upload(from, 'project', { onProgress: (progress) => told.push(progress.files) })
      expect(told.at(-1)).toBe(2)
      expect((await sandbox.exec('./project/run.sh')).stdout).toBe('it runs\n')
      await sandbox.files.upload(join(from, 'run.sh'), 'alone')
      expect((await sandbox.exec('./alone')).stdout).toBe('it runs\n')
      await sandbox.exec('cd project && ln -s run.sh link && mkfifo pipe')
      const to = join(dir.path, 'to')
      await sandbox.files.download('project', to)
      expect(statSync(join(to, 'run.sh')).mode & 0o777).toBe(0o755)
      expect(readFileSync(join(to, 'sub', 'data')).equals(Buffer.alloc(2_000_000, 'x'))).toBe(true)
      expect(readFileSync(join(to, 'link'), 'utf8')).toContain('it runs')
      await sandbox.files.download('project/run.sh', join(dir.path, 'one.sh'))
      expect(statSync(join(dir.path, 'one.sh')).mode & 0o777).toBe(0o755)
      await expect(sandbox.files.upload(join(dir.path, 'nowhere'), 'x')).rejects.toMatchObject({ code: 'file_not_found' })
      await expect(sandbox.files.download('nowhere', to)).rejects.toMatchObject({ code: 'file_not_found' })
    })

    test('a folder is watched', async () => {
      await using sandbox = await thaw.sandboxes.create()
      await sandbox.files.mkdir('seen/below')
      const events: string[] = []
      await using watch = await sandbox.files.watch('seen', { recursive: true }, ({ path, event }) => void events.push(`${event} ${path}`))
      await sandbox.exec('echo x > seen/below/a; rm seen/below/a')
      expect(await eventually(() => events.includes('create seen/below/a') && events.includes('remove seen/below/a'))).toBe(true)
      watch.close()
      await watch.closed
      await expect(sandbox.files.watch('nowhere', {}, () => undefined)).rejects.toMatchObject({ code: 'file_not_found' })
    })

    test('pause, resume, update, stats and stop do what they say', async () => {
      await using sandbox = await thaw.sandboxes.create()
      expect((await sandbox.pause()).state).toBe('paused')
      expect((await sandbox.resume()).state).toBe('running')
      await sandbox.pause()
      expect((await sandbox.exec('echo awake')).stdout).toBe('awake\n')
      expect(await sandbox.update({ ports: [8000], metadata: { a: 'b' } })).toMatchObject({ ports: [8000], metadata: { a: 'b' } })
      expect(await sandbox.stats()).toMatchObject({ state: 'running', memory_limit_bytes: 512 * 1024 * 1024 })
      expect((await sandbox.stop()).state).toBe('stopped')
      await expect(sandbox.exec('true')).rejects.toMatchObject({ code: 'sandbox_not_running' })
      await expect(sandbox.start('true')).rejects.toMatchObject({ code: 'sandbox_not_running' })
    })

    test('the address of a port leads to what listens there', async () => {
      await using sandbox = await thaw.sandboxes.create({ ports: [8123] })
      await sandbox.files.write('www/hello.txt', 'hello from inside')
      const web = await sandbox.start('cd www && exec python3 -m http.server 8123', { killOnClose: true })
      const get = async (url: string) => {
        const answer = await fetch(url)
        return answer.ok ? answer.text() : null
      }
      expect(await eventually(async () => (await get(`${sandbox.url(8123)}hello.txt`)) === 'hello from inside')).toBe(true)
      expect(sandbox.url(8123, { domain: 'localhost' })).toMatch(/^http:\/\/8123-sbx-[a-z0-9]+\.localhost:\d+\/$/)
      await web.kill()
    })

    test('the end of a sandbox ends what goes on in it with an error that says so', async () => {
      await using sandbox = await thaw.sandboxes.create()
      const gate = Promise.withResolvers<void>()
      const flood = await sandbox.start('yes', { onStdout: () => gate.promise })
      const child = await sandbox.start('sleep 600')
      const watch = await sandbox.files.watch('.', {}, () => undefined)
      await sandbox.stop()
      await expect(child.wait()).rejects.toBeInstanceOf(ThawError)
      await expect(watch.closed).rejects.toBeInstanceOf(ThawError)
      gate.resolve()
      await expect(flood.wait()).rejects.toMatchObject({ code: 'sandbox_not_running' })
    })

    test('execute runs a command in a sandbox that ends with it', async () => {
      const before = (await thaw.sandboxes.list().all()).length
      expect(await thaw.execute({ command: 'cat; exit 2', stdin: 'x' })).toMatchObject({ stdout: 'x', exit_code: 2, sandbox_id: null })
      expect(await eventually(async () => (await thaw.sandboxes.list().all()).length === before)).toBe(true)
    })
  })
}

test('a stream to a server that is not there is unreachable, and one that refuses says why', async () => {
  await using server = await startServer({ driver: 'process' })
  const first = await server.thaw.sandboxes.create()
  const { key } = await server.thaw.keys.create({ name: 'admin' })
  await expect(first.start('true')).rejects.toMatchObject({ code: 'unauthorized' })
  const known = await new Thaw({ url: server.url, apiKey: key }).sandboxes.get(first.id)
  expect(await (await known.start('exit 6')).wait()).toEqual({ exit_code: 6, signal: null })
  await known.delete()
  const nobody = new Thaw({ url: 'http://127.0.0.1:9' })
  await expect(nobody.sandboxes.create()).rejects.toMatchObject({ code: 'unreachable' })
})
