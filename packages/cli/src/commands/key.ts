import { type KeyCreate, type KeyItem, type Role, roles } from '@thaw/sdk'
import { type Command, Option } from 'commander'
import { withServer } from '../context.ts'
import { type Output, table } from '../output.ts'
import { createKeyOffline } from '../server.ts'
import { lifetimeMs } from '../units.ts'

interface CreateFlags {
  tenant?: string
  role?: Role
  expiresIn?: number
  dataDir?: string
}

const createExamples = `
Examples:
  export THAW_API_KEY=$(thaw key create admin)
  thaw key create ci --tenant web --expires-in 90d
  thaw key create admin --role admin --data-dir /var/lib/thaw

The key is printed this once, alone on standard output. From the first key on every call needs one. With --data-dir the
key is made in the folder itself, for a server that does not run: the way in when there is no admin key, or none any more.`

export function register(program: Command, output: Output): void {
  const key = program.command('key').description('Make and revoke the keys that calls to the server need.')

  key
    .command('create')
    .argument('<key>', 'what it is for')
    .description('Make a key, and print it.')
    .option('--tenant <tenant>', 'whose functions it works with; default: yours')
    .addOption(new Option('--role <role>', 'default: admin for the first key, then member').choices(roles))
    .option('--expires-in <time>', 'such as 12h, 90d or 4w; default: never', lifetimeMs)
    .option('--data-dir <dir>', 'of a server that does not run')
    .addHelpText('after', createExamples)
    .action((name: string, flags: CreateFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const { dataDir } = flags
        const input = inputOf(name, flags)
        const item = await output.progress.during(`making ${name}`, () =>
          dataDir === undefined ? thaw.keys.create(input, { signal }) : createKeyOffline(input, { data_dir: dataDir }),
        )
        output.result(item, () => item.key)
        output.note(`${item.id}: ${item.role} of ${item.tenant}, ${lifeOf(item)}; the key is not shown again`)
      }),
    )

  key
    .command('ls')
    .description('List keys, without the keys themselves.')
    .addHelpText('after', '\nExamples:\n  thaw key ls\n  thaw key ls --json | jq -r ".[].id"')
    .action((_options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing keys', () => thaw.keys.list({ signal }).all())
        output.result(items, () => (items.length === 0 ? '' : keyTable(items)))
        if (items.length === 0) output.note('no keys yet, and no call needs one; make the first with `thaw key create NAME`')
      }),
    )

  key
    .command('rm')
    .argument('<ids...>', 'keys, as `thaw key ls` lists them')
    .description('Revoke keys, at once; what is open with them is closed.')
    .addHelpText('after', '\nExamples:\n  thaw key rm key-01kawz1m2n3p4q5r6s7t8v9w0x')
    .action((ids: string[], _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const removed: string[] = []
        let failure: unknown
        for (const id of ids) {
          try {
            await output.progress.during(`revoking ${id}`, () => thaw.keys.delete(id, { signal }))
            removed.push(id)
          } catch (error) {
            signal.throwIfAborted()
            // The others are revoked all the same; the first failure decides the exit code.
            failure ??= error
          }
        }
        output.result({ removed }, () => removed.map((id) => `revoked ${id}`).join('\n'))
        if (failure !== undefined) throw failure
      }),
    )
}

function inputOf(name: string, { tenant, role, expiresIn }: CreateFlags): KeyCreate {
  return {
    name,
    ...(tenant === undefined ? {} : { tenant }),
    ...(role === undefined ? {} : { role }),
    ...(expiresIn === undefined ? {} : { expires_at: new Date(Date.now() + expiresIn).toISOString() }),
  }
}

function lifeOf({ expires_at }: KeyItem): string {
  return expires_at === null ? 'until it is revoked' : `until ${expires_at.slice(0, 19).replace('T', ' ')} UTC`
}

function keyTable(items: KeyItem[]): string {
  return table(
    ['ID', 'NAME', 'TENANT', 'ROLE', 'KEY', 'CREATED', 'EXPIRES'],
    items.map((item) => [
      item.id,
      item.name,
      item.tenant,
      item.role,
      `e2b_…${item.hint}`,
      item.created_at.slice(0, 10),
      item.expires_at?.slice(0, 10) ?? 'never',
    ]),
  )
}
