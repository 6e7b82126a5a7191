import { once } from 'node:events'
import { createServer, type IncomingMessage, request } from 'node:http'
import { performServerHandshake, type ServerHttp2Stream } from 'node:http2'
import { type Duplex, duplexPair, Readable } from 'node:stream'
import { expect, test } from 'vitest'
import { DialAgent } from '../agent/dial-agent.ts'
import { Bridge, type BridgeConnection } from './bridge.ts'

/** A bridge to what `serve` does with each connection; `programs` gets each program that it starts. */
function bridgeTo(serve: (stream: Duplex) => void, programs: Duplex[] = []): Bridge {
  return new Bridge(async () => {
    const [here, there] = duplexPair()
    programs.push(here)
    performServerHandshake(there).on('stream', (stream: ServerHttp2Stream) => {
      stream.respond({ ':status': 200 })
      serve(stream)
    })
    return Object.assign(here, { stderr: '' }) as BridgeConnection
  })
}

/** Sends back all that came, once nothing more comes. */
function echo(stream: Duplex): void {
  const pieces: Buffer[] = []
  stream.on('data', (piece: Buffer) => pieces.push(piece)).once('end', () => stream.end(Buffer.concat(pieces)))
}

async function textOf(stream: Readable): Promise<string> {
  return Buffer.concat(await stream.toArray()).toString()
}

test('what is written together arrives as it was, also when its last piece is empty', async () => {
  const bridge = bridgeTo(echo)
  for (const size of [0, 1, 5, 300, 5_000, 40_000, 100_000]) {
    const [head, body] = [`PUT /files?size=${size} HTTP/1.1\r\nhost: agent\r\n\r\n`, 'x'.repeat(size)]
    const stream = await bridge.dial('/socket')
    stream.cork()
    stream.write(head, 'latin1')
    stream.write(Buffer.from(body))
    stream.write('6f6b', 'hex')
    const written = new Promise((resolve) => stream.write('', 'latin1', resolve))
    stream.uncork()
    await written
    stream.end()
    expect(await textOf(stream)).toBe(`${head}${body}ok`)
  }
  bridge.close()
})

test('a request whose body is piped arrives as it was', async () => {
  const server = createServer((received, answer) => received.pipe(answer))
  const bridge = bridgeTo((stream) => server.emit('connection', stream))
  for (const keepAlive of [false, true]) {
    const agent = new DialAgent(() => bridge.dial('/socket'), { keepAlive })
    // The second one of those that are kept is on the connection of the first.
    for (let count = 0; count < 2; count++) {
      const sent = request({ agent, method: 'PUT', path: '/files?path=%2Froot%2Fa.txt', headers: { 'content-length': 5 } })
      Readable.from([Buffer.from('hello')]).pipe(sent)
      const [answer] = (await once(sent, 'response')) as [IncomingMessage]
      expect(answer.statusCode).toBe(200)
      expect(await textOf(answer)).toBe('hello')
    }
    agent.destroy()
  }
  bridge.close()
})

test('any number of connections goes through one program, and another is started after it has ended', async () => {
  const warnings: Error[] = []
  const warn = (warning: Error) => warnings.push(warning)
  process.on('warning', warn)
  const programs: Duplex[] = []
  const bridge = bridgeTo(echo, programs)
  const ask = async (text: string) => {
    const stream = await bridge.dial('/socket')
    stream.end(text)
    return textOf(stream)
  }
  for (let count = 0; count < 20; count++) expect(await ask(`number ${count}`)).toBe(`number ${count}`)
  expect(programs.length).toBe(1)
  expect(warnings).toEqual([])
  process.off('warning', warn)

  const [first] = programs as [Duplex]
  const open = await bridge.dial('/socket')
  open.on('error', () => undefined)
  first.destroy()
  await once(open, 'close')
  expect(await ask('again')).toBe('again')
  expect(programs.length).toBe(2)
  bridge.close()
})
