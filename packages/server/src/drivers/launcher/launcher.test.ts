import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { findProcesses } from '../processes.ts'
import { launch } from './launcher.ts'

const kept = ['keep', 'keep'] as const

function tempFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'thaw-launcher-'))
  onTestFinished(() => rmSync(folder, { recursive: true }))
  return folder
}

test('what a program prints, and how it ended', async () => {
  expect(await launch({ program: 'sh', args: ['-c', 'cat; echo wrong >&2; exit 3'], input: 'given', streams: [...kept] })).toEqual({
    ...{ code: 3, signal: null, stdout: 'given', stderr: 'wrong\n', error: null },
  })
  expect(await launch({ program: 'sh', args: ['-c', 'kill -9 $$'], streams: [...kept] })).toMatchObject({ code: null, signal: 'SIGKILL' })
})

test('only the end of long output is kept', async () => {
  const { stdout } = await launch({ program: 'sh', args: ['-c', 'head -c 1000000 /dev/zero | tr "\\0" x; echo end'], streams: [...kept] })
  expect(stdout).toHaveLength(64 * 1024)
  expect(stdout).toMatch(/xxxend\n$/)
})

test('a program that is not there is an answer', async () => {
  expect(await launch({ program: '/no/such/program', args: [], streams: [...kept] })).toMatchObject({
    code: null,
    error: { code: 'ENOENT' },
  })
})

test('files of the server are written to by the program, which has them to itself afterwards', async () => {
  const path = join(tempFolder(), 'log')
  const fd = openSync(path, 'a')
  try {
    await launch({ program: 'sh', args: ['-c', 'echo one; echo two >&2; echo three >&3'], streams: [fd, fd, fd] })
    await launch({ program: 'sh', args: ['-c', 'echo four'], streams: [fd, 'ignore'] })
  } finally {
    closeSync(fd)
  }
  expect(readFileSync(path, 'utf8')).toBe('one\ntwo\nthree\nfour\n')
  expect(await launch({ program: 'true', args: [], streams: [fd, 'ignore'] })).toMatchObject({ error: { code: 'ENOENT' } })
})

test('what takes too long, or is given up, is killed, with its group if it has one', async () => {
  expect(await launch({ program: 'sleep', args: ['60'], streams: [...kept], timeoutMs: 100 })).toMatchObject({ signal: 'SIGKILL' })
  const path = join(tempFolder(), 'pid')
  const ending = new AbortController()
  const script = `sleep 60 & echo $! >${path}; wait`
  const ended = launch({ program: 'sh', args: ['-c', script], streams: [...kept], group: true, signal: ending.signal })
  while (readPid(path) === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  const pid = readPid(path)
  ending.abort()
  expect(await ended).toMatchObject({ signal: 'SIGKILL' })
  expect(findProcesses((candidate) => candidate === pid && isRunning(pid))).toEqual([])
  expect(() => launch({ program: 'true', args: [], streams: [...kept], signal: ending.signal })).toThrow()
})

test('when the launcher is killed, what it was to do fails, and the next one works', async () => {
  const launched = findProcesses((pid) => commandLine(pid).includes('launcher-process') && parentOf(pid) === process.pid)
  expect(launched).toHaveLength(1)
  const waiting = launch({ program: 'sleep', args: ['0.2'], streams: [...kept] })
  process.kill(launched[0] as number, 'SIGKILL')
  expect((await waiting).error?.message).toMatch(/ended/)
  expect(await launch({ program: 'echo', args: ['again'], streams: [...kept] })).toMatchObject({ code: 0, stdout: 'again\n' })
})

function read(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}

const readPid = (path: string) => Number(read(path).trim())
const commandLine = (pid: number) => read(`/proc/${pid}/cmdline`)
const parentOf = (pid: number) => Number(/^PPid:\s+(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1])
const isRunning = (pid: number) => !/^State:\s+[ZX]/m.test(read(`/proc/${pid}/status`))
