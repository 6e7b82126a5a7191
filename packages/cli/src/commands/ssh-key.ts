import { chmod, open, readFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import type { CreatedSshKeyItem, SshKeyItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { type Output, table } from '../output.ts'
import { lifetimeMs } from '../units.ts'

interface LimitFlags {
  sandbox?: string
  expiresIn?: number
}

interface OutFlags {
  out?: string
}

/** Where people have their public keys, the best one first. */
const usualFiles = ['id_ed25519.pub', 'id_ecdsa.pub', 'id_rsa.pub']

export function register(program: Command, output: Output): void {
  const key = program.command('ssh-key').description('Register and revoke the keys that log in to sandboxes over SSH.')

  limits(
    key.command('add').argument('<key>', 'what it is for').argument('[file]', 'public key, - for standard input; default: yours in ~/.ssh'),
  )
    .description('Register a public key.')
    .addHelpText('after', '\nExamples:\n  thaw ssh-key add laptop\n  thaw ssh-key add ci ci.pub --sandbox lab --expires-in 30d')
    .action((name: string, file: string | undefined, flags: LimitFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const public_key = await readKey(file)
        const item = await output.progress.during(`registering ${name}`, () =>
          thaw.sshKeys.create({ name, public_key, ...limitsOf(flags) }, { signal }),
        )
        output.result(item, () => item.id)
        output.note(noteOf(item))
      }),
    )

  limits(key.command('generate').argument('<key>', 'what it is for'))
    .description('Make a key pair, and print the private key.')
    .option('--out <file>', 'write the private key there instead, for its owner alone')
    .addHelpText(
      'after',
      '\nExamples:\n  thaw ssh-key generate ci --out ci_key\n  ssh -i ci_key -p 2222 lab@127.0.0.1\n\nThe private key is shown this once.',
    )
    .action((name: string, flags: LimitFlags & OutFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        await using file = await newFile(flags.out)
        const item = await output.progress.during(`making ${name}`, () =>
          thaw.sshKeys.create({ name, generate: true, ...limitsOf(flags) }, { signal }),
        )
        await giveOut(item, file, output)
      }),
    )

  key
    .command('ls')
    .description('List SSH keys.')
    .addHelpText('after', '\nExamples:\n  thaw ssh-key ls')
    .action((_options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const items = await output.progress.during('listing SSH keys', () => thaw.sshKeys.list({ signal }).all())
        output.result(items, () => (items.length === 0 ? '' : keyTable(items)))
        if (items.length === 0) output.note('no SSH keys yet; register yours with `thaw ssh-key add NAME`')
      }),
    )

  key
    .command('rotate')
    .argument('<id>', 'key, as `thaw ssh-key ls` lists it')
    .argument('[file]', 'the new public key, - for standard input; default: a new pair is made')
    .description('Put another key in the place of one, which stops at once.')
    .option('--out <file>', 'write the private key of a new pair there')
    .addHelpText('after', '\nExamples:\n  thaw ssh-key rotate sshk-01kawz1m2n3p4q5r6s7t8v9w0x --out ci_key2')
    .action((id: string, from: string | undefined, flags: OutFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        if (from !== undefined && flags.out !== undefined)
          throw new UsageError('--out is for a new pair.', 'Leave out either --out or the file.')
        const input = from === undefined ? ({ generate: true } as const) : { public_key: await readKey(from) }
        await using file = await newFile(flags.out)
        const item = await output.progress.during(`rotating ${id}`, () => thaw.sshKeys.rotate(id, input, { signal }))
        await giveOut(item, file, output)
      }),
    )

  key
    .command('rm')
    .argument('<ids...>', 'keys, as `thaw ssh-key ls` lists them')
    .description('Revoke SSH keys, at once; what is open with them is closed.')
    .addHelpText('after', '\nExamples:\n  thaw ssh-key rm sshk-01kawz1m2n3p4q5r6s7t8v9w0x')
    .action((ids: string[], _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const removed: string[] = []
        let failure: unknown
        for (const id of ids) {
          try {
            await output.progress.during(`revoking ${id}`, () => thaw.sshKeys.delete(id, { signal }))
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

function limits(command: Command): Command {
  return command
    .option('--sandbox <sandbox>', 'id or name of the only sandbox that it opens; default: all of yours')
    .option('--expires-in <time>', 'such as 12h, 90d or 4w; default: never', lifetimeMs)
}

function limitsOf({ sandbox, expiresIn }: LimitFlags): { sandbox_id?: string; expires_at?: string } {
  return {
    ...(sandbox === undefined ? {} : { sandbox_id: sandbox }),
    ...(expiresIn === undefined ? {} : { expires_at: new Date(Date.now() + expiresIn).toISOString() }),
  }
}

async function readKey(file: string | undefined): Promise<string> {
  if (file === '-') return text(process.stdin)
  if (file !== undefined) {
    return readFile(file, 'utf8').catch((error: Error) => {
      throw new UsageError(`The key cannot be read: ${error.message}`, 'Name a .pub file that exists.')
    })
  }
  for (const name of usualFiles) {
    const found = await readFile(join(homedir(), '.ssh', name), 'utf8').catch(() => null)
    if (found !== null) return found
  }
  throw new UsageError('There is no public key in ~/.ssh.', 'Name a file, or have a pair made: `thaw ssh-key generate NAME --out FILE`.')
}

/** Opened before the key is made: one that cannot be written would be lost. */
async function newFile(path: string | undefined) {
  if (path === undefined) return null
  const file = await open(path, 'wx', 0o600).catch((error: Error) => {
    throw new UsageError(`The private key cannot be written: ${error.message}`, 'Name a file that does not exist yet.')
  })
  await chmod(path, 0o600)
  return { path, write: (content: string) => file.writeFile(content), [Symbol.asyncDispose]: () => file.close() }
}

async function giveOut(item: CreatedSshKeyItem, file: Awaited<ReturnType<typeof newFile>>, output: Output): Promise<void> {
  if (item.private_key === null || file === null) {
    output.result(item, () => item.private_key?.trimEnd() ?? item.id)
    output.note(`${noteOf(item)}${item.private_key === null ? '' : '; the private key is not shown again'}`)
    return
  }
  await file.write(item.private_key)
  output.result({ ...item, private_key: null, private_key_file: file.path }, () => item.id)
  output.note(`${noteOf(item)}; its private key is in ${file.path}`)
}

function noteOf({ fingerprint, sandbox_id, expires_at }: SshKeyItem): string {
  const life = expires_at === null ? 'until it is revoked' : `until ${expires_at.slice(0, 19).replace('T', ' ')} UTC`
  return `${fingerprint}: opens ${sandbox_id ?? 'all sandboxes'}, ${life}`
}

function keyTable(items: SshKeyItem[]): string {
  return table(
    ['ID', 'NAME', 'TYPE', 'FINGERPRINT', 'SANDBOX', 'CREATED', 'EXPIRES'],
    items.map((item) => [
      item.id,
      item.name,
      item.type,
      item.fingerprint,
      item.sandbox_id ?? 'all',
      (item.rotated_at ?? item.created_at).slice(0, 10),
      item.expires_at?.slice(0, 10) ?? 'never',
    ]),
  )
}
