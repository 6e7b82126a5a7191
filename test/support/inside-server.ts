import { createServer } from 'node:net'

/** A web server for tests of ports, in Python alone. Each path does one thing; `/state` tells what it has seen. */
export const insideServer = String.raw`
import base64, hashlib, json, os, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

state = {'hanging': 0, 'streaming': 0, 'sockets': 0, 'connections': 0, 'written': 0}
lock = threading.Lock()
def count(name, by):
    with lock: state[name] += by

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def setup(self):
        super().setup()
        count('connections', 1)
    def log_message(self, *_): pass
    def answer(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for name, value in headers: self.send_header(name, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(body)
    def chunk(self, data):
        self.wfile.write(b'%x\r\n%s\r\n' % (len(data), data))
    def pieces(self):
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            while True:
                size = int(self.rfile.readline(), 16)
                data = self.rfile.read(size)
                self.rfile.readline()
                if size == 0: return
                yield data
        left = int(self.headers.get('Content-Length', 0))
        while left > 0:
            data = self.rfile.read(min(left, 65536))
            if not data: return
            left -= len(data)
            yield data
    def any(self):
        path = self.path.split('?')[0]
        if path == '/request':
            body = b''.join(self.pieces())
            return self.answer(json.dumps({'method': self.command, 'path': self.path, 'headers': [[n.lower(), v] for n, v in self.headers.items()], 'body': body.decode('latin1')}))
        if path == '/upload':
            digest, size = hashlib.sha256(), 0
            for piece in self.pieces():
                digest.update(piece)
                size += len(piece)
            return self.answer(json.dumps({'size': size, 'sha256': digest.hexdigest()}))
        if path == '/page':
            return self.answer('<h1>page</h1>', headers=[('Content-Type', 'text/html'), ('Content-Security-Policy', "default-src 'self'"), ('Set-Cookie', 'a=1'), ('Set-Cookie', 'b=2'), ('Service-Worker-Allowed', '/'), ('Connection', 'X-Hop'), ('X-Hop', '1'), ('X-Kept', 'yes')])
        if path == '/echo':
            self.send_response(200)
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            for piece in self.pieces(): self.chunk(piece)
            return self.chunk(b'')
        if path == '/events':
            self.send_response(200)
            self.send_header('Content-Type', 'text/event-stream')
            self.send_header('Transfer-Encoding', 'chunked')
            self.end_headers()
            count('streaming', 1)
            try:
                n = 0
                while True:
                    self.chunk(b'data: %d\n\n' % n)
                    n += 1
                    time.sleep(0.05)
            finally: count('streaming', -1)
        if path == '/flood':
            self.send_response(200)
            self.send_header('Connection', 'close')
            self.end_headers()
            self.close_connection = True
            while True:
                self.wfile.write(b'x' * 65536)
                count('written', 65536)
        if path == '/hang':
            count('hanging', 1)
            try: self.rfile.read(1)
            finally: count('hanging', -1)
            self.close_connection = True
            return
        if path == '/half':
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'half')
            self.wfile.flush()
            self.close_connection = True
            return
        if path == '/die': os._exit(3)
        if path == '/nonsense':
            self.wfile.write(b'SSH-2.0-something\r\n')
            self.close_connection = True
            return
        if path == '/state': return self.answer(json.dumps(state))
        if path == '/ws': return self.websocket()
        if path == '/raw':
            self.send_response_only(101)
            self.send_header('Connection', 'Upgrade')
            self.send_header('Upgrade', self.headers['Upgrade'])
            self.end_headers()
            self.close_connection = True
            while data := self.rfile.readline(): self.wfile.write(data.upper())
            return
        self.answer('nothing here', 404)
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_PROPFIND = any
    def websocket(self):
        key = self.headers['Sec-WebSocket-Key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
        self.send_response_only(101)
        self.send_header('Connection', 'Upgrade')
        self.send_header('Upgrade', 'websocket')
        self.send_header('Sec-WebSocket-Accept', base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        count('sockets', 1)
        try:
            while True:
                head = self.rfile.read(2)
                if len(head) < 2: return
                size = head[1] & 127
                if size == 126: size = int.from_bytes(self.rfile.read(2), 'big')
                elif size == 127: size = int.from_bytes(self.rfile.read(8), 'big')
                mask = self.rfile.read(4)
                data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
                if data == b'flood':
                    while True: self.frame(2, b'x' * 65536)
                self.frame(head[0] & 15, data)
                if head[0] & 15 == 8: return
        finally: count('sockets', -1)
    def frame(self, opcode, data):
        size = bytes([len(data)]) if len(data) < 126 else b'\x7e' + len(data).to_bytes(2, 'big') if len(data) < 65536 else b'\x7f' + len(data).to_bytes(8, 'big')
        self.wfile.write(bytes([128 | opcode]) + size + data)

server = ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler)
server.daemon_threads = True
server.serve_forever()
`

/** A port that nobody has at this moment: with the driver process, sandboxes share those of the host. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })
}
