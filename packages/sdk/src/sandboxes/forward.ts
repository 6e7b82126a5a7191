import type { Server, Socket as TcpSocket } from 'node:net'
import { ThawError } from '@thaw/protocol'
import type { Http } from '../http.ts'
import { pathOf } from './path.ts'
import { joinTunnel } from './tunnel.ts'

export interface ForwardOptions {
  /** Port to listen on, here. Default: any that is free. */
  localPort?: number | undefined
  /** Address to listen on. Default: 127.0.0.1, which only this machine reaches. */
  host?: string | undefined
  /** Hears why a connection came to nothing: nobody listens inside, the port is not listed, the sandbox ended. */
  onError?: ((error: ThawError) => void) | undefined
  /** Ends the forward. */
  signal?: AbortSignal | undefined
}

/** A port of this machine that leads to one of a sandbox. */
export interface PortForward extends AsyncDisposable {
  readonly host: string
  readonly port: number
  /** Ends it, open connections included. */
  close(): Promise<void>
}

/**
 * Listens here; every connection goes to the port inside, byte by byte. Needs Node.js. Throws `invalid_request` when the
 * local port cannot be had.
 */
export async function forwardPort(http: Http, sandboxId: string, port: number, options: ForwardOptions): Promise<PortForward> {
  const { localPort = 0, host = '127.0.0.1', onError, signal } = options
  signal?.throwIfAborted()
  const { createServer } = await import('node:net')
  const target = http.socketTarget(`${pathOf(sandboxId)}/tunnel/${port}`)
  const open = new Set<TcpSocket>()
  // What the other side still sends after we have said our last is not lost.
  const server = createServer({ allowHalfOpen: true, noDelay: true, pauseOnConnect: true }, (client) => {
    open.add(client)
    client.once('close', () => open.delete(client))
    joinTunnel(target, client).catch((error: unknown) => {
      client.destroy()
      onError?.(error instanceof ThawError ? error : new ThawError('unreachable', String(error), { cause: error }))
    })
  })
  await listen(server, localPort, host)
  const close = async () => {
    signal?.removeEventListener('abort', abort)
    const closed = new Promise((resolve) => server.close(resolve))
    for (const client of open) client.destroy()
    await closed
  }
  const abort = () => void close()
  signal?.addEventListener('abort', abort, { once: true })
  const address = server.address() as { address: string; port: number }
  return { host: address.address, port: address.port, close, [Symbol.asyncDispose]: close }
}

function listen(server: Server, port: number, host: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const taken = cause.code === 'EADDRINUSE'
      reject(
        new ThawError('invalid_request', taken ? `Port ${port} of this machine is taken.` : `Cannot listen on ${host}:${port}.`, {
          fix: taken ? 'Choose another local port, or none to get any that is free.' : `The system says: ${cause.message}.`,
          cause,
        }),
      )
    })
    server.listen({ port, host }, () => resolve())
  })
}
