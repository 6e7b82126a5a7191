import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { PassThrough, type Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createZstdCompress, createZstdDecompress } from 'node:zlib'
import { ThawError } from '@thaw/protocol'

/**
 * A snapshot as one file: a tar archive, compressed by zstd. GNU tar packs it, since a writable layer has what few
 * libraries carry: extended attributes, devices that mark what was deleted, holes.
 */
const common = ['--xattrs', '--xattrs-include=*', '--numeric-owner', '--sparse']

/** The archive of a folder, as it is made. It ends in an error when the folder cannot be read. */
export function packFolder(dir: string): Readable {
  const tar = spawn('tar', ['--create', ...common, '--directory', dir, '.'], { stdio: ['ignore', 'pipe', 'pipe'] })
  const archive = new PassThrough()
  const failed = failure(tar)
  // Nobody waits for it when the reader goes away first.
  failed.catch(() => undefined)
  void (async () => {
    try {
      await pipeline(tar.stdout, createZstdCompress(), archive, { end: false })
      await failed
      archive.end()
    } catch (cause) {
      tar.kill('SIGKILL')
      archive.destroy(new ThawError('snapshot_failed', 'The snapshot cannot be packed.', { cause }))
    }
  })()
  archive.once('close', () => tar.kill('SIGKILL'))
  return archive
}

/** Unpacks into an empty folder. Throws `archive_invalid` for what is no such archive; what was unpacked stays. */
export async function unpackInto(dir: string, archive: Readable): Promise<void> {
  const tar = spawn('tar', ['--extract', ...common, '--same-owner', '--same-permissions', '--directory', dir], {
    stdio: ['pipe', 'ignore', 'pipe'],
  })
  const failed = failure(tar)
  failed.catch(() => undefined)
  try {
    await pipeline(archive, createZstdDecompress(), tar.stdin)
    await failed
  } catch (cause) {
    // Tar is content with the end of its archive, and may be gone before the stream says that it ends.
    if (isClosedEarly(cause) && (await succeeded(failed))) return
    tar.kill('SIGKILL')
    const why = await failed.then(
      () => cause,
      (error: unknown) => error,
    )
    if (/No space left/.test(String(why))) throw new ThawError('disk_full', undefined, { cause: why })
    throw new ThawError('archive_invalid', 'This is no snapshot that was exported, or not all of it.', {
      fix: 'Send the whole file, as `thaw snapshot export` wrote it.',
      cause: why,
    })
  }
}

function isClosedEarly(error: unknown): boolean {
  return error instanceof Error && 'code' in error && (error.code === 'ERR_STREAM_PREMATURE_CLOSE' || error.code === 'EPIPE')
}

function succeeded(work: Promise<void>): Promise<boolean> {
  return work.then(
    () => true,
    () => false,
  )
}

async function failure(tar: ChildProcess): Promise<void> {
  let said = ''
  tar.stderr?.on('data', (bytes: Buffer) => {
    if (said.length < 4096) said += bytes.toString('utf8')
  })
  const [code] = (await once(tar, 'close')) as [number | null]
  if (code !== 0) throw new Error(`tar ended with ${code}: ${said.trim()}`)
}
