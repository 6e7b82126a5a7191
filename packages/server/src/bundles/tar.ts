import { type Readable, Transform } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { extract, type Header } from 'tar-stream'
import { type BundleLimits, invalid, type Staging, tooLarge, unsafe } from './staging.ts'

const blockBytes = 512

/** Reads a tar.gz into a staging folder, without ever holding more than a few blocks of it. */
export async function readTarGz(source: Readable, staging: Staging, limits: BundleLimits): Promise<void> {
  const gunzip = createGunzip()
  source.once('error', (error) => gunzip.destroy(error))
  const capped = new ByteCap(limits.maxUnpackedBytes + (limits.maxEntries + 2) * 4 * blockBytes)
  gunzip.once('error', (error) => capped.destroy(error))
  try {
    await readTar(source.pipe(gunzip).pipe(capped), staging)
  } finally {
    source.destroy()
    gunzip.destroy()
    capped.destroy()
  }
}

/** Reads an uncompressed tar stream into a staging folder. */
export async function readTar(tar: Readable, staging: Staging): Promise<void> {
  const entries = extract()
  tar.once('error', (error) => entries.destroy(error))
  tar.pipe(entries as unknown as NodeJS.WritableStream)
  for await (const entry of entries) {
    await addEntry(entry.header, entry as unknown as AsyncIterable<Uint8Array>, staging)
    entry.resume()
  }
}

async function addEntry(header: Header, content: AsyncIterable<Uint8Array>, staging: Staging): Promise<void> {
  const { name, linkname } = header
  switch (header.type) {
    case 'directory':
      return staging.addDirectory(name)
    case 'file':
    case 'contiguous-file':
      return staging.addFile(name, header.mode, content)
    case 'symlink':
      return staging.addSymlink(name, linkname ?? '')
    case 'link':
      return staging.addHardLink(name, linkname ?? '')
    case 'block-device':
    case 'character-device':
      throw unsafe(name, 'is a device')
    case 'fifo':
      throw unsafe(name, 'is a FIFO')
    default:
      throw invalid(`the entry ${JSON.stringify(name.slice(0, 200))} is of an unknown kind`)
  }
}

/** Headers, padding and records that make no entry count too: a stream of nothing but those must end as well. */
class ByteCap extends Transform {
  readonly #maxBytes: number
  #bytes = 0

  constructor(maxBytes: number) {
    super()
    this.#maxBytes = maxBytes
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null, chunk?: Buffer) => void): void {
    this.#bytes += chunk.length
    if (this.#bytes > this.#maxBytes) done(tooLarge(`The code archive holds more than ${this.#maxBytes} bytes unpacked`))
    else done(null, chunk)
  }
}
