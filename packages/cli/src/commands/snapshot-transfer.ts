import { randomBytes } from 'node:crypto'
import { createWriteStream } from 'node:fs'
import { realpath, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { ThawError } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { type Output, size } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { snapshotId } from './snapshot-named.ts'

export function registerTransfer(snapshot: Command, output: Output): void {
  snapshot
    .command('export')
    .argument('<snapshot>', 'id or name')
    .description('Write a snapshot as one file (tar.zst): to standard output, or with -o to a file.')
    .option('-o, --output <file>', 'file, or a folder that it is to lie in; only its owner may read it')
    .addHelpText(
      'after',
      `
Examples:
  thaw snapshot export before-upgrade -o before-upgrade.tar.zst
  thaw snapshot export before-upgrade | ssh other thaw snapshot import -

The file holds the memory of the sandbox, and every secret that is in it.`,
    )
    .action((name: string, flags: { output?: string }, command: Command) =>
      withServer(command, output, async (context) => {
        const file = flags.output ?? '-'
        if (file === '-' && (process.stdout.isTTY || output.json))
          throw new UsageError('A snapshot is no text.', `Say where it is to go: \`thaw snapshot export ${name} -o FILE\`.`)
        await exportTo(context, await snapshotId(context, name), file)
      }),
    )

  snapshot
    .command('import')
    .argument('<file>', 'what was exported, or - for standard input')
    .description('Take in a snapshot that was exported, here or on another machine of the same kind. For admins. Prints its id.')
    .option('--name <name>', 'what it is to be called (default: as it was)')
    .addHelpText(
      'after',
      `
Examples:
  thaw snapshot import before-upgrade.tar.zst
  thaw snapshot import before-upgrade.tar.zst --name from-elsewhere

Whoever made the file decides what goes on in sandboxes of it: take only what you trust.`,
    )
    .action((file: string, { name }: { name?: string }, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        if (file === '-' && process.stdin.isTTY) throw new UsageError('Nothing is on standard input.', 'Name a file, or pipe one in.')
        const total = file === '-' ? null : await sizeOf(file)
        let sent = 0
        const label = () =>
          `importing ${file === '-' ? 'standard input' : file} (${size(sent)}${total === null ? '' : ` of ${size(total)}`})`
        const onProgress = (bytes: number) => {
          sent = bytes
        }
        const archive = file === '-' ? process.stdin : { path: file }
        const item = await output.progress.during(label, () => thaw.snapshots.import(archive, { name, signal, onProgress }))
        output.result(item, () => item.id)
        output.note(`${item.kind} of ${item.image}, ${size(item.size_bytes)}${item.name === null ? '' : `, called ${item.name}`}`)
        output.note(asTyped(`use it: \`thaw snapshot restore ${item.id}\``))
      }),
    )
}

/** null where there is none to know, as of a pipe. What is wrong with the file, whoever opens it says. */
async function sizeOf(file: string): Promise<number | null> {
  const info = await stat(file).catch(() => null)
  return info?.isFile() === true ? info.size : null
}

async function exportTo({ output, thaw, signal }: Context, id: string, file: string): Promise<void> {
  let bytes = 0
  const label = () => `exporting ${id} (${size(bytes)})`
  const pieces = thaw.snapshots.export(id, {
    signal,
    onProgress: (so_far) => {
      bytes = so_far
    },
  })
  const path = await output.progress.during(label, async () => {
    if (file !== '-') return writeWhole(pieces, file, `${id}.tar.zst`)
    for await (const piece of pieces) await output.bytes(piece)
    return null
  })
  if (path !== null) output.result({ id, path, bytes }, () => `${path} (${size(bytes)})`)
}

/** Writes a file that is there when it is whole, or not at all. Resolves with its path. */
async function writeWhole(pieces: AsyncIterable<Uint8Array>, file: string, ownName: string): Promise<string> {
  const there = await stat(file).catch(() => null)
  const target = there?.isDirectory() === true ? join(file, ownName) : file
  // A device or a pipe must not be replaced by a file.
  if (there !== null && !there.isDirectory() && !there.isFile()) {
    await pipeline(pieces, createWriteStream(target, { flags: 'r+' }))
    return target
  }
  const real = await realpath(target).catch(() => target)
  const part = `${real}.${randomBytes(4).toString('hex')}.part`
  try {
    await pipeline(pieces, createWriteStream(part, { flags: 'wx', mode: 0o600 }))
    await rename(part, real)
  } catch (error) {
    await rm(part, { force: true })
    throw error instanceof Error && 'syscall' in error ? unwritable(target, error) : error
  }
  return target
}

function unwritable(path: string, cause: Error & { code?: unknown }): ThawError {
  const code = cause.code === 'ENOSPC' ? 'disk_full' : 'file_invalid'
  return new ThawError(code, `${path} cannot be written on this machine: ${cause.message}.`, {
    fix: 'Name a file in a folder that exists, with enough room.',
    cause,
  })
}
