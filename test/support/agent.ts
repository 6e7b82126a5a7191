import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type ClientRequest, type IncomingHttpHeaders, type IncomingMessage, request } from 'node:http'
import { fileURLToPath } from 'node:url'
import { eventually } from './eventually.ts'
import { tempDir } from './temp.ts'

const arch = process.arch === 'x64' ? 'amd64' : process.arch
/** The program that scripts/bootstrap.mjs built. */
export const agentProgram = fileURLToPath(new URL(`../../.build/agent/thaw-agent-linux-${arch}`, import.meta.url))

// biome-ignore lint/suspicious/noExplicitAny: what the agent says is checked by what tests expect of it.
export type Json = any

export interface Answer {
  status: number
  headers: IncomingHttpHeaders
  body: Buffer
  /** The body as JSON, undefined when it is empty. */
  json: Json
}

interface CallOptions {
  method?: string
  headers?: Record<string, string>
  body?: Uint8Array | string
}

/** An agent on a socket in a temporary folder; before is a command that runs it, such as unshare. */
export async function startAgent({ before = [] as string[], args = [] as string[] } = {}) {
  const folder = tempDir()
  const socketPath = `${folder.path}/agent.sock`
  const [program = '', ...rest] = [...before, agentProgram, 'serve', '--socket', socketPath, ...args]
  const child: ChildProcess = spawn(program, rest, { stdio: ['ignore', 'ignore', 'pipe'] })
  let log = ''
  child.stderr?.on('data', (data) => {
    log += data
  })
  const exited = once(child, 'exit')

  function open(path: string, { method = 'GET', headers = {}, body }: CallOptions = {}): ClientRequest {
    const outgoing = request({ socketPath, path, method, headers: { host: 'agent', ...headers }, agent: false })
    outgoing.end(body)
    return outgoing
  }

  async function call(path: string, options?: CallOptions): Promise<Answer> {
    const [response] = (await once(open(path, options), 'response')) as [IncomingMessage]
    const chunks: Buffer[] = []
    for await (const chunk of response) chunks.push(chunk)
    const body = Buffer.concat(chunks)
    const isJson = body.length > 0 && response.headers['content-type'] === 'application/json'
    return { status: response.statusCode ?? 0, headers: response.headers, body, json: isJson ? JSON.parse(body.toString()) : undefined }
  }

  function rpc(procedure: string, message: unknown = {}, headers: Record<string, string> = {}): Promise<Answer> {
    return call(`/${procedure}`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
      body: JSON.stringify(message),
    })
  }

  async function stream(procedure: string, message: unknown, headers: Record<string, string> = {}) {
    const outgoing = open(`/${procedure}`, {
      method: 'POST',
      headers: { 'content-type': 'application/connect+json', ...headers },
      body: frame(message),
    })
    const [response] = (await once(outgoing, 'response')) as [IncomingMessage]
    return { status: response.statusCode ?? 0, response, messages: messagesOf(response), close: () => outgoing.destroy() }
  }

  /** Runs a shell command to its end. */
  async function shell(text: string, headers: Record<string, string> = {}, more: Record<string, unknown> = {}) {
    const message = { process: { cmd: '/bin/sh', args: ['-c', text] }, stdin: false, ...more }
    return collect((await stream('process.Process/Start', message, headers)).messages)
  }

  const ready = await eventually(async () => {
    if (child.exitCode !== null) throw new Error(`the agent ended: ${log}`)
    return call('/health').then(
      ({ status }) => status === 204,
      () => false,
    )
  })
  if (!ready) throw new Error(`the agent does not answer: ${log}`)

  return {
    folder: folder.path,
    socketPath,
    child,
    exited,
    call,
    rpc,
    stream,
    shell,
    async [Symbol.asyncDispose]() {
      // What runs it in a namespace of its own keeps signals from it.
      const inner = before.includes('--fork') ? Number(readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8')) : child.pid
      if (inner && child.exitCode === null && child.signalCode === null) process.kill(inner, 'SIGTERM')
      await exited
      folder[Symbol.dispose]()
    },
  }
}

export interface Message {
  end: boolean
  message: Json
}

/** A message of a stream: flags, length, JSON. */
export function frame(message: unknown, flags = 0): Buffer {
  const body = Buffer.from(JSON.stringify(message))
  const header = Buffer.alloc(5)
  header.writeUInt8(flags, 0)
  header.writeUInt32BE(body.length, 1)
  return Buffer.concat([header, body])
}

async function* messagesOf(response: IncomingMessage): AsyncGenerator<Message> {
  let rest: Buffer = Buffer.alloc(0)
  for await (const chunk of response) {
    rest = Buffer.concat([rest, chunk])
    while (rest.length >= 5 && rest.length >= 5 + rest.readUInt32BE(1)) {
      const length = rest.readUInt32BE(1)
      yield { end: (rest.readUInt8(0) & 2) !== 0, message: JSON.parse(rest.subarray(5, 5 + length).toString()) }
      rest = rest.subarray(5 + length)
    }
  }
}

/** Reads the stream of a process to its end. */
export async function collect(messages: AsyncIterable<Message>) {
  const output: Record<string, Buffer[]> = { stdout: [], stderr: [], pty: [] }
  let start: Json
  let end: Json
  let error: Json
  for await (const { end: last, message } of messages) {
    if (last) error = message.error
    else if (message.event.start) start = message.event.start
    else if (message.event.end) end = message.event.end
    else for (const [name, data] of Object.entries(message.event.data ?? {})) output[name]?.push(Buffer.from(String(data), 'base64'))
  }
  const bytes = (name: string) => Buffer.concat(output[name] ?? [])
  return { start, end, error, stdout: bytes('stdout'), stderr: bytes('stderr'), pty: bytes('pty') }
}
