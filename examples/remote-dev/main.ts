/**
 * A development machine in a sandbox: PostgreSQL, Redis, Jupyter and a web terminal. `node examples/remote-dev/main.ts`, with a
 * server running (`thaw up`). It stays when this program ends; `thaw sandbox rm lab` removes it.
 */
import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { type PortForward, type Sandbox, Thaw } from '@thaw/sdk'

/** libjs-xterm is the page of the terminal, python3-terminado its server. */
export const image = 'apt:jupyter-notebook,libjs-xterm,postgresql,python3-terminado,redis-server'
export const ports = { notebook: 8888, terminal: 7681, postgresql: 5432, redis: 6379 }

export interface Lab extends AsyncDisposable {
  sandbox: Sandbox
  password: string
  /** Ports of this machine that lead to the services which do not speak HTTP. */
  postgresql: PortForward
  redis: PortForward
}

/** Makes the machine, or finds the one that is there already, and waits until its services answer. */
export async function openLab(thaw: Thaw, onProgress: (line: string) => void = () => {}): Promise<Lab> {
  await thaw.images.create(image, { onProgress })
  const sandbox = await thaw.sandboxes.create({
    name: 'lab',
    image,
    resources: { memory_mib: 1536, cpus: 2, pids: 1024 },
    ports: Object.values(ports),
    env: { LAB_PASSWORD: randomBytes(12).toString('hex') },
    command: await readFile(new URL('services.sh', import.meta.url), 'utf8'),
  })
  onProgress(`${sandbox.id}: the services start`)
  const { stdout, stderr, exit_code } = await sandbox.exec(ready, { timeoutMs: 120_000 })
  if (exit_code !== 0) throw new Error(`The services did not come up: ${stderr}`)
  const postgresql = await sandbox.forward(ports.postgresql)
  const redis = await sandbox.forward(ports.redis)
  const dispose = async () => {
    await Promise.all([postgresql.close(), redis.close()])
  }
  return { sandbox, password: stdout.trim(), postgresql, redis, [Symbol.asyncDispose]: dispose }
}

/** Prints the password, which only the machine knows where it was there already. */
const ready = `
until pg_isready -q -h 127.0.0.1 && redis-cli ping > /dev/null 2>&1 && python3 -c '
import socket
for port in (${ports.notebook}, ${ports.terminal}): socket.create_connection(("127.0.0.1", port)).close()' 2> /dev/null
do sleep 0.2; done
printf %s "$LAB_PASSWORD"`

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const lab = await openLab(new Thaw(), (line) => console.log(line))
  const { sandbox, password, postgresql, redis } = lab
  const host = { domain: 'localhost' }
  console.log(`
notebooks   ${sandbox.url(ports.notebook, host)}?token=${password}
terminal    ${sandbox.url(ports.terminal, host)}
PostgreSQL  PGPASSWORD=${password} psql -h ${postgresql.host} -p ${postgresql.port} -U postgres
Redis       REDISCLI_AUTH=${password} redis-cli -h ${redis.host} -p ${redis.port}

Ctrl-C ends the forwards; the machine goes on until \`npx thaw sandbox rm lab\`.`)
  process.once('SIGINT', () => void lab[Symbol.asyncDispose]())
}
