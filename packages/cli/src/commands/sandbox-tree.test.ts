import { stripVTControlCharacters } from 'node:util'
import type { SandboxItem, SandboxState, SandboxTree } from '@thaw/sdk'
import { expect, test } from 'vitest'
import { drawTree } from './sandbox-tree.ts'

function item(id: string, parent_id: string | null, state: SandboxState, more: Partial<SandboxItem> = {}): SandboxItem {
  return { id, parent_id, state, name: null, snapshot_id: null, created_at: '2026-01-02T03:04:05.678Z', ...more } as SandboxItem
}

/** Without colors, which a terminal may have. */
const drawn = (tree: SandboxTree, asked: string) => stripVTControlCharacters(drawTree(tree, asked)).split('\n')

test('a tree has a line for each sandbox, below the one that it came from, and marks the one that was asked for', () => {
  const items = [
    item('a', null, 'running', { name: 'lab' }),
    item('b', 'a', 'paused'),
    item('c', 'a', 'hibernated', { snapshot_id: 'snap-1' }),
    item('d', 'b', 'running'),
    item('e', 'd', 'failed'),
    item('f', 'b', 'stopped'),
  ]
  expect(drawn({ root_id: 'a', items }, 'd').map((line) => line.replace(/ +(?:CREATED|2026-.*)$/, ''))).toEqual([
    'SANDBOX     NAME  STATE         CAME BY',
    'a           lab   ● running     create',
    '├─ b        -     ◐ paused      fork',
    '│  ├─ d *   -     ● running     fork',
    '│  │  └─ e  -     ✗ failed      fork',
    '│  └─ f     -     · stopped     fork',
    '└─ c        -     ○ hibernated  snap-1',
  ])
})

test('a tree whose beginning was removed starts with what is left', () => {
  const tree: SandboxTree = { root_id: 'b', items: [item('b', 'gone', 'running'), item('c', 'b', 'running')] }
  expect(drawn(tree, 'c').slice(1)).toEqual([expect.stringMatching(/^b .* fork /), expect.stringMatching(/^└─ c \* /)])
})
