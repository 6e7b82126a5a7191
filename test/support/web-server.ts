import { cpSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** A web server for tests of the http contract. Each path does one thing; `/state` tells what the server has seen. */
const source = `
import { createServer } from 'node:http'
import { WebSocketServer } from 'ws'

const state = { connections: 0, hanging: 0, aborted: 0, written: 0, sockets: 0, closes: [], sent: 0 }
const waiting = []
const chunk = Buffer.alloc(64 * 1024, 'thaw')

const paths = {
  '/hello': (request, response) => response.end('hello'),
  '/json': (request, response) => response.setHeader('content-type', 'application/json').end('{"ok":true}'),
  '/state': (request, response) => response.end(JSON.stringify(state)),
  '/request': (request, response) => response.end(JSON.stringify({ method: request.method, url: request.url, headers: request.headers, raw: request.rawHeaders })),
  '/echo': (request, response) => {
    response.writeHead(200, { 'content-type': request.headers['content-type'] ?? 'application/octet-stream' })
    request.pipe(response)
  },
  '/answer': (request, response) => {
    response.writeHead(418, 'I am', [['X-Twice', '1'], ['X-Twice', '2'], ['Set-Cookie', 'a=1'], ['Set-Cookie', 'b=2'], ['Thaw-Invocation-Id', 'forged'], ['Connection', 'x-secret'], ['X-Secret', 'hop'], ['Proxy-Authenticate', 'hop']])
    response.end('teapot')
  },
  '/events': (request, response) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' })
    response.flushHeaders()
    waiting.push(response)
  },
  '/event': (request, response) => {
    for (const listener of waiting) listener.write('data: ' + request.headers['x-event'] + '\\n\\n')
    response.end()
  },
  // Writes for as long as somebody takes it.
  '/endless': (request, response) => {
    const more = () => {
      while (!response.destroyed) {
        state.written += chunk.length
        if (!response.write(chunk)) return response.once('drain', more)
      }
    }
    more()
  },
  '/hang': (request, response) => {
    state.hanging++
    console.log('hanging')
    response.once('close', () => state.aborted++)
  },
  '/spin': () => { for (;;); },
  '/drop': (request) => request.socket.destroy(),
  '/half': (request, response) => {
    response.writeHead(200, { 'content-length': 100 })
    response.write('half', () => request.socket.destroy())
  },
  '/exit': () => process.exit(3),
}

const server = createServer((request, response) => {
  const path = request.url.split('?')[0]
  const serve = paths[path]
  if (serve === undefined) response.writeHead(404).end('nothing at ' + path)
  else serve(request, response)
})
server.on('connection', () => state.connections++)
const sockets = new WebSocketServer({ noServer: true })
server.on('upgrade', (request, socket, head) => {
  if (request.url !== '/ws') return socket.end('HTTP/1.1 404 Not Found\\r\\ncontent-length: 9\\r\\n\\r\\nno socket')
  sockets.handleUpgrade(request, socket, head, (opened) => {
    state.sockets++
    opened.send(JSON.stringify({ invocation: request.headers['thaw-invocation-id'], protocol: request.headers['sec-websocket-version'] }))
    opened.on('message', (data, binary) => {
      const [word, size] = binary ? [] : data.toString().split(' ')
      if (word === 'exit') process.exit(4)
      if (word === 'large') return opened.send(Buffer.alloc(Number(size)))
      // Without compression, which would make the sizes meaningless: this server offers none.
      if (word === 'flood') return flood(opened)
      if (word === 'pause') return socket.pause()
      opened.send(data, { binary })
    })
    opened.on('close', (code) => {
      state.sockets--
      state.closes.push(code)
    })
  })
})
// Sends for as long as somebody takes it.
function flood(opened) {
  if (opened.readyState !== 1) return
  state.sent += chunk.length
  opened.send(chunk, () => flood(opened))
}
server.listen(Number(process.env.PORT), () => console.log('listening'))
`

/** A folder with the server as `main.mjs`, and what it needs. */
export function webServerFolder(): string {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-web-'))
  writeFileSync(join(dir, 'main.mjs'), source)
  writeFileSync(join(dir, '.thawignore'), '!node_modules/\n')
  cpSync(new URL('../../node_modules/ws', import.meta.url).pathname, join(dir, 'node_modules/ws'), { recursive: true })
  return dir
}
