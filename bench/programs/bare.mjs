// A web server of node:http alone that does the work of each row: the floor of what a gateway can cost.
import { createServer } from 'node:http'
import { work } from './work.mjs'

const routes = {
  '/work': (body) => ['application/json', JSON.stringify(work(JSON.parse(body.toString('utf8'))))],
  '/echo': (body) => ['application/octet-stream', body],
  '/size': (body) => ['application/json', JSON.stringify(body.length)],
}

const server = createServer({ noDelay: true, keepAliveTimeout: 65_000 }, (request, response) => {
  if (request.url === '/sleep') {
    request.resume()
    setTimeout(() => response.end('null'), 1000)
    return
  }
  const parts = []
  request.on('data', (part) => parts.push(part))
  request.on('end', () => {
    // Whatever else is asked gets the work: a watchdog passes on other paths.
    const [type, body] = (routes[request.url] ?? routes['/work'])(parts.length === 1 ? parts[0] : Buffer.concat(parts))
    response.writeHead(200, { 'content-type': type, 'content-length': Buffer.byteLength(body) })
    response.end(body)
  })
})
server.listen(Number(process.env.PORT ?? 0), '127.0.0.1')
