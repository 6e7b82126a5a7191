import type { Readable } from 'node:stream'
import type { ServerChannel } from 'ssh2'

/** What the library keeps of a write that waits for the client to take more. */
interface Waiting {
  _chunk?: unknown
  _chunkcb?: unknown
  _chunkErr?: unknown
  _chunkcbErr?: unknown
}

/** Writes stdout and stderr of a channel one after the other, each piece when the client has made room for the one before. */
export class ChannelOutput {
  readonly #channel: ServerChannel
  readonly #closed: Promise<void>
  #last: Promise<void> = Promise.resolve()

  constructor(channel: ServerChannel) {
    this.#channel = channel
    this.#closed = new Promise((resolve) => channel.once('close', () => resolve()))
  }

  /** Resolves also when the channel is closed, and nobody takes it any more. */
  write(name: 'stdout' | 'stderr', bytes: Buffer): Promise<void> {
    this.#last = this.#last.then(() => this.#write(name, bytes))
    return this.#last
  }

  #write(name: 'stdout' | 'stderr', bytes: Buffer): Promise<void> {
    const channel = this.#channel
    const stream = name === 'stdout' ? channel : channel.stderr
    if (!stream.writable) return Promise.resolve()
    // ssh2 1.17 never forgets what waited for room: when the other stream waits the next time, it sends that once more.
    const waiting = channel as unknown as Waiting
    waiting._chunk = waiting._chunkcb = waiting._chunkErr = waiting._chunkcbErr = undefined
    const written = new Promise<void>((resolve) => stream.write(bytes, () => resolve()))
    return Promise.race([written, this.#closed])
  }
}

/** What arrived of a stream since the last look, as one piece; ends with the stream, however that ends. */
export async function* arrivals(stream: Readable): AsyncGenerator<Buffer> {
  let isOver = false
  let wake = () => {}
  const over = () => {
    isOver = true
    wake()
  }
  stream.on('readable', () => wake())
  for (const event of ['end', 'close', 'error']) stream.once(event, over)
  for (;;) {
    const arrived = new Promise<void>((resolve) => {
      wake = resolve
    })
    const bytes: Buffer | null = stream.read()
    if (bytes !== null) yield bytes
    else if (isOver) return
    else await arrived
  }
}
