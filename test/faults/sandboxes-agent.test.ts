import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { Api } from '../support/api.ts'
import { eventually } from '../support/eventually.ts'
import { nothing, residueOf } from '../support/residue.ts'
import { type ChildServer, startChildServer, whyNoDriver } from '../support/server.ts'
import { StreamClient } from '../support/stream.ts'
import { tempDir } from '../support/temp.ts'

/**
 * Code of a sandbox that takes the place of its agent: it listens where the agent listened. What it does with a call is
 * named in the call, by `do:<what>;`.
 */
const impostor = `
import json, os, re, socket, struct, sys, threading, time
path = sys.argv[1]
if os.path.exists(path): os.remove(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
os.chmod(path, 0o777)
listener.listen(64)
MIB = b'x' * (1 << 20)

def frame(message, flags=0, length=None):
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return struct.pack('>BI', flags, len(body) if length is None else length) + body

def head(status='200 OK', *lines):
    return ('\\r\\n'.join(['HTTP/1.1 ' + status, *lines]) + '\\r\\n\\r\\n').encode()

stream = head('200 OK', 'content-type: application/connect+json', 'connection: close')
plain = head('200 OK', 'content-type: application/json', 'connection: close')
start = frame({'event': {'start': {'pid': 7}}})
ended = frame({'event': {'end': {'exitCode': 0, 'exited': True, 'status': 'exit status 0'}}}) + frame({}, 2)

def flood(piece, total=600 << 20):
    for _ in range(total // len(piece)): yield piece

def answers(what):
    if what == 'garbage': yield os.urandom(4096)
    elif what == 'nothing': pass
    elif what == 'headers':
        yield b'HTTP/1.1 200 OK\\r\\n'
        yield from flood(b'x-more: ' + b'a' * 1000 + b'\\r\\n')
    elif what == 'hints': yield from flood(head('103 Early Hints', 'link: <x>'), 1 << 20)
    elif what == 'switch': yield head('101 Switching Protocols', 'upgrade: evil', 'connection: upgrade') + MIB
    elif what == 'redirect': yield head('307 Temporary Redirect', 'location: http://127.0.0.1:1/', 'content-length: 0')
    elif what == 'refusal':
        yield head('404 Not Found', 'connection: close')
        yield from flood(MIB)
    elif what == 'unavailable':
        yield head('500 No', 'connection: close') + b'{"code": 5, "message": {"a": 1}}'
    elif what == 'answer':
        yield plain
        yield from flood(MIB)
    elif what == 'short': yield head('200 OK', 'content-length: 1000') + b'abc'
    elif what == 'text': yield plain + b'not json'
    elif what == 'null': yield plain + b'null'
    elif what == 'entries': yield plain + json.dumps({'entries': [{'name': 5, 'path': None}], 'entry': 7}).encode()
    elif what == 'entry': yield plain + json.dumps({'entry': {'name': [], 'size': {}}, 'entries': 'none'}).encode()
    elif what == 'long-frame': yield stream + struct.pack('>BI', 0, 0xffffffff) + MIB
    elif what == 'cut-frame': yield stream + frame(b'{}', 0, 1000)
    elif what == 'no-json': yield stream + frame(b'no json')
    elif what == 'no-object': yield stream + frame(b'[1]') + frame(b'null')
    elif what == 'no-start': yield stream + ended
    elif what == 'pid': yield stream + frame({'event': {'start': {'pid': {'a': 1}}}}) + ended
    elif what == 'length': yield stream + start + frame({'event': {'data': {'stdout': {'length': 1 << 30}}}}) + ended
    elif what == 'shape': yield stream + start + frame({'event': {'data': 'text'}}) + ended
    elif what == 'event': yield stream + frame({'event': 'text'}) + ended
    elif what == 'end': yield stream + start + frame({'event': {'end': {'exitCode': 'x', 'status': 5}}})
    elif what == 'slow':
        # A message of 8 MiB in little pieces.
        yield stream + start + struct.pack('>BI', 0, 8 << 20)
        for _ in range((8 << 20) // 2048): yield b' ' * 2048
    elif what == 'small':
        yield stream + start
        small = frame({'event': {'data': {'stdout': 'eA=='}}}) * 1000
        for _ in range(1000): yield small
        yield ended
    elif what == 'endless':
        yield stream + start
        while True: yield frame({'event': {'data': {'stdout': 'eHh4' * 20000}}})
    elif what == 'silent': time.sleep(3600)

def serve(connection):
    try:
        seen = b''
        found = None
        while found is None and len(seen) < 1 << 20:
            piece = connection.recv(65536)
            if not piece: return
            seen += piece
            found = re.search(rb'do(?::|%3A)([a-z-]+)(?:;|%3B)', seen)
        for piece in answers(found.group(1).decode()): connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536): pass
    except OSError: pass
    finally: connection.close()

print('listening', flush=True)
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
`

for (const driver of ['process', 'oci'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(
    `a sandbox whose agent was taken over, over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`,
    () => {
      let dir: ReturnType<typeof tempDir>
      let server: ChildServer
      let api: Api
      let dataDir: string
      let evil: string

      beforeAll(async () => {
        dir = tempDir()
        dataDir = join(dir.path, 'data')
        server = await startChildServer(dataDir, { driver, scope: 'suite' })
        api = new Api(server.url)
        evil = await takenOver()
      })
      afterAll(async () => {
        if (server.process.exitCode === null) {
          const { items } = (await api.send('GET', '/v1/sandboxes?limit=1000')).body
          for (const { id } of items) await api.send('DELETE', `/v1/sandboxes/${id}`)
        }
        await server[Symbol.asyncDispose]()
        dir[Symbol.dispose]()
      })

      async function takenOver(): Promise<string> {
        const { id } = await api.sandbox({ ports: 'all' })
        const socket = driver === 'oci' ? '/thaw/run/agent.sock' : join(dataDir, 'process', id, 'run', 'agent.sock')
        await api.send('PUT', `/v1/sandboxes/${id}/files?path=impostor.py`, impostor)
        const { stdout } = await api.exec(
          id,
          `python3 ~/impostor.py ${socket} >~/said 2>&1 & for i in $(seq 500); do grep -q listening ~/said && break; sleep 0.02; done; cat ~/said`,
        )
        expect(stdout).toBe('listening\n')
        // Connections that are kept still lead to the agent itself.
        expect(await eventually(async () => (await api.send('GET', list(id, 'garbage'))).status !== 404)).toBe(true)
        return id
      }

      const list = (id: string, what: string) => `/v1/sandboxes/${id}/files/list?path=${encodeURIComponent(`/do:${what};`)}`
      const rss = () => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${server.process.pid}/status`, 'latin1'))?.[1]) / 1024

      /** What a call to the impostor comes to. */
      async function outcome(path: string, method = 'GET', body?: unknown): Promise<string> {
        const answer = await api.send(method, path, body).catch((error: Error) => ({ status: 0, body: String(error.cause ?? error) }))
        return answer.status === 0 ? 'broken off' : `${answer.status} ${answer.body?.error?.code ?? 'fine'}`
      }
      const calls: Record<string, (what: string) => Promise<string>> = {
        list: (what) => outcome(list(evil, what)),
        stat: (what) => outcome(list(evil, what).replace('/list', '/stat')),
        mkdir: (what) => outcome(`/v1/sandboxes/${evil}/files/mkdir`, 'POST', { path: `/do:${what};` }),
        move: (what) => outcome(`/v1/sandboxes/${evil}/files/move`, 'POST', { from: `/do:${what};`, to: '/x' }),
        get: (what) => outcome(list(evil, what).replace('/list', '')),
        tar: (what) => outcome(list(evil, what).replace('/list', '/tar')),
        put: (what) => outcome(list(evil, what).replace('/list', ''), 'PUT', 'some bytes'),
        exec: (what) => outcome(`/v1/sandboxes/${evil}/exec`, 'POST', { command: `do:${what};`, timeout_ms: 1000 }),
      }
      const all = ['list', 'stat', 'mkdir', 'move', 'get', 'tar', 'put', 'exec']
      const small = ['list', 'stat', 'mkdir', 'move']
      /** Which calls hear each lie. Whoever is told the head of an answer before the lie hears it by a connection that breaks. */
      const lies: Record<string, string[]> = {
        garbage: all,
        nothing: all,
        headers: all,
        hints: all,
        switch: all,
        redirect: all,
        refusal: all,
        unavailable: all,
        answer: small,
        short: [...small, 'get', 'tar', 'put'],
        text: small,
        null: small,
        entries: small,
        entry: small,
        'long-frame': ['exec'],
        'cut-frame': ['exec'],
        'no-json': ['exec'],
        'no-object': ['exec'],
        'no-start': ['exec'],
        pid: ['exec'],
        length: ['exec'],
        shape: ['exec'],
        event: ['exec'],
        end: ['exec'],
        slow: ['exec'],
      }

      test('whatever it answers, the caller is told that the sandbox is to blame, and the server keeps its memory', async () => {
        const before = rss()
        let highest = 0
        const heard: string[] = []
        for (const [lie, names] of Object.entries(lies)) {
          for (const name of names) {
            const told = await (calls[name] as (what: string) => Promise<string>)(lie)
            const expected = [
              '503 sandbox_unavailable',
              ...(lie === 'short' ? ['broken off'] : []),
              ...(lie === 'refusal' ? ['404 file_not_found', '404 process_not_found'] : []),
            ]
            if (!expected.includes(told)) heard.push(`${lie}, ${name}: ${told}`)
            highest = Math.max(highest, rss())
          }
        }
        expect(heard).toEqual([])
        expect(highest - before).toBeLessThan(250)
      })

      if (driver === 'process') return
      // What is left is the same whichever way leads to the agent, and takes its time.
      test('a million little messages are carried, and a stream hears of lies as well', async () => {
        const before = rss()
        const result = await api.exec(evil, 'do:small;', { timeout_ms: 50_000 })
        expect(result).toMatchObject({ exit_code: 0, truncated: false })
        expect(result.stdout.length).toBe(1_000_000)
        expect(rss() - before).toBeLessThan(400)
        using client = await StreamClient.open(server.url, evil)
        client.send({ type: 'exec', id: 'lie', command: 'do:length;' })
        client.send({ type: 'exec', id: 'shape', command: 'do:shape;' })
        client.send({ type: 'watch', id: 'watch', path: '/do:garbage;' })
        for (const id of ['lie', 'shape', 'watch']) expect((await client.event('error', { id })).error.code).toBe('sandbox_unavailable')
      })

      test('silence and endless output end with the time of the command; others are served meanwhile; all is deleted, and nothing is left', async () => {
        const { id } = await api.sandbox()
        const before = rss()
        const waiting = ['silent', 'endless', 'slow'].map((what) => calls.exec?.(what))
        expect(await api.stdout(id, 'echo well')).toBe('well\n')
        const stats = await api.send('GET', `/v1/sandboxes/${evil}/stats`)
        expect([stats.status, stats.body.item.state]).toEqual([200, 'running'])
        for (const told of await Promise.all(waiting)) expect(told).toMatch(/^(503 sandbox_unavailable|200 fine)$/)
        expect(rss() - before).toBeLessThan(400)
        expect((await api.send('POST', `/v1/sandboxes/${evil}/pause`)).body.item.state).toBe('paused')
        expect((await api.send('POST', `/v1/sandboxes/${evil}/resume`)).body.item.state).toBe('running')
        for (const sandbox of [evil, id]) expect((await api.send('DELETE', `/v1/sandboxes/${sandbox}`)).status).toBe(204)
        await server[Symbol.asyncDispose]()
        expect(residueOf(dataDir, 'stopped')).toEqual(nothing)
      })
    },
  )
}
