import type { Socket as TcpSocket } from 'node:net'
import { connectSocket, type SocketTarget } from './socket.ts'

/** Says that the sender writes no more, as TCP does: a WebSocket can only end as a whole. */
const endMessage = 'end'
/** The server takes no larger messages than 1 MiB. */
const pieceBytes = 256 * 1024

/**
 * Joins a connection of this machine with one to a port inside, over the WebSocket `/v1/sandboxes/{id}/tunnel/{port}`: binary
 * messages are its bytes, and the text `end` says that the sender writes no more. Resolves once joined; a server that
 * refuses is thrown as its error. Neither side sends faster than the other takes.
 */
export async function openBytes(target: SocketTarget, client: TcpSocket): Promise<void> {
  client.on('error', () => client.destroy())
  const gone = new AbortController()
  client.once('close', () => gone.abort())
  const webSocket = await connectSocket(target)
  if (gone.signal.aborted) return webSocket.terminate()
  client.once('close', () => webSocket.close())
  client.on('data', (bytes: Buffer) => {
    client.pause()
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const isLast = at + pieceBytes >= bytes.length
      webSocket.send(bytes.subarray(at, at + pieceBytes), () => isLast && client.resume())
    }
  })
  client.once('end', () => webSocket.send(endMessage))
  webSocket.on('message', (data: Buffer, isBinary) => {
    if (!isBinary) client.end()
    else if (!client.write(data)) {
      webSocket.pause()
      client.once('drain', () => webSocket.resume())
    }
  })
  // Whoever reads an answer is to know that it broke off.
  webSocket.once('close', (code) => (code === 1000 ? client.end() : client.resetAndDestroy()))
  client.resume()
}
