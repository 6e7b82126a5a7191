import { Duplex } from 'node:stream'

type Source = 'stdout' | 'stderr'

const headerBytes = 8
const sources: Record<number, Source> = { 1: 'stdout', 2: 'stderr' }

/**
 * Takes apart what an engine sends for a container without a terminal: frames of one byte for the source, three zeros, and
 * the length as u32 (Engine API, ContainerAttach). A frame is passed on as it arrives, not as a whole.
 */
export function demultiplex(onBytes: (source: Source, bytes: Buffer) => void): (chunk: Buffer) => void {
  let header = Buffer.alloc(0)
  let source: Source = 'stdout'
  let left = 0
  return (chunk) => {
    let at = 0
    while (at < chunk.length) {
      if (left === 0) {
        const wanted = headerBytes - header.length
        header = Buffer.concat([header, chunk.subarray(at, at + wanted)])
        at += wanted
        if (header.length < headerBytes) return
        source = sources[header[0] as number] ?? 'stdout'
        left = header.readUInt32BE(4)
        header = Buffer.alloc(0)
        continue
      }
      const bytes = chunk.subarray(at, at + left)
      at += bytes.length
      left -= bytes.length
      onBytes(source, bytes)
    }
  }
}

/** stdin and stdout of a program in a container, over the connection of an exec. Its stderr is kept for errors. */
export class ExecStream extends Duplex {
  readonly #connection: Duplex
  #stderr = ''

  constructor(connection: Duplex) {
    super({ allowHalfOpen: false })
    this.#connection = connection
    const take = demultiplex((source, bytes) => {
      if (source === 'stderr') this.#stderr = (this.#stderr + bytes.toString('utf8')).slice(-2000)
      else if (!this.push(bytes)) connection.pause()
    })
    connection.on('data', take)
    connection.once('end', () => this.push(null))
    connection.once('error', (error) => this.destroy(error))
    connection.once('close', () => this.destroy())
  }

  /** The end of what the program printed to stderr. */
  get stderr(): string {
    return this.#stderr.trim()
  }

  override _read(): void {
    this.#connection.resume()
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    if (this.#connection.write(chunk)) done()
    else this.#connection.once('drain', () => done())
  }

  override _final(done: () => void): void {
    this.#connection.end(done)
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#connection.destroy()
    done(error)
  }
}
