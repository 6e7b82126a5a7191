import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { openCgroups } from './cgroup.ts'

/** Trees as the kernel lays them out; both kinds of hosts exist, and one machine is only one of them. */

let root: string

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'cgroup-'))
})
afterEach(() => rmSync(root, { recursive: true, force: true }))

function write(path: string, text: string): void {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), text)
}
const read = (path: string) => readFileSync(join(root, path), 'utf8')

const resources = { memory_mib: 64, pids: 32, cpus: 0.5, tmp_mib: 1 }

describe('a v2 host', () => {
  beforeEach(() => write('cgroup.controllers', 'cpuset cpu io memory hugetlb pids\n'))

  test('is known by its controllers, and lacks none', () => {
    expect(openCgroups(root)).toMatchObject({ version: 2, missing: [], swapLimit: true })
  })

  test('names the controllers that it lacks', () => {
    write('cgroup.controllers', 'cpuset io\n')
    expect(openCgroups(root).missing).toEqual(['memory', 'pids', 'cpu'])
  })

  test('tells memory, processes, kills and children of a group', () => {
    write('thaw/a/memory.current', '1048576\n')
    write('thaw/a/memory.events', 'low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n')
    write('thaw/a/cgroup.procs', '12\n345\n')
    const cgroups = openCgroups(root)
    expect(cgroups.memoryBytes('thaw/a')).toBe(1_048_576)
    expect(cgroups.oomKills('thaw/a')).toBe(1)
    expect(cgroups.processes('thaw/a')).toEqual([12, 345])
    expect(cgroups.children('thaw')).toEqual(['a'])
  })

  test('a group that is gone has nothing', () => {
    const cgroups = openCgroups(root)
    expect([cgroups.memoryBytes('x'), cgroups.oomKills('x'), cgroups.processes('x'), cgroups.children('x')]).toEqual([null, 0, [], []])
    cgroups.remove('x')
  })

  test('makes a group below groups that hand their controllers down', () => {
    for (const group of ['', 'thaw/', 'thaw/server/']) write(`${group}cgroup.subtree_control`, '')
    const cgroups = openCgroups(root)
    cgroups.create('/thaw/server/a')
    for (const group of ['', 'thaw/', 'thaw/server/']) expect(read(`${group}cgroup.subtree_control`)).toBe('+cpu')
    expect(cgroups.children('/thaw/server')).toEqual(['a'])
    expect(cgroups.entrances('/thaw/server/a')).toEqual([join(root, 'thaw/server/a/cgroup.procs')])
  })

  test('limits memory without swap, processes and processor time', () => {
    mkdirSync(join(root, 'thaw/a'), { recursive: true })
    openCgroups(root).limit('thaw/a', resources)
    expect(['memory.max', 'memory.swap.max', 'pids.max', 'cpu.max'].map((file) => read(`thaw/a/${file}`))).toEqual([
      '67108864',
      '0',
      '32',
      '10000 20000',
    ])
  })
})

describe('a v1 host', () => {
  beforeEach(() => {
    for (const tree of ['memory', 'pids', 'cpu', 'freezer']) mkdirSync(join(root, tree, 'thaw/a'), { recursive: true })
  })

  test('has a tree for each controller, and names those that it lacks', () => {
    expect(openCgroups(root)).toMatchObject({ version: 1, missing: [], swapLimit: false })
    rmSync(join(root, 'pids'), { recursive: true })
    expect(openCgroups(root).missing).toEqual(['pids'])
  })

  test('tells memory, processes, kills and children of a group', () => {
    write('memory/thaw/a/memory.usage_in_bytes', '4096\n')
    write('memory/thaw/a/memory.oom_control', 'oom_kill_disable 0\nunder_oom 0\noom_kill 3\n')
    write('memory/thaw/a/cgroup.procs', '7\n')
    const cgroups = openCgroups(root)
    expect([cgroups.memoryBytes('thaw/a'), cgroups.oomKills('thaw/a'), cgroups.processes('thaw/a'), cgroups.children('thaw')]).toEqual([
      4096,
      3,
      [7],
      ['a'],
    ])
  })

  test.each([
    ['up', '1048576'],
    ['down', '1073741824'],
  ])('limits of memory, and of memory and swap together, go %s', (_direction, now) => {
    write('memory/memory.memsw.limit_in_bytes', '0')
    write('memory/thaw/a/memory.limit_in_bytes', now)
    write('memory/thaw/a/memory.memsw.limit_in_bytes', now)
    openCgroups(root).limit('thaw/a', resources)
    expect(read('memory/thaw/a/memory.limit_in_bytes')).toBe('67108864')
    expect(read('memory/thaw/a/memory.memsw.limit_in_bytes')).toBe('67108864')
    expect(read('pids/thaw/a/pids.max')).toBe('32')
    expect(read('cpu/thaw/a/cpu.cfs_quota_us')).toBe('10000')
    expect(read('cpu/thaw/a/cpu.cfs_period_us')).toBe('20000')
    openCgroups(root).limit('thaw/a', { ...resources, cpus: 0.02 })
    expect([read('cpu/thaw/a/cpu.cfs_quota_us'), read('cpu/thaw/a/cpu.cfs_period_us')]).toEqual(['2000', '100000'])
  })

  test('remove takes the group out of every tree, with what is below it', () => {
    mkdirSync(join(root, 'memory/thaw/a/inner'))
    const cgroups = openCgroups(root)
    cgroups.remove('thaw/a')
    expect(cgroups.children('thaw')).toEqual([])
  })
})
