import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { webServerFolder } from '../support/web-server.ts'

const kib = 1024
const mib = 1024 * kib

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`WebSockets to functions over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    beforeAll(async () => {
      server = await startServer({ driver, limits: { websocket_max_message_bytes: 256 * kib, websocket_stall_ms: 500 } })
    })
    afterAll(() => server[Symbol.asyncDispose]())

    let made = 0
    /** A function that nobody else uses, and a socket to it that has been greeted. */
    async function open() {
      const name = `sockets${++made}`
      await server.thaw.functions.create({
        name,
        runtime: 'node',
        contract: 'http',
        code: { dir: webServerFolder() },
        scaling: { concurrency: 10, max_instances: 1 },
      } as never)
      const socket = new WebSocket(`${server.url.replace('http', 'ws')}/fn/${name}/ws`)
      await once(socket, 'message')
      const state = async () =>
        (await (await fetch(`${server.url}/fn/${name}/state`)).json()) as { closes: number[]; sent: number; sockets: number }
      const closed = once(socket, 'close').then(([code]) => code as number)
      return { socket, state, closed }
    }

    test('fault 20: a message over the limit from the client closes both ends with 1009', async () => {
      const { socket, state, closed } = await open()
      socket.send(Buffer.alloc(256 * kib))
      expect((await once(socket, 'message'))[0]).toHaveLength(256 * kib)
      socket.send(Buffer.alloc(256 * kib + 1))
      expect(await closed).toBe(1009)
      expect(await eventually(async () => (await state()).closes.length === 1)).toBe(true)
      expect((await state()).closes).toEqual([1009])
    })

    test('fault 20: the frames of a message are counted together, and the client may still be sending', async () => {
      const { socket, state, closed } = await open()
      socket.on('error', () => {})
      for (let i = 0; i < 500; i++) socket.send(Buffer.alloc(64 * kib), { fin: false })
      expect(await closed).toBe(1009)
      expect(await eventually(async () => (await state()).closes.includes(1009))).toBe(true)
    })

    test('fault 20: a message over the limit from the function closes both ends with 1009', async () => {
      const { socket, state, closed } = await open()
      socket.send(`large ${256 * kib}`)
      expect((await once(socket, 'message'))[0]).toHaveLength(256 * kib)
      socket.send(`large ${20 * mib}`)
      expect(await closed).toBe(1009)
      expect(await eventually(async () => (await state()).closes.includes(1009))).toBe(true)
    })

    test('fault 21: a client that does not read makes the function wait, and is closed with 1013', async () => {
      const { socket, state, closed } = await open()
      socket.send('flood')
      await once(socket, 'message')
      socket.pause()
      expect(await eventually(async () => (await state()).closes.length === 1)).toBe(true)
      const { closes, sent } = await state()
      expect(closes).toEqual([1013])
      // What the buffers on the way hold, those of the kernel included; without limits this would grow for ever.
      expect(sent).toBeLessThan(64 * mib)
      socket.resume()
      await closed
    })

    test('fault 21: a function that does not read makes the client wait, which is closed with 1013', async () => {
      const { socket, closed } = await open()
      socket.on('error', () => {})
      socket.send('pause')
      for (let i = 0; i < 300; i++) socket.send(Buffer.alloc(256 * kib))
      expect(await closed).toBe(1013)
    })

    test('who reads slowly, but reads, gets everything', async () => {
      const { socket, closed } = await open()
      socket.send('flood')
      let received = 0
      for (let pause = 0; pause < 4; pause++) {
        socket.pause()
        const until = performance.now() + 200
        await eventually(() => performance.now() > until)
        socket.resume()
        const goal = received + 4 * mib
        await new Promise<void>((resolve) => {
          const count = (data: Buffer) => {
            received += data.length
            if (received < goal) return
            socket.off('message', count)
            resolve()
          }
          socket.on('message', count)
        })
      }
      expect(socket.readyState).toBe(WebSocket.OPEN)
      socket.close(1000)
      expect(await closed).toBe(1000)
    })
  })
}
