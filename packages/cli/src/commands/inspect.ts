import type { FunctionItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { functionName, withServer } from '../context.ts'
import { fields, type Output } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('inspect')
    .argument('<name>', 'function', functionName)
    .description('Show everything about a function.')
    .addHelpText('after', '\nExamples:\n  thaw inspect hello\n  thaw inspect hello --json | jq .resources')
    .action((name: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const item = await output.progress.during(`reading ${name}`, () => thaw.functions.get(name, { signal }))
        output.result(item, () => describe(item, thaw.url))
      }),
    )
}

function describe(item: FunctionItem, url: string): string {
  const { resources, scaling, instances } = item
  return fields([
    ['name', item.name],
    ['id', item.id],
    ['version', `${item.version} (${item.version_id})`],
    ['state', item.state],
    ['error', item.error === null ? null : `${item.error.code}: ${item.error.message}`],
    ['runtime', item.runtime],
    ['contract', item.contract],
    ['handler', item.handler],
    ['command', item.command?.join(' ')],
    ['image', item.image_digest === null ? item.image : `${item.image} (${item.image_digest})`],
    ['code', item.code_digest],
    ['driver', item.driver],
    ['env', item.env.join(' ')],
    ['secrets', item.secrets.map(({ name, env }) => (name === env ? name : `${name} as ${env}`)).join(', ')],
    ['resources', `${resources.memory_mib} MiB memory, ${resources.cpus} CPU, ${resources.pids} processes, ${resources.tmp_mib} MiB /tmp`],
    ['timeout', `${item.timeout_ms} ms`],
    ['network', item.network],
    [
      'scaling',
      `${scaling.min_instances} to ${scaling.max_instances} instances, ${scaling.concurrency} at a time each, idle for ${scaling.idle_timeout_ms} ms`,
    ],
    ['instances', `${instances.busy} busy, ${instances.idle} idle, ${instances.starting} starting`],
    ['created', item.created_at],
    ['updated', item.updated_at],
    ['trigger', `${url}/fn/${item.name}/`],
  ])
}
