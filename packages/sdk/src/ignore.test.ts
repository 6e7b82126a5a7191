import { expect, test } from 'vitest'
import { IgnoreList } from './ignore.ts'

test.each([
  ['*.log', 'a.log', true],
  ['*.log', 'deep/down/a.log', true],
  ['*.log', 'a.log.txt', false],
  ['*', '.env', true],
  ['/only-top.txt', 'only-top.txt', true],
  ['/only-top.txt', 'sub/only-top.txt', false],
  ['docs/*.md', 'docs/a.md', true],
  ['docs/*.md', 'docs/deep/a.md', false],
  ['docs/**/*.md', 'docs/deep/er/a.md', true],
  ['docs/**/*.md', 'docs/a.md', true],
  ['data/**', 'data/deep/file', true],
  ['file?.txt', 'file1.txt', true],
  ['file[0-9].txt', 'file7.txt', true],
  ['file[!0-9].txt', 'file7.txt', false],
  ['a+b.txt', 'a+b.txt', true],
  ['a.b', 'axb', false],
  ['# comment', '# comment', false],
  ['\\#kept', '#kept', true],
])('the pattern %s leaves out %s: %s', (pattern, path, expected) => {
  expect(new IgnoreList(pattern).ignores(path, false)).toBe(expected)
})

test('a pattern that ends with a slash leaves out folders only', () => {
  const list = new IgnoreList('build/')
  expect(list.ignores('build', true)).toBe(true)
  expect(list.ignores('build', false)).toBe(false)
})

test('a later pattern with ! takes a file back', () => {
  const list = new IgnoreList('*.txt\n!keep.txt')
  expect(list.ignores('drop.txt', false)).toBe(true)
  expect(list.ignores('keep.txt', false)).toBe(false)
})
