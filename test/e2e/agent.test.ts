import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { expect, test } from 'vitest'
import { agentProgram, collect, frame, type Json, type Message, startAgent } from '../support/agent.ts'
import { eventually } from '../support/eventually.ts'

const isRoot = process.getuid?.() === 0
const user = (name: string) => ({ authorization: `Basic ${Buffer.from(`${name}:`).toString('base64')}` })

async function nextEvent(messages: AsyncGenerator<Message>): Promise<Json> {
  const { value, done } = await messages.next()
  if (done) throw new Error('the stream has ended')
  return value.message.event
}

test('a process streams what it prints and tells how it ended', async () => {
  await using agent = await startAgent()
  const ended = await agent.shell('printf out; printf err >&2; exit 7')
  expect(ended.stdout.toString()).toBe('out')
  expect(ended.stderr.toString()).toBe('err')
  expect(ended.end).toEqual({ exitCode: 7, exited: true, status: 'exit status 7', error: 'exit status 7' })
  expect(ended.start).toEqual({ pid: expect.any(Number), offset: { stdout: 0, stderr: 0 } })
  expect(ended.error).toBeUndefined()
})

test('a reader that lost its stream attaches again at an offset and misses nothing', async () => {
  await using agent = await startAgent()
  const first = await agent.stream('process.Process/Start', { process: { cmd: 'cat' } })
  const { pid } = (await nextEvent(first.messages)).start
  const send = (text: string) =>
    agent.rpc('process.Process/SendInput', { process: { pid }, input: { stdin: Buffer.from(text).toString('base64') } })
  expect((await send('one ')).status).toBe(200)
  expect((await nextEvent(first.messages)).data.stdout).toBe(Buffer.from('one ').toString('base64'))
  first.close()
  await send('two ')
  const second = await agent.stream('process.Process/Connect', { process: { pid }, offset: { stdout: 4 } })
  expect((await nextEvent(second.messages)).start.offset.stdout).toBe(4)
  await send('three')
  await agent.rpc('process.Process/CloseStdin', { process: { pid } })
  const ended = await collect(second.messages)
  expect(ended.stdout.toString()).toBe('two three')
  expect(ended.end.exitCode).toBe(0)

  const late = await agent.stream('process.Process/Connect', { process: { pid }, offset: { stdout: 0 } })
  const again = await collect(late.messages)
  expect(again.stdout.toString()).toBe('one two three')
  expect(again.end).toEqual(ended.end)
})

test('a slow reader loses nothing: the process waits for it', async () => {
  await using agent = await startAgent()
  const size = 24 << 20
  const stream = await agent.stream('process.Process/Start', {
    process: { cmd: '/bin/sh', args: ['-c', `head -c ${size} /dev/zero | tr '\\0' x; echo done >&2`] },
    stdin: false,
  })
  const { pid } = (await nextEvent(stream.messages)).start
  // Nobody takes bytes now, so the program must still be there however long this takes.
  await agent.shell('head -c 10000000 /dev/zero | sha256sum')
  const { json } = await agent.rpc('process.Process/List')
  expect(json.processes.map((item: { pid: number }) => item.pid)).toContain(pid)
  const ended = await collect(stream.messages)
  expect(ended.stdout.length).toBe(size)
  expect(ended.stderr.toString()).toBe('done\n')
})

test('without a reader a process goes on, and the last mebibyte is kept', async () => {
  await using agent = await startAgent()
  const stream = await agent.stream('process.Process/Start', { process: { cmd: '/bin/sh', args: ['-c', 'read x; seq 1000000'] } })
  const { pid } = (await nextEvent(stream.messages)).start
  stream.close()
  await agent.rpc('process.Process/SendInput', { process: { pid }, input: { stdin: 'Cg==' } })
  const gone = () => agent.rpc('process.Process/List').then(({ json }) => json.processes.length === 0)
  expect(await eventually(gone)).toBe(true)
  const kept = await collect((await agent.stream('process.Process/Connect', { process: { pid }, offset: { stdout: 0 } })).messages)
  expect(kept.stdout.length).toBe(1 << 20)
  expect(kept.start.offset.stdout + kept.stdout.length).toBe(6_888_896)
  expect(kept.stdout.toString().endsWith('999999\n1000000\n')).toBe(true)
})

test('the deadline of a call kills the process and its children', async () => {
  await using agent = await startAgent()
  const file = `${agent.folder}/pid`
  const ended = await agent.shell(`sleep 1000 & echo $! > ${file}; wait`, { 'connect-timeout-ms': '500' })
  expect(ended.error.code).toBe('deadline_exceeded')
  const left = await agent.shell(`while kill -0 $(cat ${file}) 2>/dev/null; do :; done; echo gone`)
  expect(left.stdout.toString()).toBe('gone\n')
})

test('a background child that keeps the output open does not keep the end from being told', async () => {
  await using agent = await startAgent()
  const ended = await agent.shell('sleep 1000 & echo $!')
  expect(ended.end.exitCode).toBe(0)
  const alive = await agent.shell(`kill -0 ${ended.stdout.toString().trim()} && echo alive`)
  expect(alive.stdout.toString()).toBe('alive\n')
})

test('what cannot be started is refused with the reason', async () => {
  await using agent = await startAgent()
  const start = async (message: unknown, headers = {}) =>
    (await collect((await agent.stream('process.Process/Start', message, headers)).messages)).error
  expect(await start({ process: { cmd: 'no-such-program' } })).toEqual({
    code: 'invalid_argument',
    message: expect.stringContaining("command 'no-such-program' not found in PATH"),
    details: [{ type: 'thaw.agent.CommandNotFound', value: '' }],
  })
  expect(await start({ process: { cmd: 'ls', cwd: '/no/such' } })).toEqual({
    code: 'invalid_argument',
    message: "cwd '/no/such' does not exist",
  })
  expect((await start({ process: { cmd: 'ls' } }, user('nobody-here'))).code).toBe('unauthenticated')
  expect((await start({ process: { cmd: 'ls', envs: { 'A=B': 'c' } } })).code).toBe('invalid_argument')
  expect((await start({ process: { cmd: 'ls' }, pty: { size: { cols: 0, rows: 1 } } })).code).toBe('invalid_argument')
  expect((await agent.rpc('process.Process/SendInput', { process: { pid: 999_999_999 }, input: { stdin: '' } })).json.code).toBe(
    'not_found',
  )
  expect((await agent.rpc('process.Process/SendInput', { process: { pid: 1 }, input: { stdin: '%%' } })).json.code).toBe('invalid_argument')
  expect((await agent.rpc('process.Process/SendSignal', '{')).status).toBe(400)
})

test('a terminal has job control, a size that changes, and an end although a job goes on', async () => {
  await using agent = await startAgent()
  const stream = await agent.stream('process.Process/Start', {
    process: { cmd: '/bin/bash', args: ['--norc', '-i'] },
    pty: { size: { cols: 91, rows: 17 } },
  })
  const { pid } = (await nextEvent(stream.messages)).start
  const rest = collect(stream.messages)
  const send = (text: string) =>
    agent.rpc('process.Process/SendInput', { process: { pid }, input: { pty: Buffer.from(text).toString('base64') } })
  await send('stty size; tty; sleep 1000 & jobs -l\n')
  expect((await agent.rpc('process.Process/Update', { process: { pid }, pty: { size: { cols: 120, rows: 40 } } })).status).toBe(200)
  await send('echo "$(stty size) $TERM"; exit 3\n')
  const ended = await rest
  const text = ended.pty.toString()
  expect(text).toContain('/dev/pts/')
  expect(text).toMatch(/\[1\]\+ +\d+ Running/)
  expect(text).toContain('40 120 xterm-256color')
  expect(ended.end.exitCode).toBe(3)
})

test('input comes in a stream, and a call that the process does not read ends at its deadline', async () => {
  await using agent = await startAgent()
  const stream = await agent.stream('process.Process/Start', { process: { cmd: 'sha256sum' }, tag: 'sum' })
  const rest = collect(stream.messages)
  const data = Buffer.alloc(1 << 20, 'abc')
  const body = Buffer.concat([
    frame({ start: { process: { tag: 'sum' } } }),
    frame({ data: { input: { stdin: data.toString('base64') } } }),
    frame({ keepalive: {} }),
    frame({ data: { input: { stdin: data.toString('base64') } } }),
  ])
  const answer = await agent.call('/process.Process/StreamInput', {
    method: 'POST',
    headers: { 'content-type': 'application/connect+json' },
    body,
  })
  expect(answer.body.toString()).not.toContain('error')
  await agent.rpc('process.Process/CloseStdin', { process: { tag: 'sum' } })
  const sum = createHash('sha256').update(data).update(data).digest('hex')
  expect((await rest).stdout.toString()).toBe(`${sum}  -\n`)

  const deaf = await agent.stream('process.Process/Start', { process: { cmd: 'sleep', args: ['1000'] } })
  const { pid } = (await nextEvent(deaf.messages)).start
  const message = { process: { pid }, input: { stdin: data.toString('base64') } }
  const late = await agent.rpc('process.Process/SendInput', message, { 'connect-timeout-ms': '300' })
  expect(late.json).toEqual({ code: 'deadline_exceeded', message: expect.stringContaining('of 1048576 bytes') })
})

test('after init every call needs the token, and a second init replaces token and variables', async () => {
  await using agent = await startAgent()
  const init = (body: unknown, token = '') =>
    agent.call('/init', { method: 'POST', headers: { 'x-access-token': token }, body: JSON.stringify(body) })
  const secret = `${agent.folder}/run/secret`
  const file = { path: secret, contentBase64: Buffer.from('s3').toString('base64'), mode: '0600' }
  expect((await init({ accessToken: 'first', envVars: { THE_COLOR: 'red' }, files: [file] })).status).toBe(204)
  expect(statSync(secret).mode & 0o777).toBe(0o600)
  expect((await agent.call('/health')).status).toBe(204)
  expect((await agent.call('/envs')).status).toBe(401)
  expect((await agent.rpc('process.Process/List', {}, { 'x-access-token': 'wrong' })).json.code).toBe('unauthenticated')
  expect((await agent.shell('echo $THE_COLOR', { 'x-access-token': 'first' })).stdout.toString()).toBe('red\n')
  expect((await init({ accessToken: 'second', envVars: { THE_SHAPE: 'round' } })).status).toBe(401)
  expect((await init({ accessToken: 'second', envVars: { THE_SHAPE: 'round' } }, 'first')).status).toBe(204)
  expect((await agent.shell('echo $THE_COLOR$THE_SHAPE', { 'x-access-token': 'second' })).stdout.toString()).toBe('round\n')
  expect((await agent.call('/envs', { headers: { 'x-access-token': 'first' } })).status).toBe(401)

  const sign = (text: string) => `v1_${createHash('sha256').update(text).digest('base64').replace(/=+$/, '')}`
  const signed = (path: string, expiry: number) =>
    `/files?path=${encodeURIComponent(path)}&signature=${encodeURIComponent(sign(`${path}:read::second:${expiry}`))}&signature_expiration=${expiry}`
  expect((await agent.call(signed(secret, 9_999_999_999))).body.toString()).toBe('s3')
  expect((await agent.call(signed(secret, 1))).status).toBe(401)
  expect((await agent.call(signed(secret, 9_999_999_999), { method: 'PUT', body: 'x' })).status).toBe(401)
})

test('the main process of an init is started once', async () => {
  await using agent = await startAgent()
  const body = JSON.stringify({ main: { cmd: 'sleep', args: ['1000'] } })
  for (let i = 0; i < 2; i++) expect((await agent.call('/init', { method: 'POST', body })).status).toBe(204)
  const { json } = await agent.rpc('process.Process/List')
  expect(json.processes).toHaveLength(1)
  expect(json.processes[0]).toMatchObject({ tag: 'main', config: { cmd: 'sleep' } })
})

test('the end of the agent ends its processes, also one that ignores SIGTERM and left its session', async () => {
  const agent = await startAgent()
  const { stdout } = await agent.shell(`setsid sh -c 'trap "" TERM HUP; echo $$; while :; do sleep 1; done' &`)
  const pid = Number(stdout.toString())
  expect(process.kill(pid, 0)).toBe(true)
  await agent[Symbol.asyncDispose]()
  expect(() => process.kill(pid, 0)).toThrow('ESRCH')
  expect(agent.child.exitCode).toBe(0)
})

test.runIf(isRoot || process.env.CI !== undefined)(
  'as PID 1 it reaps every orphan and keeps the exit status of its own processes',
  async () => {
    await using agent = await startAgent({ before: ['unshare', ...(isRoot ? [] : ['--map-root-user']), '--pid', '--fork', '--mount-proc'] })
    const codes = Array.from({ length: 60 }, (_, i) => i)
    const ended = await Promise.all(codes.map((code) => agent.shell(`for i in 1 2 3; do (sleep 0.01 &) ; done; exit ${code}`)))
    expect(ended.map(({ end }) => end.exitCode)).toEqual(codes)
    const zombies = async () => (await agent.shell("grep -l '^State:.Z' /proc/[0-9]*/status; true")).stdout.toString() === ''
    expect(await eventually(zombies)).toBe(true)
    expect((await agent.shell('cat /proc/1/comm')).stdout.toString()).toContain('thaw-agent')
  },
)

test('a second agent does not take the socket of one that lives', async () => {
  await using agent = await startAgent()
  const other = spawn(agentProgram, ['serve', '--socket', agent.socketPath], { stdio: 'ignore' })
  expect((await once(other, 'exit'))[0]).toBe(1)
  expect((await agent.call('/health')).status).toBe(204)
})
