import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { firstProcess } from '../support/first-process.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

/** SANDBOX_CYCLES=1000 for the long form. */
const cycles = Number(process.env.SANDBOX_CYCLES ?? 100)
const abreast = 16
const skip = await whyNoDriver('oci')

test.skipIf(skip !== null)(
  `bombs and floods stay inside of their sandbox; ${cycles} sandboxes come and go, ${abreast} at a time, and leave nothing`,
  async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    await using server = await startChildServer(dataDir, { driver: 'oci' })
    const api = new Api(server.url)
    // Also where an expectation fails: sandboxes outlive their server.
    await using _all = {
      [Symbol.asyncDispose]: async () => {
        if (server.process.exitCode !== null) return
        const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
        for (const { id } of items) await api.send('DELETE', `/v1/sandboxes/${id}`)
      },
    }
    const rss = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${server.process.pid}/status`, 'latin1'))?.[1]) / 1024
    const neighbour = (await api.sandbox()).id

    // Fault 36.
    const forks = (await api.sandbox({ resources: { pids: 64 } })).id
    const bomb = api.exec(forks, 'b() { b | b & }; b; sleep 2', { timeout_ms: 10_000 })
    expect(await api.stdout(neighbour, 'echo well')).toBe('well\n')
    const { status, body } = await api.send('POST', `/v1/sandboxes/${forks}/exec`, { command: 'true', timeout_ms: 5000 })
    expect(status === 200 || body.error.fix !== '').toBe(true)
    expect((await bomb).stderr).toContain('Cannot fork')
    expect((await api.item(forks)).state).toBe('running')

    // Fault 37: a process that is not the first one of its sandbox.
    const memory = (await api.sandbox({ resources: { memory_mib: 64 } })).id
    expect((await api.exec(memory, ['python3', '-c', 'x = b"x" * (512 << 20)'])).exit_code).toBe(137)
    expect(await api.stdout(memory, 'echo it goes on')).toBe('it goes on\n')

    // Fault 42.
    const flood = await api.exec(neighbour, 'head -c 100000000 /dev/zero', { encoding: 'base64' })
    expect([flood.exit_code, flood.truncated, Buffer.from(flood.stdout, 'base64').length]).toEqual([0, true, 64 << 20])
    for (const [bad, status, code] of [
      ['', 400, 'invalid_request'],
      ['/', 400, 'invalid_request'],
      ['/no/such', 422, 'command_not_found'],
    ]) {
      const refused = await api.send('POST', `/v1/sandboxes/${neighbour}/exec`, { command: [bad] })
      expect([bad, refused.status, refused.body.error?.code]).toEqual([bad, status, code])
    }
    for (const wrong of [{ cwd: '/no/such' }, { user: 'no-such-user' }, { env: { 'A=B': '' } }, { timeout_ms: -1 }]) {
      const refused = await api.send('POST', `/v1/sandboxes/${neighbour}/exec`, { command: 'true', ...wrong })
      expect([wrong, refused.status]).toEqual([wrong, 400])
    }

    // Little commands leave nothing of themselves, neither here nor inside.
    const descriptors = (pid: number) => readdirSync(`/proc/${pid}/fd`).length
    const agent = firstProcess(dataDir, neighbour)
    for (let round = 0; round < 10; round++) await Promise.all(Array.from({ length: abreast }, () => api.stdout(neighbour, 'true')))
    const [inside, outside] = [descriptors(agent), descriptors(server.process.pid as number)]
    for (let round = 0; round < 20; round++) await Promise.all(Array.from({ length: abreast }, () => api.stdout(neighbour, 'true')))
    expect(await eventually(() => descriptors(agent) <= inside + 8 && descriptors(server.process.pid as number) <= outside + 8)).toBe(true)
    expect(Number(await api.stdout(neighbour, 'ls -d /proc/[0-9]* | wc -l'))).toBeLessThan(6)

    const wrong: string[] = []
    let left = cycles
    const lane = async () => {
      while (left-- > 0) {
        const made = await api.send('POST', '/v1/sandboxes', { resources: { memory_mib: 64 } })
        const id = made.body.item?.id
        if (made.status !== 201) {
          wrong.push(`create ${JSON.stringify(made.body)}`)
          continue
        }
        const ran = await api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'echo hi' })
        if (ran.body.stdout !== 'hi\n') wrong.push(`exec ${JSON.stringify(ran.body)}`)
        const deleted = await api.send('DELETE', `/v1/sandboxes/${id}`)
        if (deleted.status !== 204) wrong.push(`delete ${JSON.stringify(deleted.body)}`)
      }
    }
    await Promise.all(Array.from({ length: abreast }, lane))
    expect(wrong).toEqual([])
    expect(rss()).toBeLessThan(900)
    for (const id of [neighbour, forks, memory]) expect((await api.send('DELETE', `/v1/sandboxes/${id}`)).status).toBe(204)
    await server[Symbol.asyncDispose]()
    expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
  },
  120_000 + cycles * 1000,
)
