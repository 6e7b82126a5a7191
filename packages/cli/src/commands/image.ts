import type { ImageItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, withServer } from '../context.ts'
import { type Output, size, table } from '../output.ts'

const runtimes = ['python', 'node', 'go']

export function register(program: Command, output: Output): void {
  const image = program.command('image').description('List, pull, build and remove images.')

  image
    .command('ls')
    .description('List images. Several may have one name: functions keep the one that they were deployed with.')
    .addHelpText('after', '\nExamples:\n  thaw image ls')
    .action((_options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing images', () => thaw.images.list({ signal }).all())
        output.result(items, () => imageTable(items))
      }),
    )

  image
    .command('pull')
    .argument('<ref>', 'OCI reference')
    .description('Pull an image from its registry.')
    .addHelpText('after', '\nExamples:\n  thaw image pull registry.example/app:1.2')
    .action((ref: string, _options: object, command: Command) => withServer(command, output, (context) => make(context, ref, 'pulling')))

  image
    .command('build')
    .argument('<source>', 'folder with a Dockerfile; or a runtime: python, node or go; or packages of Debian: apt:git,curl')
    .option('-t, --tag <ref>', 'what the image is to be called (folder)')
    .option('-f, --file <path>', 'the Dockerfile, relative to the folder', 'Dockerfile')
    .description('Build an image from a Dockerfile or from packages of Debian, or that of a runtime ahead of its first use.')
    .addHelpText(
      'after',
      '\nExamples:\n  thaw image build python\n  thaw image build apt:postgresql,redis-server\n  thaw image build ./app --tag app:1.0',
    )
    .action((source: string, options: { tag?: string; file: string }, command: Command) =>
      withServer(command, output, (context) => {
        if (runtimes.includes(source) || source.startsWith('apt:')) return make(context, source, 'building')
        const { tag } = options
        if (tag === undefined) command.error(`error: --tag is missing: what is the image of ${source} to be called?`)
        return build(context, source, tag as string, options.file)
      }),
    )

  image
    .command('rm')
    .argument('<ref>', 'image')
    .description('Remove an image from the disk of the server.')
    .addHelpText('after', '\nExamples:\n  thaw image rm registry.example/app:1.2')
    .action((ref: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        await output.progress.during(`removing ${ref}`, () => thaw.images.delete(ref, { signal }))
        output.result({ removed: [ref] }, () => `removed ${ref}`)
      }),
    )

  image
    .command('prune')
    .description('Remove the images that no function uses.')
    .addHelpText('after', '\nExamples:\n  thaw image prune')
    .action((_options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const result = await output.progress.during('removing unused images', () => thaw.images.prune({ signal }))
        output.result(result, () => [...result.removed.map((ref) => `removed ${ref}`), `${size(result.freed_bytes)} freed`].join('\n'))
      }),
    )
}

async function make({ output, thaw, signal }: Context, ref: string, verb: string): Promise<void> {
  const onProgress = (line: string) => output.note(line)
  const item = await output.progress.during(`${verb} ${ref}`, () => thaw.images.create(ref, { onProgress, signal }))
  output.result(item, () => `${item.ref} is ${item.state}: ${item.digest ?? 'no digest'}, ${size(item.size_bytes)}`)
}

async function build({ output, thaw, signal }: Context, folder: string, ref: string, dockerfile: string): Promise<void> {
  const onProgress = (line: string) => output.note(line)
  const item = await output.progress.during(`building ${ref}`, () => thaw.images.build(ref, folder, { dockerfile, onProgress, signal }))
  output.result(item, () => `${item.ref} is ${item.state}: ${item.digest ?? 'no digest'}, ${size(item.size_bytes)}`)
}

function byRefAndAge(a: ImageItem, b: ImageItem): number {
  return a.ref.localeCompare(b.ref) || (b.created_at ?? '').localeCompare(a.created_at ?? '')
}

/** The newest of those that were asked for by the same name. */
export function isNewest(item: ImageItem, items: readonly ImageItem[]): boolean {
  const { ref, created_at } = item
  return created_at !== null && items.every((other) => other.ref !== ref || (other.created_at ?? '') <= created_at)
}

function imageTable(items: ImageItem[]): string {
  return table(
    ['IMAGE', 'KIND', 'STATE', 'NEWEST', 'SIZE', 'IN USE', 'CREATED', 'DIGEST'],
    items
      .toSorted(byRefAndAge)
      .map((item) => [
        item.ref,
        item.kind,
        item.state,
        isNewest(item, items) ? 'yes' : '',
        size(item.size_bytes),
        item.in_use ? 'yes' : 'no',
        item.created_at?.slice(0, 19).replace('T', ' ') ?? '-',
        item.digest?.replace('sha256:', '').slice(0, 12) ?? '-',
      ]),
  )
}
