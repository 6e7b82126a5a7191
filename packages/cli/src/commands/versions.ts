import type { VersionItem } from '@thaw/sdk'
import type { Command } from 'commander'
import { functionName, withServer } from '../context.ts'
import { type Output, table } from '../output.ts'

export function register(program: Command, output: Output): void {
  program
    .command('versions')
    .argument('<name>', 'function', functionName)
    .description('List the versions of a function, newest first.')
    .addHelpText('after', '\nExamples:\n  thaw versions hello')
    .action((name: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const [item, versions] = await output.progress.during(`reading ${name}`, () =>
          Promise.all([thaw.functions.get(name, { signal }), thaw.functions.versions(name, { signal }).all()]),
        )
        output.result(versions, () =>
          table(
            ['VERSION', 'STATE', 'ACTIVE', 'RUNTIME', 'DRIVER', 'CODE', 'SNAPSHOT', 'CREATED', 'ERROR'],
            versions.map((version) => [
              String(version.version),
              version.state,
              version.id === item.version_id && version.state === 'ready' ? 'yes' : '',
              version.runtime,
              version.driver,
              version.code_digest?.replace('sha256:', '').slice(0, 12) ?? '-',
              snapshotText(version.snapshot),
              version.created_at.slice(0, 19).replace('T', ' '),
              version.error === null ? '' : `${version.error.code}: ${version.error.message}`,
            ]),
          ),
        )
      }),
    )
}

/** What instances of the version start from: how large it is, and how often it worked; or why there is none. */
function snapshotText(snapshot: VersionItem['snapshot']): string {
  if (snapshot === null) return '-'
  const { state, size_bytes, success_count, error } = snapshot
  if (state === 'ready') return `${Math.ceil(size_bytes / (1024 * 1024))} MiB, used ${success_count} times`
  return error === null ? state : `${state}: ${error.code}`
}
