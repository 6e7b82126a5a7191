import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import ssh2, { type ClientChannel, type ServerChannel } from 'ssh2'
import { expect, onTestFinished, test } from 'vitest'
import { eventually } from '../../../../../test/support/eventually.ts'
import { ChannelOutput } from './channel.ts'

/** A real server and a real client, and both ends of one channel between them. */
async function channelPair(): Promise<{ ours: ServerChannel; theirs: ClientChannel }> {
  const { private: key } = ssh2.utils.generateKeyPairSync('ed25519')
  const opened = Promise.withResolvers<ServerChannel>()
  const server = new ssh2.Server({ hostKeys: [key] }, (client) => {
    client.on('authentication', (context) => context.accept())
    client.on('session', (accept) => accept().on('shell', (take) => opened.resolve(take())))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const client = new ssh2.Client()
  onTestFinished(() => {
    client.end()
    server.close()
  })
  client.connect({ host: '127.0.0.1', port: (server.address() as AddressInfo).port, username: 'anyone', password: '' })
  await once(client, 'ready')
  const theirs = await new Promise<ClientChannel>((resolve, reject) =>
    client.shell(false, (error, channel) => (error ? reject(error) : resolve(channel))),
  )
  return { ours: await opened.promise, theirs }
}

test('each piece arrives once, in its stream, however often the client makes the server wait', async () => {
  const { ours, theirs } = await channelPair()
  const output = new ChannelOutput(ours)
  const received = { stdout: 0, stderr: 0 }
  theirs.on('data', (bytes: Buffer) => {
    received.stdout += bytes.length
  })
  theirs.stderr.on('data', (bytes: Buffer) => {
    received.stderr += bytes.length
  })
  const size = 5 * 1024 * 1024
  for (const [i, name] of (['stdout', 'stderr', 'stderr', 'stdout'] as const).entries()) {
    theirs.pause()
    theirs.stderr.pause()
    let isTaken = false
    const written = output.write(name, Buffer.alloc(size, i)).then(() => {
      isTaken = true
    })
    expect(await eventually(() => (ours as unknown as { outgoing: { window: number } }).outgoing.window === 0)).toBe(true)
    expect(isTaken).toBe(false)
    theirs.resume()
    theirs.stderr.resume()
    await written
  }
  expect(await eventually(() => received.stdout >= 2 * size && received.stderr >= 2 * size)).toBe(true)
  const closed = once(theirs, 'close')
  ours.end()
  await closed
  expect(received).toEqual({ stdout: 2 * size, stderr: 2 * size })
})

test('what is written to a client that has gone is given up', async () => {
  const { ours, theirs } = await channelPair()
  const output = new ChannelOutput(ours)
  theirs.pause()
  const written = output.write('stdout', Buffer.alloc(5 * 1024 * 1024))
  ours.resume()
  theirs.close()
  await written
  await output.write('stderr', Buffer.from('too late'))
})
