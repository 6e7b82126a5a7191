import type { Duplex } from 'node:stream'
import type { ServerChannel, TcpipRequestInfo } from 'ssh2'
import type { SessionHost } from './session.ts'

/** Names of the sandbox itself, as seen from inside. */
const inside = new Set(['localhost', '127.0.0.1', '::1', '[::1]'])
const connectMs = 10_000

/** Whether a forwarding (`ssh -L`) leads to the sandbox itself: anything else would make the server a way into its network. */
export function leadsInside({ destIP, destPort }: TcpipRequestInfo): boolean {
  return inside.has(destIP) && destPort >= 1 && destPort <= 65_535
}

/** Opens the port inside. Rejects with `port_unreachable` where nobody listens. */
export async function openPort({ lease, wake }: SessionHost, port: number): Promise<Duplex> {
  await lease
  const agent = await wake()
  return agent.tunnel(port, AbortSignal.timeout(connectMs))
}

/** Passes bytes both ways, until both ends have said that nothing more comes. */
export function join(channel: ServerChannel, inner: Duplex, touch: () => void): void {
  let open = 2
  const ended = () => {
    open--
    if (open === 0) channel.end()
  }
  inner.on('data', touch)
  channel.on('data', touch)
  channel.pipe(inner)
  inner.pipe(channel, { end: false })
  // An empty write comes after all that waits for room.
  inner.once('end', () =>
    channel.write(Buffer.alloc(0), () => {
      // Not `end`: a server of this library closes the whole channel with it.
      channel.eof()
      ended()
    }),
  )
  channel.once('end', ended)
  channel.once('close', () => inner.destroy())
  channel.on('error', () => inner.destroy())
  inner.on('error', () => channel.destroy())
  inner.once('close', () => {
    if (!inner.readableEnded) channel.destroy()
  })
}
