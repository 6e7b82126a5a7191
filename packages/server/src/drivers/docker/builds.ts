import { createHash } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { ThawError } from '@thaw/protocol'
import { type Engine, statusOf } from './engine.ts'

export interface BuildRequest {
  /** What the image is to be called; a build of the same name begins with the layers of the one before. */
  ref: string
  /** A tar stream of the folder with the Dockerfile. */
  context: Readable
  /** Path of the Dockerfile in it. */
  dockerfile: string
  /** File that gets the image as an archive (docker save). */
  target: string
  /** Network of RUN steps. */
  network: string
  onProgress: (line: string) => void
  signal: AbortSignal
}

const memoryBytes = 2 * 1024 ** 3
/** How much of the end of a log goes into the error of a build that failed. */
const maxLogBytes = 16 * 1024

/** A line of what POST /build answers. */
interface BuildLine {
  stream?: string
  status?: string
  error?: string
  aux?: { ID?: string }
}

/** Builds an image by the engine's own builder. Throws `build_failed` with the end of the log. */
export async function buildImage(engine: Engine, request: BuildRequest): Promise<void> {
  const { signal, onProgress } = request
  const tag = `thaw/build:${createHash('sha256').update(request.ref).digest('hex').slice(0, 32)}`
  const before = await imageId(engine, tag)
  let log = ''
  const say = (line: string) => {
    log = `${log}${line}\n`.slice(-maxLogBytes)
    onProgress(line)
  }
  let answer: Readable
  try {
    answer = await engine.stream('POST', '/build', {
      query: {
        t: tag,
        dockerfile: request.dockerfile,
        rm: true,
        forcerm: true,
        networkmode: request.network,
        memory: memoryBytes,
        memswap: memoryBytes,
      },
      stream: request.context,
      signal,
      timeoutMs: null,
    })
  } catch (error) {
    signal.throwIfAborted()
    // The engine refuses a context without a Dockerfile, or a Dockerfile that it cannot read, before it builds.
    const status = statusOf(error)
    if (status === null || (status >= 500 && !/dockerfile/i.test((error as ThawError).message))) throw error
    throw new ThawError('build_failed', (error as ThawError).message, { details: { log: (error as ThawError).message }, cause: error })
  }
  for await (const line of linesOf(answer)) {
    const { stream, status, error } = JSON.parse(line) as BuildLine
    for (const text of (stream ?? status ?? '').split('\n')) if (text.trim() !== '') say(text.trimEnd())
    if (error !== undefined) {
      say(error)
      throw new ThawError('build_failed', `The build failed: ${error.slice(0, 500)}`, {
        fix: 'Read the end of the build log in details.log, and repair the Dockerfile.',
        details: { log: log.trim() },
      })
    }
  }
  signal.throwIfAborted()
  // Its layers stay where the new one has them, too.
  const after = await imageId(engine, tag)
  if (before !== null && before !== after) await engine.call('DELETE', `/images/${before}`).catch(() => undefined)
  onProgress('saving the image')
  const archive = await engine.stream('GET', `/images/${tag}/get`, { signal, timeoutMs: null })
  await pipeline(archive, createWriteStream(request.target, { mode: 0o600 }), { signal })
}

async function imageId(engine: Engine, reference: string): Promise<string | null> {
  try {
    return (await engine.call<{ Id: string }>('GET', `/images/${reference}/json`)).Id
  } catch (error) {
    if (statusOf(error) === 404) return null
    throw error
  }
}

async function* linesOf(stream: Readable): AsyncGenerator<string> {
  let open = ''
  stream.setEncoding('utf8')
  for await (const text of stream) {
    const lines = (open + (text as string)).split('\n')
    open = lines.pop() ?? ''
    for (const line of lines) if (line.trim() !== '') yield line
  }
  if (open.trim() !== '') yield open
}
