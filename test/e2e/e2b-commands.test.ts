import { AuthenticationError, CommandExitError, NotFoundError, TimeoutError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type DisposableSandbox, e2bSandbox } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

for (const driver of ['oci', 'process'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `commands and terminals, with the client e2b over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      let server: TestServer
      let sandbox: DisposableSandbox

      beforeAll(async () => {
        server = await startServer({ driver })
        sandbox = await e2bSandbox(server, { envs: { GLOBAL: 'everywhere' } })
      })
      afterAll(() => server[Symbol.asyncDispose]())

      const isGone = (pid: number) => eventually(async () => !(await sandbox.commands.list()).some((process) => process.pid === pid))

      test('output comes whole, by stream, and as it is written', async () => {
        const heard: string[] = []
        const result = await sandbox.commands.run('echo één; echo two >&2; printf three', {
          onStdout: (text) => void heard.push(`out ${text}`),
          onStderr: (text) => void heard.push(`err ${text}`),
        })
        expect(result).toMatchObject({ exitCode: 0, stdout: 'één\nthree', stderr: 'two\n' })
        expect(heard.filter((line) => line.startsWith('err')).join('')).toBe('err two\n')
        expect(heard.length).toBeGreaterThan(1)
        const large = await sandbox.commands.run('head -c 5000000 /dev/zero | tr "\\0" x')
        expect(large.stdout.length).toBe(5_000_000)
      })

      test('variables, working folder and user', async () => {
        const run = async (command: string, options = {}) => (await sandbox.commands.run(command, options)).stdout.trim()
        expect(await run('echo $GLOBAL $OWN', { envs: { OWN: 'here' } })).toBe('everywhere here')
        expect(await run('pwd', { cwd: '/tmp' })).toBe('/tmp')
        await expect(sandbox.commands.run('pwd', { cwd: '/not/there' })).rejects.toThrow(/not\/there/)
        await expect(sandbox.commands.run('true', { user: 'nobody-at-all' })).rejects.toThrow(AuthenticationError)
        if (driver === 'process') return
        expect(await run('whoami; pwd; echo $HOME')).toBe('user\n/home/user\n/home/user')
        expect(await run('whoami; pwd', { user: 'root' })).toBe('root\n/root')
        expect(await run('touch mine && stat -c %U mine')).toBe('user')
        await expect(sandbox.commands.run('touch /etc/mine')).rejects.toThrow(CommandExitError)
      })

      test('a command that fails says how', async () => {
        const error = await sandbox.commands.run('echo before; echo why >&2; exit 7').catch((caught: unknown) => caught)
        expect(error).toBeInstanceOf(CommandExitError)
        expect(error).toMatchObject({ exitCode: 7, stdout: 'before\n', stderr: 'why\n' })
      })

      test('a command in the background is fed, listed, joined and killed', async () => {
        const heard: string[] = []
        const cat = await sandbox.commands.run('cat', { background: true, stdin: true, onStdout: (text) => void heard.push(text) })
        await sandbox.commands.sendStdin(cat.pid, 'first\n')
        expect(await eventually(() => heard.join('') === 'first\n')).toBe(true)
        const listed = (await sandbox.commands.list()).find((process) => process.pid === cat.pid)
        expect(listed).toMatchObject({ cmd: '/bin/bash', args: ['-l', '-c', 'cat'] })

        const joined: string[] = []
        const second = await sandbox.commands.connect(cat.pid, { onStdout: (text) => void joined.push(text) })
        await sandbox.commands.sendStdin(cat.pid, 'second\n')
        expect(await eventually(() => joined.join('').endsWith('second\n') && heard.join('').endsWith('second\n'))).toBe(true)
        // Whoever leaves leaves the command running.
        await second.disconnect()
        await sandbox.commands.sendStdin(cat.pid, 'third\n')
        expect(await eventually(() => heard.join('').endsWith('third\n'))).toBe(true)

        expect(await sandbox.commands.kill(cat.pid)).toBe(true)
        await expect(cat.wait()).rejects.toThrow(CommandExitError)
        expect(await isGone(cat.pid)).toBe(true)
        await expect(sandbox.commands.sendStdin(cat.pid, 'late')).rejects.toThrow(NotFoundError)
        await expect(sandbox.commands.connect(999_999)).rejects.toThrow(NotFoundError)
        expect(await sandbox.commands.kill(999_999)).toBe(false)
      })

      test('closing stdin ends what reads it', async () => {
        const sort = await sandbox.commands.run('sort', { background: true, stdin: true })
        await sort.sendStdin('b\na\n')
        await sort.closeStdin()
        expect(await sort.wait()).toMatchObject({ stdout: 'a\nb\n', exitCode: 0 })
      })

      test('a command without an end is stopped at its timeout', async () => {
        await expect(sandbox.commands.run('sleep 600', { timeoutMs: 500 })).rejects.toThrow(TimeoutError)
        expect(await eventually(async () => (await sandbox.commands.list()).every((process) => !process.args.includes('sleep 600')))).toBe(
          true,
        )
      })

      test('a terminal echoes, resizes, signals and ends', async () => {
        let screen = ''
        const decoder = new TextDecoder()
        const pty = await sandbox.pty.create({
          cols: 91,
          rows: 30,
          onData: (bytes) => {
            screen += decoder.decode(bytes, { stream: true })
          },
        })
        const type = (text: string) => sandbox.pty.sendInput(pty.pid, new TextEncoder().encode(text))
        const shows = (text: string) => eventually(() => screen.includes(text))
        await type('stty size; tty; echo $TERM\n')
        expect(await shows('30 91')).toBe(true)
        expect(await shows('/dev/pts/')).toBe(true)
        expect(await shows('xterm')).toBe(true)
        await sandbox.pty.resize(pty.pid, { cols: 77, rows: 11 })
        await type('stty size\n')
        expect(await shows('11 77')).toBe(true)
        await type('sh -c "echo asleep-\\$((40+2)); exec sleep 600"\n')
        expect(await shows('asleep-42')).toBe(true)
        await type('\x03')
        await type('echo after-$((40+2))\n')
        expect(await shows('after-42')).toBe(true)
        const again: string[] = []
        const joined = await sandbox.pty.connect(pty.pid, { onData: (bytes) => void again.push(decoder.decode(bytes)) })
        await type('echo both-$((1+1))\n')
        expect(await eventually(() => again.join('').includes('both-2'))).toBe(true)
        await joined.disconnect()
        expect(await sandbox.pty.kill(pty.pid)).toBe(true)
        expect(await sandbox.pty.kill(999_999)).toBe(false)
        expect(await isGone(pty.pid)).toBe(true)
      })

      test('the end of a terminal is that of its shell', async () => {
        const pty = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => undefined })
        await sandbox.pty.sendInput(pty.pid, new TextEncoder().encode('exit 3\n'))
        await expect(pty.wait()).rejects.toMatchObject({ exitCode: 3 })
      })

      test('many commands at a time', async () => {
        const results = await Promise.all(Array.from({ length: 20 }, (_, i) => sandbox.commands.run(`sleep 0.2; echo ${i}`)))
        expect(results.map((result) => result.stdout.trim())).toEqual(Array.from({ length: 20 }, (_, i) => String(i)))
      })
    },
  )
}
