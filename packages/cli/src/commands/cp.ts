import { stat } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import type { CopyProgress, Sandbox } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { type Output, size } from '../output.ts'

interface Flags {
  user?: string
}

export function registerCopy(sandbox: Command, output: Output): void {
  sandbox
    .command('cp')
    .argument('<from>', 'file or folder: PATH, SANDBOX:PATH, or - for standard input')
    .argument('<to>', 'PATH, SANDBOX:PATH, or - for standard output')
    .description('Copy files and folders into a sandbox, or out of one.')
    .option('-u, --user <user>', 'whose permissions count in the sandbox (default: root)')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox cp ./project lab:/work
  thaw sandbox cp lab:/work/result.csv .
  thaw sandbox cp ./project/. lab:/work            # what the folder holds, without itself
  echo hello | thaw sandbox cp - lab:/tmp/greeting
  thaw sandbox cp lab:/etc/hostname -

A folder as the target holds the copy under its own name; a folder that is not there becomes the copy.`,
    )
    .action((from: string, to: string, flags: Flags, command: Command) =>
      withServer(command, output, async (context) => {
        const copied = await copy(context, placeOf(from), placeOf(to), flags)
        if (to !== '-') output.result({ from, to: copied.to, files: copied.files, bytes: copied.bytes }, () => `${from} → ${copied.to}`)
      }),
    )
}

/** One side of a copy: `-`, a path here, or a path in a sandbox. */
interface Place {
  sandbox: string | null
  path: string
}

function placeOf(text: string): Place {
  const match = /^([a-z0-9][a-z0-9-]{0,63}):(.*)$/s.exec(text)
  // An empty path is the home folder, as with scp.
  return match === null ? { sandbox: null, path: text } : { sandbox: match[1] as string, path: match[2] || '.' }
}

interface Copied extends CopyProgress {
  to: string
}

async function copy(context: Context, from: Place, to: Place, { user }: Flags): Promise<Copied> {
  const { output, thaw, signal } = context
  if ((from.sandbox === null) === (to.sandbox === null)) {
    throw new UsageError('One side must be in a sandbox, and the other one here.', 'Write a path in a sandbox as SANDBOX:PATH.')
  }
  const id = from.sandbox ?? (to.sandbox as string)
  const sandbox = await output.progress.during(`reading ${id}`, () => thaw.sandboxes.get(id, { signal }))
  const seen: CopyProgress = { files: 0, bytes: 0 }
  const options = { user, signal, onProgress: (progress: CopyProgress) => void Object.assign(seen, progress) }
  const label = () => `copying (${seen.files} ${seen.files === 1 ? 'file' : 'files'}, ${size(seen.bytes)})`
  return output.progress.during(label, async () => {
    const target =
      to.sandbox === null
        ? await download(context, sandbox, from.path, to.path, options)
        : await upload(sandbox, from.path, to.path, options)
    return { to: target, ...seen }
  })
}

interface Options {
  user: string | undefined
  signal: AbortSignal
  onProgress: (progress: CopyProgress) => void
}

/** Resolves with where it went. */
async function upload(sandbox: Sandbox, from: string, to: string, options: Options): Promise<string> {
  if (from === '-') {
    if (to.endsWith('/') || to === '.') throw new UsageError('Standard input has no name.', 'Name the file that is to be written.')
    await sandbox.files.write(to, counted(process.stdin, options), options)
    return `${sandbox.id}:${to}`
  }
  const path = into(to, from, (await typeInside(sandbox, to, options)) === 'directory')
  await sandbox.files.upload(from, path, options)
  return `${sandbox.id}:${path}`
}

async function download({ output }: Context, sandbox: Sandbox, from: string, to: string, options: Options): Promise<string> {
  if (to === '-') {
    if ((await sandbox.files.stat(from, options)).type === 'directory') {
      throw new UsageError(
        `${from} is a folder, which standard output cannot hold.`,
        'Copy it to a folder, or run tar: `thaw sandbox exec SANDBOX -- tar -c PATH`.',
      )
    }
    for await (const piece of sandbox.files.readStream(from, options)) await output.bytes(piece)
    return '-'
  }
  const path = into(
    to,
    from,
    await stat(to).then(
      (info) => info.isDirectory(),
      () => false,
    ),
  )
  await sandbox.files.download(from, path, options)
  return path
}

/** Where a copy goes: into a folder under its own name, else to the place itself. `folder/.` means what the folder holds. */
export function into(to: string, from: string, isFolder: boolean): string {
  if (!isFolder && !to.endsWith('/')) return to
  if (/(?:^|\/)\.{1,2}\/?$/.test(from) && !/(?:^|\/)\.\.\/?$/.test(from)) return to
  return join(to, basename(from.endsWith('..') ? resolve(from) : from))
}

async function typeInside(sandbox: Sandbox, path: string, { user, signal }: Options): Promise<string | null> {
  return (await sandbox.files.exists(path, { user, signal })) ? (await sandbox.files.stat(path, { user, signal })).type : null
}

async function* counted(pieces: AsyncIterable<Uint8Array>, { onProgress }: Options): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const piece of pieces) {
    bytes += piece.length
    onProgress({ files: 1, bytes })
    yield piece
  }
}
