import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { Sandbox, type SandboxOpts } from 'e2b'
import { onTestFailed } from 'vitest'
import { e2bPython } from '../../scripts/e2b-python.mjs'

/** In the form that clients insist on; a server without keys takes any. */
export const anyKey = `e2b_${'0'.repeat(40)}`

/** How the client is pointed at a server: its own address settings, and nothing else. */
export function e2bOptions(server: { url: string }, apiKey = anyKey) {
  return { apiUrl: server.url, sandboxUrl: server.url, apiKey }
}

export type DisposableSandbox = Sandbox & AsyncDisposable

/** A sandbox of the unmodified client that ends with the test. */
export async function e2bSandbox(server: { url: string }, options: SandboxOpts & { template?: string } = {}): Promise<DisposableSandbox> {
  const { template, ...rest } = options
  const all = { ...e2bOptions(server), ...rest }
  const sandbox = template === undefined ? await Sandbox.create(all) : await Sandbox.create(template, all)
  return killed(sandbox)
}

export function killed(sandbox: Sandbox): DisposableSandbox {
  return Object.assign(sandbox, {
    [Symbol.asyncDispose]: async () => {
      await sandbox.kill()
    },
  })
}

/** Why tests with the Python client cannot run here, or null; in CI it throws instead. */
export function whyNoE2bPython(): string | null {
  if (existsSync(e2bPython)) return null
  const reason = 'the Python client e2b is not installed: run `npm test`, or npm_lifecycle_event=pretest node scripts/bootstrap.mjs'
  if (process.env.CI) throw new Error(reason)
  console.warn(`tests with the Python client of E2B are skipped: ${reason}`)
  return reason
}

/** Runs a script with the Python client to its end; it is pointed at the server by its environment. Throws what it printed. */
export async function runE2bPython(server: { url: string }, script: string, args: string[]): Promise<string> {
  const child = spawn(e2bPython, [script, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: process.env.PATH, E2B_API_URL: server.url, E2B_SANDBOX_URL: server.url, E2B_API_KEY: anyKey },
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => (output += text))
  onTestFailed(() => console.error(output))
  const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
  if (code !== 0) throw new Error(`the script ended with ${code ?? signal}:\n${output}`)
  return output
}
