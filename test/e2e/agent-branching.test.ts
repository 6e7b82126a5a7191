import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { askWorker, type Branch, branchOut } from '../../examples/agent-branching/main.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

const skip = await whyNoDriver('oci')

describe.skipIf(skip !== null)(`the example agent-branching${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer

  beforeAll(async () => {
    server = await startServer({ driver: 'oci' })
  })
  afterAll(() => server?.[Symbol.asyncDispose]())

  test('a living process goes on eight ways from the same memory, and the best is kept', async () => {
    interface State {
      pid: number
      loaded_at: number
      token: number
      now: number
    }
    const { parent, start, branches } = await branchOut(server.thaw)
    expect(branches).toHaveLength(8)
    expect(new Set(branches.map(({ plan, seed }) => `${plan} ${seed}`)).size).toBe(8)
    // Every branch found its own way, and none a longer one than it began with.
    expect(new Set(branches.map(({ length }) => length)).size).toBeGreaterThan(4)
    for (const { length } of branches) expect(length).toBeLessThanOrEqual(start)
    const best = branches[0] as Branch
    const [of, then] = [await askWorker<State>(best.sandbox), await askWorker<State>(parent)]
    // The same process with the same memory, which was loaded once.
    expect({ pid: of.pid, loaded_at: of.loaded_at, token: of.token }).toEqual({
      pid: then.pid,
      loaded_at: then.loaded_at,
      token: then.token,
    })
    expect(of.now).toBeCloseTo(best.length)
    expect(then.now).toBeCloseTo(start)
    const report = await best.sandbox.files.readText('/root/workspace/report.txt')
    expect(report.match(/loaded once/g)).toHaveLength(1)
    expect(report).toMatch(/half-way at .*\n.* got to .*\n$/)
    const alive = (await server.thaw.sandboxes.list().all()).map(({ id }) => id)
    expect(alive.sort()).toEqual([parent.id, best.sandbox.id].sort())
  })
})
