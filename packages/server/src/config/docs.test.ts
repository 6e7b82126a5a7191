import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { defaultConfig, inheritedBuildVariables } from './defaults.ts'
import { configLeaves } from './schema.ts'

const page = readFileSync(new URL('../../../../docs/config.md', import.meta.url), 'utf8')
const rows = [...page.matchAll(/^\| `([a-z_.]+)` *\|([^|]*)\|([^|]*)\|$/gm)].map(([, key = '', value = '', meaning = '']) => ({
  key,
  value: value.trim(),
  meaning: meaning.trim(),
}))
const defaults = defaultConfig({}, { root: true, home: '/root', memory_bytes: 2 ** 30 })

test('docs/config.md has every key once, in the order of the schema, and none that does not exist', () => {
  expect(rows.map((row) => row.key)).toEqual([...configLeaves.keys()])
})

test.each(rows)('docs/config.md says what $key means and what its default is', ({ key, value, meaning }) => {
  expect(meaning).toMatch(/\w{3}.*\.$/)
  const actual = key.split('.').reduce<unknown>((node, name) => (node as Record<string, unknown>)[name], defaults)
  if (key === 'limits.memory_mib') expect(value).toContain('80%')
  else if (typeof actual === 'number') expect(Number(/^`?(\d+)/.exec(value)?.[1])).toBe(actual)
  else if (typeof actual === 'string') expect(value).toContain(`\`${actual}\``)
  else expect(value).not.toBe('')
})

test('docs/config.md names every variable that builds inherit', () => {
  for (const name of inheritedBuildVariables) expect(page).toContain(`\`${name}\``)
})

test('every key describes itself and what it expects', () => {
  for (const leaf of configLeaves.values()) {
    expect(leaf.meta.description, leaf.key).toMatch(/\.$/)
    expect(leaf.meta.expected, leaf.key).not.toBe('')
  }
})
