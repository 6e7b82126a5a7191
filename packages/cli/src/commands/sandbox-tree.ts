import { styleText } from 'node:util'
import type { SandboxItem, SandboxState, SandboxTree } from '@thaw/sdk'
import type { Command } from 'commander'
import { withServer } from '../context.ts'
import { type Output, table } from '../output.ts'

/** How a state is drawn: a full circle runs, an empty one has nothing in memory. */
const looks: Record<SandboxState, { sign: string; color: Parameters<typeof styleText>[0] }> = {
  creating: { sign: '◌', color: 'cyan' },
  running: { sign: '●', color: 'green' },
  paused: { sign: '◐', color: 'yellow' },
  hibernated: { sign: '○', color: 'blue' },
  stopped: { sign: '·', color: 'dim' },
  failed: { sign: '✗', color: 'red' },
}

export function registerTree(sandbox: Command, output: Output): void {
  sandbox
    .command('tree')
    .argument('<sandbox>', 'id or name of any of them')
    .description('Draw what a sandbox was forked from, and all that came from there, with their states.')
    .addHelpText(
      'after',
      `
Examples:
  thaw sandbox tree lab
  thaw sandbox tree lab --json | jq -r '.items[] | select(.state == "running") | .id'

● running  ◐ paused  ○ hibernated  · stopped  ✗ failed. Sandboxes that were removed are not in it, nor is what only they lead to.`,
    )
    .action((id: string, _options: object, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const { found, tree } = await output.progress.during(`reading ${id}`, async () => {
          const found = await thaw.sandboxes.get(id, { signal })
          return { found, tree: await found.tree({ signal }) }
        })
        output.result(tree, () => drawTree(tree, found.id))
        const root = tree.items.find((item) => item.id === tree.root_id)
        if (root?.parent_id != null) output.note(`${root.id} came from ${root.parent_id}, which was removed`)
      }),
    )
}

/** One line for each sandbox, below the one that it came from; `asked` is marked. */
export function drawTree({ root_id, items }: SandboxTree, asked: string): string {
  const byParent = Map.groupBy(items, (item) => (item.id === root_id ? null : item.parent_id))
  const rows: { drawn: string; item: SandboxItem }[] = []
  const draw = (item: SandboxItem, own: string, below: string) => {
    rows.push({ drawn: `${own}${item.id}${item.id === asked ? ' *' : ''}`, item })
    const children = byParent.get(item.id) ?? []
    for (const [index, child] of children.entries()) {
      const last = index === children.length - 1
      draw(child, `${below}${last ? '└─ ' : '├─ '}`, `${below}${last ? '   ' : '│  '}`)
    }
  }
  for (const root of byParent.get(null) ?? []) draw(root, '', '')
  const lines = table(
    ['SANDBOX', 'NAME', 'STATE', 'CAME BY', 'CREATED'],
    rows.map(({ drawn, item }) => [
      drawn,
      item.name ?? '-',
      `${looks[item.state].sign} ${item.state}`,
      item.snapshot_id ?? (item.parent_id === null ? 'create' : 'fork'),
      item.created_at.slice(0, 19).replace('T', ' '),
    ]),
  ).split('\n')
  return lines.map((line, index) => colored(line, rows[index - 1]?.item.state)).join('\n')
}

/** Colors come last: they would count as width. */
function colored(line: string, state: SandboxState | undefined): string {
  if (state === undefined) return line
  const { sign, color } = looks[state]
  return line.replace(`${sign} ${state}`, (text) => styleText(color, text, { stream: process.stdout }))
}
