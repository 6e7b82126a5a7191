import { parseArgs } from 'node:util'
import { toThawError } from '@thaw/protocol'
import { runServer } from './index.ts'

/** The server alone: `node packages/server/src/main.ts [--port N] [--data-dir DIR] [--driver KIND]`. People use `thaw up`. */
async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { host: { type: 'string' }, port: { type: 'string' }, 'data-dir': { type: 'string' }, driver: { type: 'string' } },
  })
  const flags = Object.fromEntries(Object.entries(values).map(([name, value]) => [name.replaceAll('-', '_'), value]))
  const server = await runServer({ flags })
  let asked = false
  const stop = () => {
    if (asked) process.exit(1)
    asked = true
    void server.close()
  }
  process.on('SIGTERM', stop).on('SIGINT', stop)
  process.stdout.write(`${JSON.stringify({ url: server.url, pid: process.pid })}\n`)
  await server.closed
}

main().catch((error: unknown) => {
  const { code, message, fix } = toThawError(error)
  process.stderr.write(`error: ${message}\nfix: ${fix}\n`)
  process.exit(code === 'config_invalid' ? 78 : 1)
})
