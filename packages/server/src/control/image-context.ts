import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { ThawError } from '@thaw/protocol'

/** A tar or tar.gz as a tar stream, which fails once it holds more than `maxBytes`: no small file fills the disk of an engine. */
export function openArchive(archive: Readable, maxBytes: number): Readable {
  return Readable.from(unpacked(archive, maxBytes), { objectMode: false })
}

async function* unpacked(archive: Readable, maxBytes: number): AsyncGenerator<Buffer> {
  const pieces = archive[Symbol.asyncIterator]() as AsyncIterator<Buffer>
  const { value: first, done } = await pieces.next()
  if (done === true) throw new ThawError('archive_invalid', 'The body is empty.', { fix: 'Send a tar of the folder with the Dockerfile.' })
  const whole = Readable.from(
    (async function* () {
      yield first
      for (let next = await pieces.next(); next.done !== true; next = await pieces.next()) yield next.value
    })(),
    { objectMode: false },
  )
  let bytes = 0
  try {
    for await (const piece of isGzip(first) ? gunzip(whole) : whole) {
      bytes += (piece as Buffer).length
      if (bytes > maxBytes) {
        throw new ThawError('archive_too_large', `The folder of the Dockerfile holds more than ${maxBytes} bytes.`, {
          fix: 'Leave out what the build does not need (.dockerignore), or raise limits.max_unpacked_bytes.',
        })
      }
      yield piece as Buffer
    }
  } catch (cause) {
    if (!(cause as NodeJS.ErrnoException).code?.startsWith('Z_')) throw cause
    throw new ThawError('archive_invalid', 'The folder of the Dockerfile is not a whole tar.gz file.', { cause })
  }
}

function isGzip(start: Buffer): boolean {
  return start[0] === 0x1f && start[1] === 0x8b
}

function gunzip(packed: Readable): Readable {
  const unpacking = createGunzip()
  // Its failure shows where it is read.
  pipeline(packed, unpacking).catch(() => undefined)
  return unpacking
}
