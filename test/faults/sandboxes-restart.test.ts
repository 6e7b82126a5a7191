import { once } from 'node:events'
import { request as sendRequest } from 'node:http'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { firstProcess } from '../support/first-process.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { startChildServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'
import { tempDir } from '../support/temp.ts'

/** "At once", for a machine that has other things to do: not after the time-outs of one sandbox after the other. */
const promptlyMs = 25_000

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `a server that ends with clients at work, over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
        test(`${signal}: clients are let go, the next server starts although agents do not answer, and takes over what lives`, {
          timeout: 120_000,
        }, async () => {
          using dir = tempDir()
          const dataDir = join(dir.path, 'data')
          const first = await startChildServer(dataDir, { driver })
          const api = new Api(first.url)
          const [busy, ...silent] = await Promise.all(Array.from({ length: 4 }, async () => (await api.sandbox({ ports: 'all' })).id))
          const id = busy as string
          await api.stdout(id, 'cd; truncate -s 2G large; (while true; do sleep 0.1; done) & echo $! > loop')

          using client = await StreamClient.open(first.url, id)
          client.send({ type: 'exec', id: 'e', command: 'sleep 64' })
          client.send({ type: 'watch', id: 'w', path: '/tmp' })
          for (const name of ['e', 'w']) await client.event('started', { id: name })
          const download = sendRequest(`${first.url}/v1/sandboxes/${id}/files?path=large`, { agent: false }).end()
          const [answer] = await once(download, 'response')
          await once(answer, 'readable')
          answer.on('error', () => undefined)
          const cutOff = new Promise((resolve) => answer.once('close', resolve))
          const upload = sendRequest(`${first.url}/v1/sandboxes/${id}/files?path=in/half`, { agent: false, method: 'PUT' })
          const uploaded = new Promise((resolve) => upload.on('error', resolve).on('response', resolve))
          upload.write('half of it')
          expect(await eventually(async () => (await api.exec(id, 'ls -A in')).stdout !== '')).toBe(true)
          const waiting = api.send('POST', `/v1/sandboxes/${id}/exec`, { command: 'sleep 65' }).catch((error: Error) => error)

          for (const one of silent) process.kill(firstProcess(dataDir, one), 'SIGSTOP')
          const exited = once(first.process, 'exit')
          process.kill(first.process.pid as number, signal)
          expect(await Promise.race([exited.then(() => true), later(promptlyMs)])).toBe(true)
          answer.resume()
          await Promise.all([client.closed, cutOff, uploaded, waiting])

          const begun = performance.now()
          await using second = await startChildServer(dataDir, { driver })
          expect(performance.now() - begun).toBeLessThan(promptlyMs)
          const after = new Api(second.url)
          expect(await after.stdout(id, 'cd; kill -0 $(cat loop) && ls -A in')).toBe('')
          expect((await after.item(id)).state).toBe('running')

          // Those whose agents stand still: told so, woken, or deleted.
          const [woken, deleted, told] = silent as [string, string, string]
          if (driver === 'oci') {
            expect((await after.send('POST', `/v1/sandboxes/${told}/exec`, { command: 'true', timeout_ms: 500 })).body.error.code).toBe(
              'sandbox_unavailable',
            )
            process.kill(firstProcess(dataDir, woken), 'SIGCONT')
          }
          expect(
            await eventually(
              async () => (await after.send('POST', `/v1/sandboxes/${woken}/exec`, { command: 'true', timeout_ms: 1000 })).status === 200,
            ),
          ).toBe(true)
          const before = performance.now()
          for (const one of [deleted, told, woken, id]) expect((await after.send('DELETE', `/v1/sandboxes/${one}`)).status).toBe(204)
          expect(performance.now() - before).toBeLessThan(promptlyMs)
          await second[Symbol.asyncDispose]()
          expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
        })
      }
    },
  )
}

function later(timeoutMs: number): Promise<boolean> {
  return new Promise((resolve) => setTimeout(() => resolve(false), timeoutMs).unref())
}
