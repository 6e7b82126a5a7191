import { crc32 } from 'node:zlib'
import { type Entry, fromBufferPromise, getFileNameLowLevel, openPromise, type ZipFile } from 'yauzl'
import { type BundleLimits, invalid, type Staging, tooLarge, unsafe } from './staging.ts'

// The upper half of the external attributes, where a Unix made the archive: st_mode of stat(2).
const typeMask = 0o170000
const types = { file: 0o100000, directory: 0o040000, symlink: 0o120000, fifo: 0o010000, socket: 0o140000 }
const maxTargetBytes = 1024

/** Reads a zip into a staging folder. The central directory counts, as in every other zip reader of today. */
export async function readZip(source: Buffer | { path: string }, staging: Staging, limits: BundleLimits): Promise<void> {
  const options = { autoClose: false, lazyEntries: true, decodeStrings: false, validateEntrySizes: true }
  const zip = Buffer.isBuffer(source) ? await fromBufferPromise(source, options) : await openPromise(source.path, options)
  try {
    // Said by the archive itself, so only good for refusing early.
    if (zip.entryCount > limits.maxEntries) throw tooLarge(`The code archive has more than ${limits.maxEntries} entries`)
    for await (const entry of zip.eachEntry()) await addEntry(zip, entry, staging)
  } finally {
    zip.close()
  }
}

async function addEntry(zip: ZipFile, entry: Entry, staging: Staging): Promise<void> {
  const name = getFileNameLowLevel(entry.generalPurposeBitFlag, entry.fileNameRaw, entry.extraFields, false)
  const mode = entry.externalFileAttributes >>> 16
  const type = mode & typeMask
  if (name.endsWith('/') && (type === 0 || type === types.directory)) return staging.addDirectory(name)
  if (type === types.fifo || type === types.socket) throw unsafe(name, 'is a FIFO or a socket')
  if (type !== 0 && type !== types.file && type !== types.symlink)
    throw unsafe(name, type === types.directory ? 'is a folder with content' : 'is a device')
  const label = JSON.stringify(name.slice(0, 200))
  if (entry.isEncrypted()) throw invalid(`the entry ${label} is encrypted`)
  if (!entry.canDecodeFileData()) throw invalid(`the entry ${label} is packed by method ${entry.compressionMethod}, which is not supported`)
  if (type !== types.symlink) return staging.addFile(name, mode, readContent(zip, entry, label))

  if (entry.uncompressedSize > maxTargetBytes) throw tooLarge(`The target of the link ${label} is too long`)
  const parts: Uint8Array[] = []
  for await (const part of readContent(zip, entry, label)) parts.push(part)
  return staging.addSymlink(name, Buffer.concat(parts).toString('utf8'))
}

async function* readContent(zip: ZipFile, entry: Entry, label: string): AsyncGenerator<Uint8Array> {
  let sum = 0
  for await (const part of await zip.openReadStreamPromise(entry)) {
    sum = crc32(part, sum)
    yield part
  }
  if (sum !== entry.crc32) throw invalid(`the content of ${label} does not have its checksum`)
}
