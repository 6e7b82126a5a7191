import type { Socket as TcpSocket } from 'node:net'
import type { WebSocket } from 'ws'
import { handshakeMs, refusal, type SocketTarget, unreachable } from './socket.ts'

/** Says that the sender writes no more, as TCP does: a WebSocket can only end as a whole. */
const endMessage = 'end'
/** The server takes no messages over 1 MiB. */
const pieceBytes = 256 * 1024

/**
 * Joins a connection of this machine with one to a port inside, over the WebSocket `/v1/sandboxes/{id}/tunnel/{port}`: binary
 * messages are its bytes, and the text `end` says that the sender writes no more. Neither side sends faster than the other
 * takes. Rejects with the error of a server that refuses.
 */
export async function joinTunnel(target: SocketTarget, client: TcpSocket): Promise<void> {
  // `close` follows, and is what counts.
  client.on('error', () => undefined)
  const { WebSocket } = await import('ws')
  const { url, headers } = target
  const webSocket = new WebSocket(url, { headers, perMessageDeflate: false, followRedirects: false, handshakeTimeout: handshakeMs })
  client.once('close', () => webSocket.close())
  await opened(webSocket, url)
  webSocket.on('message', (data: Buffer, isBinary) => {
    if (!isBinary) client.end()
    else if (!client.write(data)) {
      webSocket.pause()
      client.once('drain', () => webSocket.resume())
    }
  })
  // Whoever waits for the rest of an answer is to know that it broke off.
  webSocket.once('close', (code) => (code === 1000 ? client.destroySoon() : client.resetAndDestroy()))
  client.once('end', () => webSocket.send(endMessage))
  client.on('data', (bytes: Buffer) => {
    client.pause()
    for (let at = 0; at < bytes.length; at += pieceBytes) {
      const isLast = at + pieceBytes >= bytes.length
      webSocket.send(bytes.subarray(at, at + pieceBytes), () => isLast && client.resume())
    }
  })
  client.resume()
}

/** Rejects with what the server answered instead of a WebSocket. */
function opened(webSocket: WebSocket, url: string): Promise<void> {
  return new Promise((resolve, reject) => {
    webSocket.on('unexpected-response', (_request, answer) => void refusal(answer, url).then(reject, reject))
    // What happens to an open connection is told by `close`.
    webSocket.on('error', (error) => reject(unreachable(url, error)))
    webSocket.once('open', resolve)
  })
}
