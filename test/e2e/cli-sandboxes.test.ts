import { type ChildProcessWithoutNullStreams, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { findProcesses, stateOf } from '../../packages/server/src/drivers/processes.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'
import { TestTerminal } from '../support/terminal.ts'

// The command as people run it: a process of its own, on a terminal of its own where it needs one, against the real server.

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`the command line and sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    const image = driver === 'process' ? 'host' : 'python'

    beforeAll(async () => {
      server = await startServer({ driver, ssh: { port: 0 } })
    }, 120_000)
    afterAll(() => server?.[Symbol.asyncDispose](), 60_000)

    function env(): NodeJS.ProcessEnv {
      const outer = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_')))
      return { ...outer, THAW_URL: server.url, TERM: 'xterm-256color' }
    }

    function start(...args: string[]): ChildProcessWithoutNullStreams {
      const child = spawn(process.execPath, [script, ...args], { env: env() })
      onTestFinished(() => void child.kill('SIGKILL'))
      return child
    }

    async function ended(child: ChildProcessWithoutNullStreams): Promise<{ code: number | null; stdout: string; stderr: string }> {
      const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
      return { code, stdout, stderr }
    }

    async function thaw(args: string[], input: string | Uint8Array = '') {
      const child = start(...args)
      child.stdin.end(input)
      return ended(child)
    }

    /** What a command printed, as JSON; it must have worked. */
    async function json(...args: string[]) {
      const { code, stdout, stderr } = await thaw([...args, '--json'])
      expect(code, stderr).toBe(0)
      return JSON.parse(stdout)
    }

    const terminal = (...args: string[]) => new TestTerminal([process.execPath, script, ...args], { env: env(), cols: 100, rows: 30 })

    let count = 0
    /** A sandbox for one test. */
    async function sandbox(): Promise<string> {
      const name = `cli-${++count}`
      const made = await server.thaw.sandboxes.create({ name, image })
      onTestFinished(() => made[Symbol.asyncDispose]())
      return name
    }

    test('create makes what the flags say, which ls, inspect and stats show', async () => {
      const args = ['--image', image, '--name', 'flags', '--memory', '256MiB', '--cpus', '0.5', '--timeout', '2h', '--on-timeout', 'pause']
      const more = ['--idle', '10m', '-p', '8000', '-p', '9000', '--env', 'GREETING=hi', '--metadata', 'team=data', '--network', 'none']
      const { code, stdout, stderr } = await thaw(['sandbox', 'create', ...args, ...more])
      expect(code, stderr).toBe(0)
      expect(stdout).toMatch(/^sbx-\w+ is running \(/)
      expect(stdout).toContain('thaw sandbox shell flags')
      expect(await json('sbx', 'inspect', 'flags')).toMatchObject({
        name: 'flags',
        driver,
        image,
        resources: { memory_mib: 256, cpus: 0.5 },
        timeout_ms: 7_200_000,
        on_timeout: 'pause',
        idle_ms: 600_000,
        ports: [8000, 9000],
        metadata: { team: 'data' },
        network: 'none',
      })
      expect((await thaw(['sandbox', 'exec', 'flags', 'printenv', 'GREETING'])).stdout).toBe('hi\n')
      const listed = await thaw(['sandbox', 'ls', '--metadata', 'team=data', '--state', 'running'])
      expect(listed.stdout).toMatch(/^ID +NAME +STATE .*\nsbx-\w+ +flags +running /)
      expect((await thaw(['sandbox', 'ls', '--state', 'hibernated'])).stdout).toBe('')
      expect((await thaw(['sandbox', 'inspect', 'flags'])).stdout).toContain('memory, 0.5 CPU')
      expect((await thaw(['sandbox', 'stats', 'flags'])).stdout).toContain('256 MiB')
      expect((await json('sandbox', 'stats'))[0]).toMatchObject({ state: 'running', memory_limit_bytes: 268_435_456 })
      expect((await thaw(['sandbox', 'rm', 'flags'])).stdout).toBe('removed flags\n')
      expect((await thaw(['sandbox', 'inspect', 'flags'])).code).toBe(1)
    })

    test('create -q prints the id alone; what follows the flags is a service that runs at once', async () => {
      const { stdout } = await thaw(['sandbox', 'create', '-q', '--image', image, 'sh', '-c', 'echo service > ran; sleep 600'])
      const id = stdout.trim()
      expect(id).toMatch(/^sbx-\w+$/)
      const found = await server.thaw.sandboxes.get(id)
      onTestFinished(() => found.delete())
      expect(await eventually(() => found.files.exists('ran'))).toBe(true)
    })

    test('logs prints what the service wrote, and goes on with -f', async () => {
      const source =
        'echo line 1; echo oops >&2; while ! [ -e on ]; do sleep 0.05; done; echo line 2; while ! [ -e over ]; do sleep 0.05; done; exit 3'
      const made = await server.thaw.sandboxes.create({ image, command: source })
      onTestFinished(() => made[Symbol.asyncDispose]())
      const logs = () => thaw(['sandbox', 'logs', made.id])
      expect(await eventually(async () => (await logs()).stdout === 'line 1\n')).toBe(true)
      expect(await logs()).toEqual({ code: 0, stdout: 'line 1\n', stderr: 'oops\n' })
      const follower = start('sandbox', 'logs', made.id, '-f')
      const followed = ended(follower)
      await once(follower.stdout, 'data')
      await made.files.write('on', '')
      await once(follower.stdout, 'data')
      await made.files.write('over', '')
      expect(await followed).toMatchObject({ code: 0, stdout: 'line 1\nline 2\n' })
      const interrupted = start('sandbox', 'logs', await sandbox(), '-f')
      expect(await ended(interrupted)).toMatchObject({ code: 1, stderr: expect.stringContaining('main') })
    })

    test('exec streams both outputs, passes its input on, and ends with the exit code of the command', async () => {
      const name = await sandbox()
      const both = await thaw([
        'sandbox',
        'exec',
        name,
        '--env',
        'A=b',
        '--cwd',
        '/usr',
        '--',
        'sh',
        '-c',
        'echo $A $PWD; echo no >&2; exit 7',
      ])
      expect(both).toEqual({ code: 7, stdout: 'b /usr\n', stderr: 'no\n' })
      const bytes = Buffer.alloc(2_000_000, 'input')
      expect((await thaw(['sandbox', 'exec', name, 'wc', '-c'], bytes)).stdout.trim()).toBe('2000000')
      expect((await thaw(['sandbox', 'exec', name, '--', 'sh', '-c', 'kill -TERM $$'])).code).toBe(143)
      const late = await thaw(['sandbox', 'exec', name, '--timeout', '500ms', 'sleep', '600'])
      expect(late).toMatchObject({ code: 124, stderr: 'the command was killed: its 500 ms were over\n' })
      const result = await thaw(['--json', 'sandbox', 'exec', name, 'sh', '-c', 'echo out; exit 3', '--json'])
      expect(result.code).toBe(3)
      expect(JSON.parse(result.stdout)).toMatchObject({ stdout: 'out\n', stderr: '', exit_code: 3, timed_out: false })
      const missing = await thaw(['sandbox', 'exec', 'nobody', 'true'])
      expect(missing).toMatchObject({ code: 1, stderr: expect.stringContaining('fix: List sandboxes with `npx thaw sandbox ls`') })
    })

    test('a program that is not there ends exec and run with 127, and says how to repair it', async () => {
      const name = await sandbox()
      for (const args of [
        ['sandbox', 'exec', name, 'no-such-program'],
        ['run', image, 'no-such-program'],
        ['run', '--cached', image, 'no-such-program'],
      ]) {
        const { code, stdout, stderr } = await thaw(args)
        expect({ code, stdout }, stderr).toEqual({ code: 127, stdout: '' })
        expect(stderr).toMatch(/error: Command 'no-such-program' not found in PATH .*\nfix: Check its name/)
      }
      const { code, stderr } = await thaw(['--json', 'sandbox', 'exec', name, 'no-such-program'])
      expect([code, JSON.parse(stderr).error.code]).toEqual([127, 'command_not_found'])
    })

    test('exec prints output as it comes, and does not wait for an input that nobody closes', async () => {
      const name = await sandbox()
      const child = start('sandbox', 'exec', name, '--', 'sh', '-c', 'echo first; read line; echo "got $line"')
      let output = ''
      child.stdout.on('data', (data) => {
        output += data
      })
      expect(await eventually(() => output === 'first\n')).toBe(true)
      child.stdin.write('typed\n')
      const [code] = await once(child, 'close')
      expect({ code, output }).toEqual({ code: 0, output: 'first\ngot typed\n' })
    })

    test('Ctrl-C goes to the command, which decides; a second one ends it', async () => {
      const name = await sandbox()
      const polite = start(
        'sandbox',
        'exec',
        name,
        '--',
        'sh',
        '-c',
        'trap "echo cleaned; exit 9" INT; echo ready; while :; do sleep 0.05; done',
      )
      await once(polite.stdout, 'data')
      polite.kill('SIGINT')
      expect(await ended(polite)).toMatchObject({ code: 9, stdout: 'cleaned\n' })
      const stubborn = start('sandbox', 'exec', name, '--', 'sh', '-c', 'trap "echo no" INT; echo $$; while :; do sleep 0.05; done')
      const [pid] = await once(stubborn.stdout, 'data')
      const said = once(stubborn.stdout, 'data')
      stubborn.kill('SIGINT')
      await said
      stubborn.kill('SIGINT')
      expect([130, 137]).toContain((await ended(stubborn)).code)
      const inside = await server.thaw.sandboxes.get(name)
      expect(await eventually(async () => (await inside.exec(`kill -0 ${String(pid).trim()}`)).exit_code !== 0)).toBe(true)
    })

    test('cp copies files and folders both ways, and streams through -', async () => {
      const name = await sandbox()
      using dir = tempDir()
      const from = join(dir.path, 'project')
      mkdirSync(join(from, 'sub'), { recursive: true })
      writeFileSync(join(from, 'tool'), '#!/bin/sh\necho tool runs\n', { mode: 0o755 })
      writeFileSync(join(from, 'sub', 'b'), 'bee')
      const copied = await thaw(['sandbox', 'cp', from, `${name}:work`])
      expect(copied, copied.stderr).toMatchObject({ code: 0, stdout: expect.stringMatching(/^.+ → sbx-\w+:work\n$/) })
      const inside = await server.thaw.sandboxes.get(name)
      expect((await inside.exec('./work/tool; cat work/sub/b')).stdout).toBe('tool runs\nbee')
      // Into a folder that is there, under its own name; its content alone with /.
      await thaw(['sandbox', 'cp', from, `${name}:work`])
      await thaw(['sandbox', 'cp', `${from}/.`, `${name}:flat/`])
      await thaw(['sandbox', 'cp', join(from, 'tool'), `${name}:`])
      expect((await inside.exec('cat work/project/sub/b flat/sub/b; ./tool')).stdout).toBe('beebeetool runs\n')
      const back = join(dir.path, 'back')
      expect(await json('sandbox', 'cp', `${name}:work`, back)).toMatchObject({ to: back, files: 4 })
      expect(statSync(join(back, 'tool')).mode & 0o777).toBe(0o755)
      await thaw(['sandbox', 'cp', `${name}:work/sub/b`, dir.path])
      expect(readFileSync(join(dir.path, 'b'), 'utf8')).toBe('bee')
      expect((await thaw(['sandbox', 'cp', '-', `${name}:piped`], 'through a pipe')).code).toBe(0)
      expect((await thaw(['sandbox', 'cp', `${name}:piped`, '-'])).stdout).toBe('through a pipe')
      expect(await thaw(['sandbox', 'cp', 'a', 'b'])).toMatchObject({ code: 2, stderr: expect.stringContaining('SANDBOX:PATH') })
      expect(await thaw(['sandbox', 'cp', `${name}:nowhere`, dir.path])).toMatchObject({
        code: 1,
        stderr: expect.stringContaining('nowhere'),
      })
      expect(existsSync(join(dir.path, 'nowhere'))).toBe(false)
    })

    test('port lists ports, prints where they lead, and takes them off again', async () => {
      const name = await sandbox()
      const inside = await server.thaw.sandboxes.get(name)
      await inside.files.write('index.html', 'from inside')
      await inside.start('exec python3 -m http.server 8124', { killOnClose: false })
      const { stdout } = await thaw(['sandbox', 'port', name, '8124', '9000'])
      const url = /^8124 +(\S+)/m.exec(stdout)?.[1] ?? ''
      const page = async () => fetch(url).then((answer) => (answer.ok ? answer.text() : null))
      expect(await eventually(async () => (await page()) === 'from inside')).toBe(true)
      expect(await json('sandbox', 'port', name, '9000', '--rm')).toMatchObject({ ports: [8124] })
      expect((await thaw(['sandbox', 'port', name])).stdout).not.toContain('9000')
    })

    test('pause, resume, stop and rm take several sandboxes, or all; one that fails keeps no other from its turn', async () => {
      const [a, b] = [await sandbox(), await sandbox()]
      const paused = await thaw(['sandbox', 'pause', 'nobody', a, b])
      expect(paused).toMatchObject({ code: 1, stdout: `paused ${a}\npaused ${b}\n`, stderr: expect.stringContaining('nobody') })
      const [first, second] = [await server.thaw.sandboxes.get(a), await server.thaw.sandboxes.get(b)]
      const states = async () => [(await first.refresh()).state, (await second.refresh()).state]
      expect(await states()).toEqual(['paused', 'paused'])
      expect((await json('sandbox', 'resume', '--all')).resumed).toHaveLength(2)
      expect((await thaw(['sandbox', 'stop', a])).stdout).toBe(`stopped ${a}\n`)
      expect(await states()).toEqual(['stopped', 'running'])
      expect((await thaw(['sandbox', 'ls', '-q'])).stdout.trim().split('\n')).toHaveLength(1)
      expect((await thaw(['sandbox', 'rm'])).code).toBe(2)
      await thaw(['sandbox', 'rm', '--all'])
      expect(await server.thaw.sandboxes.list().all()).toEqual([])
    })

    test('run leaves the exit code, the output, and no sandbox', async () => {
      const done = await thaw(['run', '-e', 'A=b', image, 'sh', '-c', 'cat; echo $A; exit 5'], 'input ')
      expect(done).toMatchObject({ code: 5, stdout: 'input b\n' })
      expect(await server.thaw.sandboxes.list().all()).toEqual([])
      const kept = await thaw(['run', '--keep', '--name', 'kept', image, 'sh', '-c', 'echo x > file'])
      expect(kept.stderr).toMatch(/^kept sbx-/m)
      expect(await (await server.thaw.sandboxes.get('kept')).files.readText('file')).toBe('x\n')
      const taken = await thaw(['run', '--name', 'kept', image, 'true'])
      expect(taken).toMatchObject({ code: 2, stderr: expect.stringContaining('There is a sandbox kept already') })
      await server.thaw.sandboxes.delete('kept')
      expect(await thaw(['run', image])).toMatchObject({ code: 2, stderr: expect.stringContaining('which command') })
    })

    test('run removes its sandbox after Ctrl-C too', async () => {
      const child = start('run', image, '--', 'sh', '-c', 'echo ready; exec sleep 600')
      await once(child.stdout, 'data')
      child.kill('SIGINT')
      expect((await ended(child)).code).toBe(130)
      expect(await server.thaw.sandboxes.list().all()).toEqual([])
    })

    test('shell is a terminal: echo, size, Ctrl-C, job control, exit code', async () => {
      const name = await sandbox()
      const shell = terminal('sandbox', 'shell', name)
      // In two parts, so that the echo of what is typed is not taken for the prompt.
      shell.type("PS1='rea''dy> '\n")
      await shell.see('ready> ')
      shell.type('stty size\n')
      const echoed = await shell.see('30 100')
      expect(echoed).toContain('stty size')
      expect(echoed).not.toContain('\r\r')
      await shell.see('ready> ')
      shell.resize(132, 43)
      shell.type('while [ "$(stty size)" != "43 132" ]; do sleep 0.05; done; echo resi""zed\n')
      await shell.see('resized')
      await shell.see('ready> ')
      // A key that comes before the program is there would reach the shell.
      const runs = (seconds: string) => eventually(() => findProcesses((pid) => hasArguments(pid, `sleep\0${seconds}\0`)).length > 0)
      shell.type('sleep 600.5; echo "not" reached\n')
      expect(await runs('600.5')).toBe(true)
      shell.type('\x03')
      await shell.see('^C')
      await shell.see('ready> ')
      shell.type('sleep 601.5\n')
      expect(await runs('601.5')).toBe(true)
      shell.type('\x1a')
      await shell.see('Stopped')
      await shell.see('ready> ')
      shell.type('fg\n')
      await shell.see('sleep 601.5')
      expect(await eventually(() => findProcesses((pid) => hasArguments(pid, 'sleep\x00601.5\0') && stateOf(pid) === 'S').length > 0)).toBe(
        true,
      )
      shell.type('\x03')
      await shell.see('ready> ')
      shell.type('exit 42\n')
      expect((await shell.ended()).code).toBe(42)
    })

    test('a full-screen program draws, reacts to keys and a new size, and leaves the terminal as it was', async () => {
      const name = await sandbox()
      const program = [
        'import curses',
        'def main(screen):',
        '    while True:',
        '        screen.erase()',
        '        screen.addstr(2, 4, "size %d x %d" % (curses.COLS, curses.LINES))',
        '        screen.refresh()',
        '        key = screen.getch()',
        '        if key == curses.KEY_RESIZE: curses.update_lines_cols()',
        '        if key == curses.KEY_UP: return',
        'curses.wrapper(main)',
        'print("left by the up key")',
      ].join('\n')
      const inside = await server.thaw.sandboxes.get(name)
      await inside.files.write('screen.py', program)
      const outer = `${quote(process.execPath)} ${quote(script)} sandbox shell ${name} -- python3 screen.py`
      const local = new TestTerminal(['sh', '-c', `stty -a > "$0"; ${outer}; code=$?; stty -a > "$1"; echo "code $code"`, ...modeFiles()], {
        env: env(),
        cols: 90,
        rows: 25,
      })
      await local.see('\x1b[?1049h')
      await local.see('size 90 x 25')
      local.resize(120, 40)
      await local.see('120 x 40')
      // Arrow keys as terminals send them in application mode, which curses asks for.
      local.type('\x1bOA')
      await local.see('\x1b[?1049l')
      await local.see('left by the up key')
      await local.see('code 0')
      expect((await local.ended()).code).toBe(0)
      const [before, after] = lastModes.map((file) => readFileSync(file, 'utf8').replace(/^speed.*$/m, ''))
      expect(before).toContain(' echo')
      expect(after).toBe(before)
    })

    test('a program that is killed in the middle of its screen leaves no mess behind', async () => {
      const name = await sandbox()
      const shell = terminal('sandbox', 'shell', name, '--', 'sh', '-c', 'printf "\\033[?1049h\\033[?25lmidst"; exec sleep 600')
      await shell.see('midst')
      await server.thaw.sandboxes.delete(name)
      await shell.see('\x1b[?1049l')
      expect((await shell.ended()).code).toBe(1)
    })

    test('run -it is a terminal in a sandbox of its own', async () => {
      const run = terminal('run', '-it', image, 'sh', '-c', 'tty; read line; echo "got $line"; exit 6')
      await run.see('/dev/pts/')
      run.type('typed\n')
      await run.see('got typed')
      expect((await run.ended()).code).toBe(6)
      expect(await eventually(async () => (await server.thaw.sandboxes.list().all()).length === 0)).toBe(true)
    })

    test('shell without a terminal says what to do instead', async () => {
      const name = await sandbox()
      expect(await thaw(['sandbox', 'shell', name])).toMatchObject({ code: 2, stderr: expect.stringContaining('thaw sandbox exec') })
    })

    test('ssh logs in with the real ssh, knows the server, and ends with the exit code of what ran', async () => {
      const name = await sandbox()
      using dir = tempDir()
      const key = join(dir.path, 'key')
      spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
      const body = JSON.stringify({ name: `cli ${name}`, public_key: readFileSync(`${key}.pub`, 'utf8') })
      const registered = await fetch(`${server.url}/v1/ssh-keys`, { method: 'POST', headers: { 'content-type': 'application/json' }, body })
      expect(registered.status).toBe(201)
      const done = await thaw(['ssh', name, '-i', key, '--', 'echo through ssh; cat; exit 4'], 'piped')
      expect(done, done.stderr).toMatchObject({ code: 4, stdout: 'through ssh\npiped' })
      const shell = terminal('ssh', '-i', key, name)
      shell.type('stty size; exit 5\n')
      await shell.see('30 100')
      expect((await shell.ended()).code).toBe(5)
    })

    let lastModes: [string, string]
    function modeFiles(): [string, string] {
      const dir = tempDir()
      onTestFinished(() => dir[Symbol.dispose]())
      lastModes = [join(dir.path, 'before'), join(dir.path, 'after')]
      return lastModes
    }
  })
}

test('ssh to a server that does not listen for it says what to do instead', async () => {
  await using server = await startServer({ driver: 'process', ssh: { enabled: false } })
  const child = spawn(process.execPath, [script, 'ssh', 'nobody'], { env: { ...process.env, THAW_URL: server.url } })
  child.stdin.end()
  const [stderr, [code]] = await Promise.all([text(child.stderr), once(child, 'close')])
  expect({ code, stderr }).toEqual({ code: 1, stderr: expect.stringContaining('does not listen for SSH') })
})

function quote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

/** Whether a process of this host, also one in a sandbox, was started with exactly these words. */
function hasArguments(pid: number, words: string): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1') === words
  } catch {
    return false
  }
}
