import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, watch } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  bodyChunkBytes,
  codeFailureSchema,
  decodeMetaPayload,
  encodeFrame,
  encodeJsonFrame,
  encodeMetaFrame,
  type Frame,
  FrameDecoder,
  failedSchema,
  frameTypes,
  helloSchema,
  hookDoneSchema,
  type InvokeMeta,
  type LoadMessage,
  logSources,
  parseJson,
  type ResultMeta,
  readySchema,
  resultMetaSchema,
} from '@thaw/protocol'
import type { z } from 'zod'
import { connectUnixSocket } from '../../../packages/server/src/drivers/socket.ts'

export interface LogLine {
  source: keyof typeof logSources
  text: string
}

export type Failure = z.infer<typeof failedSchema>

/** All that came of one invocation, from its first frame to its last. */
export interface Answer {
  /** What the result frame said; undefined when the invocation failed before any. */
  meta: ResultMeta | undefined
  /** The body of the result frame and all chunks. */
  body: Buffer
  /** The chunks alone, as they were cut by the runtime. */
  chunks: Buffer[]
  failed: Failure | undefined
  logs: LogLine[]
}

/** Frames in the order of their arrival, for whoever waits for the next one. */
class FrameQueue {
  readonly #frames: Frame[] = []
  readonly #waiting: { resolve: (frame: Frame) => void; reject: (error: Error) => void }[] = []
  #ended: Error | undefined

  push(frame: Frame): void {
    const waiting = this.#waiting.shift()
    if (waiting === undefined) this.#frames.push(frame)
    else waiting.resolve(frame)
  }

  end(error: Error): void {
    this.#ended = error
    for (const waiting of this.#waiting.splice(0)) waiting.reject(error)
  }

  next(): Promise<Frame> {
    const frame = this.#frames.shift()
    if (frame !== undefined) return Promise.resolve(frame)
    if (this.#ended !== undefined) return Promise.reject(this.#ended)
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }))
  }
}

export interface InvokeOptions {
  contentType?: string
  id?: string
  attempt?: number
  deadlineMs?: number
  http?: InvokeMeta['http']
}

export class Invocation {
  readonly stream: number
  readonly #queue: FrameQueue
  readonly #send: (bytes: Buffer) => void

  constructor(stream: number, queue: FrameQueue, send: (bytes: Buffer) => void) {
    this.stream = stream
    this.#queue = queue
    this.#send = send
  }

  /** The next frame of this invocation, whatever it is. */
  next(): Promise<Frame> {
    return this.#queue.next()
  }

  cancel(): void {
    this.#send(encodeFrame(frameTypes.cancel, this.stream))
  }

  sendBody(bytes: Buffer): void {
    this.#send(encodeFrame(frameTypes.body, this.stream, bytes))
  }

  endBody(): void {
    this.#send(encodeFrame(frameTypes.bodyEnd, this.stream))
  }

  /** Reads up to the last frame of the invocation. Throws when a frame comes out of order. */
  async answer(): Promise<Answer> {
    const answer: Answer = { meta: undefined, body: Buffer.alloc(0), chunks: [], failed: undefined, logs: [] }
    const bodies: Buffer[] = []
    for (;;) {
      const frame = await this.next()
      switch (frame.type) {
        case frameTypes.log:
          answer.logs.push(parseLog(frame))
          continue
        case frameTypes.result: {
          if (answer.meta !== undefined) throw new Error('a second result')
          const { meta, body } = decodeMetaPayload(frame.payload)
          answer.meta = resultMetaSchema.parse(meta)
          bodies.push(body)
          if (answer.meta.more) continue
          break
        }
        case frameTypes.chunk:
          if (answer.meta === undefined) throw new Error('a chunk before the result')
          answer.chunks.push(frame.payload)
          bodies.push(frame.payload)
          continue
        case frameTypes.end:
          if (answer.meta === undefined) throw new Error('an end before the result')
          break
        case frameTypes.failed:
          answer.failed = failedSchema.parse(parseJson(frame.payload))
          break
        default:
          throw new Error(`a frame of type ${frame.type} for an invocation`)
      }
      answer.body = Buffer.concat(bodies)
      return answer
    }
  }
}

/** One runtime in a process of its own, and the worker's end of its connection. */
export class RuntimeProcess implements AsyncDisposable {
  readonly socketPath: string
  /** The process ended, by itself or by disposal. */
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>
  readonly #child: ChildProcess
  readonly #dir: string
  #socket: Socket
  readonly #output: () => string
  #instance = new FrameQueue()
  readonly #invocations = new Map<number, FrameQueue>()
  /** Log lines that belong to no invocation. */
  readonly instanceLogs: LogLine[] = []
  #nextStream = 1

  private constructor(child: ChildProcess, exited: RuntimeProcess['exited'], dir: string, socket: Socket, output: () => string) {
    this.#child = child
    this.exited = exited
    this.#dir = dir
    this.#output = output
    this.socketPath = join(dir, 'runtime.sock')
    this.#socket = socket
    this.#receiveFrom(socket)
  }

  #receiveFrom(socket: Socket): void {
    const instance = this.#instance
    const decoder = new FrameDecoder()
    socket.on('data', (bytes: Buffer) => decoder.push(bytes, (frame) => this.#dispatch(frame)))
    socket.on('error', () => {})
    socket.once('close', () => {
      const error = new Error(`the connection ended; output of the runtime:\n${this.#output()}`)
      instance.end(error)
      for (const queue of this.#invocations.values()) queue.end(error)
    })
  }

  /** Starts the program and connects to it. `command` is the program and its arguments. */
  static async start(command: readonly string[], options: { runtimeDir: string; cwd: string }): Promise<RuntimeProcess> {
    const [program, ...args] = command
    if (program === undefined) throw new Error('an empty command')
    const dir = await mkdtemp(join(tmpdir(), 'thaw-runtime-'))
    const socketPath = join(dir, 'runtime.sock')
    const appeared = waitForFile(dir, socketPath)
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: {
        PATH: process.env.PATH,
        HOME: dir,
        LANG: 'C.UTF-8',
        THAW_RUNTIME_SOCKET: socketPath,
        THAW_RUNTIME_DIR: options.runtimeDir,
        THAW_SECRETS_DIR: join(dir, 'secrets'),
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const pieces: Buffer[] = []
    child.stdout.on('data', (bytes: Buffer) => pieces.push(bytes))
    child.stderr.on('data', (bytes: Buffer) => pieces.push(bytes))
    const output = () => Buffer.concat(pieces).toString()
    const exited = new Promise<{ code: number | null; signal: NodeJS.Signals | null }>((resolve) => {
      child.once('error', (error) => {
        pieces.push(Buffer.from(String(error)))
        resolve({ code: null, signal: null })
      })
      child.once('exit', (code, signal) => resolve({ code, signal }))
    })
    try {
      const early = exited.then(({ code }) => {
        throw new Error(`the runtime ended with ${code} before it listened:\n${output()}`)
      })
      await Promise.race([appeared.done, early])
      const socket = await connectUnixSocket(socketPath)
      return new RuntimeProcess(child, exited, dir, socket, output)
    } catch (error) {
      child.kill('SIGKILL')
      await rm(dir, { recursive: true, force: true })
      throw error
    } finally {
      appeared.stop()
      exited.catch(() => {})
    }
  }

  async hello(): Promise<z.infer<typeof helloSchema>> {
    return helloSchema.parse(parseJson((await this.#expect(frameTypes.hello)).payload))
  }

  sendLoad(message: Partial<LoadMessage> & Pick<LoadMessage, 'code_dir' | 'handler'>): void {
    const whole: LoadMessage = {
      function: 'subject',
      version: '1',
      contract: 'handler',
      env: {},
      timeout_ms: 60_000,
      memory_mib: 256,
      concurrency: 1,
      ...message,
    }
    this.#socket.write(encodeJsonFrame(frameTypes.load, 0, whole))
  }

  async ready(): Promise<z.infer<typeof readySchema>> {
    const frame = await this.#instance.next()
    if (frame.type === frameTypes.loadFailed) throw new Error(`load failed: ${frame.payload.toString()}`)
    if (frame.type !== frameTypes.ready) throw new Error(`a frame of type ${frame.type} instead of ready`)
    return readySchema.parse(parseJson(frame.payload))
  }

  async loadFailed(): Promise<z.infer<typeof codeFailureSchema>> {
    return codeFailureSchema.parse(parseJson((await this.#expect(frameTypes.loadFailed)).payload))
  }

  async ping(payload: Buffer): Promise<Buffer> {
    this.#socket.write(encodeFrame(frameTypes.ping, 0, payload))
    return (await this.#expect(frameTypes.pong)).payload
  }

  /** What the worker of a copy does: the one before has taken leave after the hook before_snapshot. */
  async succeed(): Promise<void> {
    const left = once(this.#socket, 'close')
    this.#socket.end()
    await left
    this.#instance = new FrameQueue()
    this.#socket = await connectUnixSocket(this.socketPath)
    this.#receiveFrom(this.#socket)
  }

  async hook(hook: 'before_snapshot' | 'after_restore'): Promise<z.infer<typeof hookDoneSchema>> {
    this.#socket.write(encodeJsonFrame(frameTypes.hook, 0, { hook }))
    return hookDoneSchema.parse(parseJson((await this.#expect(frameTypes.hookDone)).payload))
  }

  /** Starts an invocation whose body is `body`, cut into pieces as the worker does it. */
  invoke(body: Buffer | string = '', options: InvokeOptions = {}): Invocation {
    const bytes = Buffer.from(body)
    if (bytes.length <= bodyChunkBytes) return this.#invoke(bytes, false, options)
    const invocation = this.#invoke(Buffer.alloc(0), true, options)
    for (let offset = 0; offset < bytes.length; offset += bodyChunkBytes) {
      invocation.sendBody(bytes.subarray(offset, offset + bodyChunkBytes))
    }
    invocation.endBody()
    return invocation
  }

  /** Starts an invocation whose body follows through `sendBody` and `endBody`. */
  invokeInPieces(options: InvokeOptions = {}): Invocation {
    return this.#invoke(Buffer.alloc(0), true, options)
  }

  invokeJson(value: unknown, options: InvokeOptions = {}): Invocation {
    return this.invoke(JSON.stringify(value), { contentType: 'application/json', ...options })
  }

  /** Ends the connection; the process is still there. */
  disconnect(): void {
    this.#socket.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.destroy()
    this.#child.kill('SIGKILL')
    await this.exited
    await rm(this.#dir, { recursive: true, force: true })
  }

  #invoke(body: Buffer, more: boolean, options: InvokeOptions): Invocation {
    const stream = this.#nextStream++
    const queue = new FrameQueue()
    this.#invocations.set(stream, queue)
    const meta: InvokeMeta = {
      id: options.id ?? `inv_${stream}`,
      attempt: options.attempt ?? 1,
      deadline_ms: options.deadlineMs ?? Date.now() + 60_000,
      content_type: options.contentType ?? '',
      more,
      trigger: options.http === undefined ? 'invoke' : 'http',
      ...(options.http !== undefined && { http: options.http }),
    }
    this.#socket.write(encodeMetaFrame(frameTypes.invoke, stream, meta, body))
    return new Invocation(stream, queue, (bytes) => this.#socket.write(bytes))
  }

  async #expect(type: number): Promise<Frame> {
    const frame = await this.#instance.next()
    if (frame.type !== type) throw new Error(`a frame of type ${frame.type} instead of ${type}: ${frame.payload.toString()}`)
    return frame
  }

  #dispatch(frame: Frame): void {
    if (frame.stream !== 0) {
      const queue = this.#invocations.get(frame.stream)
      if (queue === undefined) this.#socket.destroy(new Error(`a frame for stream ${frame.stream}`))
      else queue.push(frame)
    } else if (frame.type === frameTypes.log) this.instanceLogs.push(parseLog(frame))
    else this.#instance.push(frame)
  }
}

/**
 * Where handlers wait until the test lets them go on: a TCP port in the handler's `GATE_PORT`. A handler connects and
 * reads until one byte comes; so the test knows that it runs, and decides how long.
 */
export class Gate implements AsyncDisposable {
  readonly port: number
  readonly #server: Server
  readonly #held: Socket[] = []
  readonly #arrivals: (() => void)[] = []

  private constructor(server: Server) {
    this.#server = server
    this.port = (server.address() as AddressInfo).port
    server.on('connection', (socket) => {
      socket.on('error', () => {})
      this.#held.push(socket)
      for (const check of this.#arrivals) check()
    })
  }

  static async open(): Promise<Gate> {
    const server = createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new Gate(server)
  }

  /** Resolves once `count` handlers have come, in all. */
  arrived(count: number): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (this.#held.length >= count) resolve()
      }
      this.#arrivals.push(check)
      check()
    })
  }

  /** Lets all that wait here go on. */
  release(): void {
    for (const socket of this.#held) socket.end('.')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#held) socket.destroy()
    this.#server.close()
    await once(this.#server, 'close')
  }
}

function parseLog(frame: Frame): LogLine {
  return { source: frame.payload[0] === logSources.stderr ? 'stderr' : 'stdout', text: frame.payload.toString('utf8', 1) }
}

function waitForFile(dir: string, path: string): { done: Promise<void>; stop: () => void } {
  let check = () => {}
  const watcher = watch(dir, () => check())
  const done = new Promise<void>((resolve) => {
    check = () => {
      if (existsSync(path)) resolve()
    }
    check()
  })
  return { done, stop: () => watcher.close() }
}
