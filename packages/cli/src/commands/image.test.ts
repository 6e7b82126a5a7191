import type { ImageItem } from '@thaw/sdk'
import { expect, test } from 'vitest'
import { isNewest } from './image.ts'

const image = (ref: string, created_at: string | null): ImageItem => ({
  ref,
  kind: 'runtime',
  digest: null,
  state: created_at === null ? 'available' : 'ready',
  size_bytes: null,
  in_use: false,
  created_at,
})

test('of several images with one name one is the newest; one that is not on disk is none', () => {
  const items = [
    image('python', '2026-01-01T00:00:00.000Z'),
    image('python', '2026-02-01T00:00:00.000Z'),
    image('node', '2025-01-01T00:00:00.000Z'),
    image('go', null),
  ]
  expect(items.map((item) => isNewest(item, items))).toEqual([false, true, true, false])
})
