import { once } from 'node:events'
import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { join } from 'node:path'
import { type Child, findProgram, programsDir, repository, type Workbench } from './workbench.ts'

/** A web server that we are compared with. */
export interface WebPeer {
  name: string
  url: string
  child: Child
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}

function connects(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => resolve(true)).once('error', () => resolve(false))
    socket.once('connect', () => socket.destroy())
  })
}

async function started(bench: Workbench, name: string, port: number, child: Child): Promise<WebPeer> {
  const ended = child.ended.then(() => {
    throw new Error(`${name} ended at once: ${child.output()}`)
  })
  ended.catch(() => undefined)
  await Promise.race([bench.until(`${name} listens`, () => connects(port)), ended])
  return { name, url: `http://127.0.0.1:${port}`, child }
}

export async function startBareNode(bench: Workbench): Promise<WebPeer> {
  const port = await freePort()
  const env = { ...process.env, PORT: String(port) }
  return started(bench, 'bare node:http', port, bench.start(process.execPath, [join(programsDir, 'bare.mjs')], { env }))
}

export async function startBarePython(bench: Workbench, python: string): Promise<WebPeer> {
  const port = await freePort()
  const env = { ...process.env, PORT: String(port), PYTHONDONTWRITEBYTECODE: '1' }
  return started(bench, 'bare http.server', port, bench.start(python, [join(programsDir, 'bare.py')], { env }))
}

export async function startFunctionsFramework(bench: Workbench): Promise<WebPeer | null> {
  const main = join(repository, 'node_modules/@google-cloud/functions-framework/build/src/main.js')
  if (!existsSync(main)) {
    bench.leaveOut('functions-framework', 'the npm package @google-cloud/functions-framework is not installed')
    return null
  }
  const port = await freePort()
  const args = [main, '--target=handler', `--source=${join(programsDir, 'framework.mjs')}`, `--port=${port}`]
  const child = bench.start(process.execPath, args, { cwd: bench.dir, env: { ...process.env, NODE_ENV: 'production' } })
  return started(bench, 'functions-framework', port, child)
}

/** of-watchdog, with the bare server as the program behind it. */
export async function startWatchdog(bench: Workbench): Promise<WebPeer | null> {
  const program = findProgram('of-watchdog')
  if (program === null) {
    bench.leaveOut(
      'of-watchdog',
      'not installed (GOBIN=$PWD/.build/bin go install github.com/openfaas/of-watchdog@latest); a Go reverse proxy stands in',
    )
    return null
  }
  const [port, behind] = [await freePort(), await freePort()]
  const child = bench.start(program, [], {
    env: {
      ...process.env,
      PORT: String(behind),
      port: String(port),
      mode: 'http',
      upstream_url: `http://127.0.0.1:${behind}`,
      fprocess: `${process.execPath} ${join(programsDir, 'bare.mjs')}`,
    },
  })
  const peer = await started(bench, 'of-watchdog', port, child)
  await bench.until('the program behind of-watchdog listens', () => connects(behind))
  return peer
}

/** What of-watchdog does at least, where that is missing: a Go reverse proxy in front of the bare server. */
export async function startGoProxy(bench: Workbench): Promise<WebPeer | null> {
  const go = findProgram('go')
  if (go === null) {
    bench.leaveOut('Go proxy', 'go is not installed')
    return null
  }
  const program = join(bench.dir, 'go-proxy')
  await bench.run(go, ['build', '-o', program, join(programsDir, 'proxy.go')], { cwd: bench.dir, env: { ...process.env, GOFLAGS: '' } })
  const [port, bare] = [await freePort(), await startBareNode(bench)]
  const child = bench.start(program, [], { env: { ...process.env, port: String(port), upstream_url: bare.url } })
  const peer = await started(bench, 'Go proxy', port, child)
  return peer
}

/** nginx with one worker as a gateway in front of another server; bodies are passed on as they arrive. */
export async function startNginx(bench: Workbench, upstream: string): Promise<WebPeer | null> {
  const program = findProgram('nginx')
  if (program === null) {
    bench.leaveOut('nginx', 'not installed (Debian package nginx-light)')
    return null
  }
  const port = await freePort()
  const dir = join(bench.dir, 'nginx')
  mkdirSync(dir)
  const config = join(dir, 'nginx.conf')
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((name) => `${name}_temp_path ${join(dir, name)};`).join('\n')
  writeFileSync(
    config,
    `user root; worker_processes 1; daemon off; pid ${join(dir, 'pid')}; error_log ${join(dir, 'error.log')};
    events { worker_connections 1024; }
    http {
      access_log off; ${temporary}
      client_max_body_size 200m; keepalive_requests 1000000;
      upstream bare { server ${upstream.replace('http://', '')}; keepalive 64; }
      server {
        listen 127.0.0.1:${port};
        location / {
          proxy_pass http://bare; proxy_http_version 1.1; proxy_set_header Connection "";
          proxy_request_buffering off; proxy_buffers 64 64k; proxy_max_temp_file_size 0;
        }
      }
    }`,
  )
  const args = ['-c', config, '-p', dir, '-e', join(dir, 'error.log')]
  return started(bench, 'nginx', port, bench.start(program, args))
}
