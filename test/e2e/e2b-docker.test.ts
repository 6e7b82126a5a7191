import { SandboxError } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { dockerdMissing, startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { e2bSandbox } from '../support/e2b.ts'
import { startServer, type TestServer } from '../support/server.ts'

const skip = dockerdMissing()

describe.skipIf(skip !== null)(`the client e2b over docker${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let engine: TestDockerd
  let server: TestServer

  beforeAll(async () => {
    engine = await startDockerd()
    server = await startServer({ driver: 'docker', docker: { host: engine.host } })
  })
  afterAll(async () => {
    await server?.[Symbol.asyncDispose]()
    await engine?.[Symbol.asyncDispose]()
  })

  test('commands, files, pausing, and a snapshot of the files', async () => {
    await using sandbox = await e2bSandbox(server)
    expect((await sandbox.commands.run('whoami; pwd')).stdout).toBe('user\n/home/user\n')
    await sandbox.files.write('kept', 'yes')
    expect(await sandbox.files.read('kept')).toBe('yes')
    expect(await sandbox.pause()).toBe(true)
    expect(await sandbox.isRunning()).toBe(false)
    await sandbox.connect()
    // A container's memory cannot be copied by its engine.
    await expect(sandbox.fork()).rejects.toThrow(SandboxError)
    await expect(sandbox.fork()).rejects.toThrow(/memory/)
    const { snapshotId } = await sandbox.createSnapshot()
    await using again = await e2bSandbox(server, { template: snapshotId })
    expect((await again.commands.run('whoami; cat kept')).stdout).toBe('user\nyes')
  })
})
