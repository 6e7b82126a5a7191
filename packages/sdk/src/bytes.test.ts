import { expect, test } from 'vitest'
import { eventsOf, jsonLinesOf, linesOf, textOf } from './bytes.ts'

async function* from<Item>(items: Item[]): AsyncGenerator<Item> {
  yield* items
}

async function collect<Item>(items: AsyncIterable<Item>): Promise<Item[]> {
  const all: Item[] = []
  for await (const item of items) all.push(item)
  return all
}

test('a character that is cut between two pieces comes whole', async () => {
  const bytes = new TextEncoder().encode('5 €')
  const pieces = [bytes.subarray(0, 3), bytes.subarray(3)]
  expect((await collect(textOf(from(pieces)))).join('')).toBe('5 €')
})

test('lines are joined over pieces, and the last one needs no end', async () => {
  expect(await collect(linesOf(from(['a\nb', 'c\r\n', '\nd'])))).toEqual(['a', 'bc', '', 'd'])
})

test('JSON lines are parsed one by one, and empty lines skipped', async () => {
  expect(await collect(jsonLinesOf(from(['{"n":1}', '', '2'])))).toEqual([{ n: 1 }, 2])
})

test('a line that is not JSON is an error that shows the line', async () => {
  await expect(collect(jsonLinesOf(from(['<html>'])))).rejects.toThrow('<html>')
})

test('server-sent events keep their name and join their data; comments are skipped', async () => {
  const lines = [': keep-alive', '', 'data: 1', '', 'event: error', 'data: {"a":', 'data: 2}', '', 'data: never ended']
  expect(await collect(eventsOf(from(lines)))).toEqual([
    { event: 'message', data: '1' },
    { event: 'error', data: '{"a":\n2}' },
  ])
})
