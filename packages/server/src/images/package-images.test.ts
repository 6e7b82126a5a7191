import { expect, test } from 'vitest'
import { packageKey, parsePackages } from './package-images.ts'

test('names are taken once, in any order', async () => {
  const packages = parsePackages('apt:redis-server,g++,libstdc++6,g++')
  expect(packages).toEqual(['g++', 'libstdc++6', 'redis-server'])
  expect(await packageKey(packages ?? [])).toBe(await packageKey(parsePackages('apt:g++,redis-server,libstdc++6') ?? []))
})

test.each(['python', 'aptitude', 'registry.example/apt:curl', 'apt/curl'])('%s names no packages', (ref) => {
  expect(parsePackages(ref)).toBeNull()
})

test.each([
  'apt:',
  'apt:git,',
  'apt:git curl',
  'apt:Git',
  'apt:-y',
  'apt:--force-yes',
  'apt:git=1:2.39',
  'apt:git/bookworm',
  'apt:$(id)',
  'apt:?true',
  'apt:~n.',
  'apt:git\n',
])('%j is refused', (ref) => {
  expect(() => parsePackages(ref)).toThrow(expect.objectContaining({ code: 'image_unresolvable' }))
})

// apt takes a + or - behind a name that it does not know as "install" and "remove".
test.each(['apt:curl-', 'apt:curl+'])('%s is refused, for apt would take it for an order', (ref) => {
  expect(() => parsePackages(ref)).toThrow(expect.objectContaining({ code: 'image_unresolvable' }))
})
