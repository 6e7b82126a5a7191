import { type SecretItem, type Thaw, ThawError } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { type Output, table } from '../output.ts'
import { readSecret } from '../secret-input.ts'

const setExamples = `
Examples:
  thaw secret set DATABASE_URL
  thaw secret set DATABASE_URL @url.txt
  pass show database | thaw secret set DATABASE_URL

Without VALUE it is asked for on a terminal, unseen, and else read from standard input, without its last line break.
A VALUE on the command line is seen by whoever lists processes, and stays in the history of the shell.`

export function register(program: Command, output: Output): void {
  const secret = program.command('secret').description('Keep values that functions get as variables and that nobody reads back.')

  secret
    .command('set')
    .argument('<secret>', 'name')
    .argument('[value]', 'text, @file, or - for standard input')
    .description('Create a secret, or give it another value.')
    .addHelpText('after', setExamples)
    .action((name: string, text: string | undefined, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const value = await readSecret(name, text, signal)
        const item = await output.progress.during(`setting ${name}`, () => createOrSet(thaw, name, value, signal))
        output.result(item, () => {
          const users = item.used_by.length === 0 ? '' : `; instances of ${item.used_by.join(', ')} that start from now on get it`
          return `${item.name} is set${users}`
        })
      }),
    )

  secret
    .command('ls')
    .description('List secrets and the functions that use them; values are not shown, to anybody.')
    .option('-q, --quiet', 'names only')
    .addHelpText('after', '\nExamples:\n  thaw secret ls\n  thaw secret ls --json | jq -r ".[].name"')
    .action((options: { quiet?: boolean }, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing secrets', () => thaw.secrets.list({ signal }).all())
        output.result(items, () => (options.quiet === true ? items.map((item) => item.name).join('\n') : secretTable(items)))
        if (items.length === 0 && options.quiet !== true) output.note('no secrets yet; make one with `thaw secret set NAME`')
      }),
    )

  secret
    .command('rm')
    .argument('<secret>', 'name')
    .description('Remove a secret that no function uses.')
    .addHelpText('after', '\nExamples:\n  thaw secret rm DATABASE_URL')
    .action((name: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        await output.progress.during(`removing ${name}`, () => thaw.secrets.delete(name, { signal }))
        output.result({ removed: [name] }, () => `removed ${name}`)
      }),
    )
}

async function createOrSet(thaw: Thaw, name: string, value: string, signal: AbortSignal): Promise<SecretItem> {
  try {
    return await thaw.secrets.set(name, value, { signal })
  } catch (error) {
    if (!(error instanceof ThawError) || error.code !== 'secret_not_found') throw error
    return thaw.secrets.create(name, value, { signal })
  }
}

function secretTable(items: SecretItem[]): string {
  if (items.length === 0) return ''
  return table(
    ['NAME', 'USED BY', 'CREATED', 'UPDATED'],
    items.map((item) => [item.name, item.used_by.join(' ') || '-', clock(item.created_at), clock(item.updated_at)]),
  )
}

function clock(time: string): string {
  return time.slice(0, 19).replace('T', ' ')
}
