/**
 * The Node.js runtime of thaw: one connection from the worker, frames in, frames out (docs/runtime-protocol.md).
 * Needs nothing but Node.js 18 or later, and imports little of it, because its start is part of every cold start.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { loadHandler } from './code.mjs'
import { encodeFrame, encodeJsonFrame, frameDecoder, frameTypes } from './frames.mjs'
import { currentInvocation, Invocation } from './invocation.mjs'
import { captureOutput, LogLines } from './logs.mjs'
import { describeFailure } from './mapping.mjs'
import { prepareReseed, reseed } from './random.mjs'
import thaw from './thaw.cjs'

const { parse } = JSON
const exit = process.exit.bind(process)
const steadyNow = performance.now.bind(performance)

const path = process.env.THAW_RUNTIME_SOCKET
if (path === undefined) {
  process.stderr.write('THAW_RUNTIME_SOCKET is not set: this program is started by a thaw worker.\n')
  exit(2)
}

// Programs that the code starts have no business with the connection.
delete process.env.THAW_RUNTIME_SOCKET
delete process.env.THAW_RUNTIME_DIR

// As the first process of a container, this one would ignore the signal otherwise.
process.on('SIGTERM', () => exit(0))

/** Of the worker. */
let socket
/** The instance was made ready for a snapshot, and listens for the worker of its copies. */
let successors
let receive

listen()

/** Takes one connection. An end of it that the worker makes is answered by closing the descriptor, not by half of that. */
function listen() {
  const server = createServer({ allowHalfOpen: true }, (connected) => {
    server.close()
    successors = undefined
    socket = connected
    receive ??= serve()
    const ended = () => {
      if (successors === undefined && socket === connected) exit(0)
      connected.destroy()
    }
    connected.on('data', frameDecoder(receive))
    connected.on('error', ended)
    connected.on('end', ended)
    connected.on('close', ended)
    connected.write(encodeJsonFrame(frameTypes.hello, 0, { protocol: 1, runtime: 'node', runtime_version: process.version }))
  })
  server.maxConnections = 1
  // Under its final name at once: a snapshot loses the name of a socket that was renamed.
  server.listen(path)
  return server
}

/** Puts secrets where only the user of the function reads them. */
function writeSecrets(files = {}) {
  if (Object.keys(files).length === 0) return
  const folder = process.env.THAW_SECRETS_DIR
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  for (const name of Object.keys(files)) writeFileSync(`${folder}/${name}`, files[name], { flag: 'wx', mode: 0o400 })
}

/** Sets up what serves the connection, or one after the other. Returns what takes the frames. */
function serve() {
  const invocations = new Map()
  let load
  let handler
  let drained

  const connection = {
    write: (frame) => socket.write(frame),
    /** Resolves when the worker has taken what was written. */
    drained: () => {
      drained ??= new Promise((resolve) =>
        socket.once('drain', () => {
          drained = undefined
          resolve()
        }),
      )
      return drained
    },
    forget: (stream) => invocations.delete(stream),
  }
  const { write } = connection

  const instanceLines = new LogLines(0, write)
  captureOutput(() => {
    const invocation = currentInvocation()
    return invocation === undefined || invocation.done ? instanceLines : invocation.lines
  })
  process.on('exit', () => {
    instanceLines.flush()
    for (const { lines } of invocations.values()) lines.flush()
  })
  process.on('uncaughtException', (error) => onDetachedFailure('uncaughtException', error))
  process.on('unhandledRejection', (error) => onDetachedFailure('unhandledRejection', error))

  function onDetachedFailure(event, error) {
    // Code that listens itself has taken over.
    if (process.listenerCount(event) > 1) return
    const invocation = currentInvocation()
    if (invocation !== undefined && !invocation.done) return invocation.failDetached(error)
    const failure = describeFailure(error)
    instanceLines.write(2, `${failure.stack ?? `${failure.type}: ${failure.message}`}\n`)
    // What an invocation left behind does not end those that run now.
    if (invocation !== undefined) return
    if (load !== undefined && handler === undefined) write(encodeJsonFrame(frameTypes.loadFailed, 0, failure))
    exit(1)
  }

  async function onLoad(message) {
    const start = steadyNow()
    load = message
    try {
      Object.assign(process.env, message.env)
      writeSecrets(message.secret_files)
      message.secret_files = undefined
      process.chdir(message.code_dir)
      handler = await loadHandler(message.code_dir, message.handler)
    } catch (error) {
      write(encodeJsonFrame(frameTypes.loadFailed, 0, describeFailure(error)))
      return
    }
    write(encodeJsonFrame(frameTypes.ready, 0, { init_ms: steadyNow() - start }))
  }

  async function onHook(message) {
    const { hook } = message
    let answer = { hook }
    try {
      if (hook === 'after_restore') {
        // Where the worker went on with the connection that it had.
        successors?.close()
        successors = undefined
        reseed()
        Object.assign(process.env, message.env)
        writeSecrets(message.files)
      }
      await thaw.runHook(hook)
      if (hook === 'before_snapshot') {
        prepareReseed()
        await listenAnew()
      }
    } catch (error) {
      answer = { hook, error: describeFailure(error) }
    }
    write(encodeJsonFrame(frameTypes.hookDone, 0, answer))
  }

  async function listenAnew() {
    rmSync(path, { force: true })
    const server = listen()
    await new Promise((resolve, reject) => server.once('listening', resolve).once('error', reject))
    successors = server
  }

  function onInvoke(stream, payload) {
    const metaEnd = 4 + payload.readUInt32BE(0)
    const meta = parse(payload.toString('utf8', 4, metaEnd))
    const invocation = new Invocation(stream, meta, connection)
    invocations.set(stream, invocation)
    if (!meta.more) invocation.start(handler, load, payload.subarray(metaEnd))
    else if (payload.length > metaEnd) invocation.addBody(payload.subarray(metaEnd))
  }

  return (type, stream, payload) => {
    switch (type) {
      case frameTypes.invoke:
        return onInvoke(stream, payload)
      case frameTypes.body:
        return invocations.get(stream)?.addBody(payload)
      case frameTypes.bodyEnd:
        return invocations.get(stream)?.start(handler, load)
      case frameTypes.cancel:
        return invocations.get(stream)?.cancel()
      case frameTypes.ping:
        return write(encodeFrame(frameTypes.pong, 0, payload))
      case frameTypes.load:
        return onLoad(parse(payload.toString()))
      case frameTypes.hook:
        return onHook(parse(payload.toString()))
    }
  }
}
