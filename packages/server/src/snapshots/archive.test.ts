import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { setTimeout } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { packFolder, unpackInto } from './archive.ts'

function folders(): { from: string; to: string } {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-archive-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  for (const name of ['from', 'to']) mkdirSync(join(dir, name))
  writeFileSync(join(dir, 'from', 'file'), 'x'.repeat(100_000))
  return { from: join(dir, 'from'), to: join(dir, 'to') }
}

test('what is packed comes out again, also where the stream ends some time after the archive', async () => {
  const { from, to } = folders()
  const packed = await buffer(packFolder(from))
  await unpackInto(to, Readable.from([packed]))
  expect(readFileSync(join(to, 'file'), 'utf8')).toBe('x'.repeat(100_000))
  async function* late() {
    yield packed
    await setTimeout(300)
  }
  await unpackInto(to, Readable.from(late()))
})

test('what is cut off, or no archive, is refused', async () => {
  const { from, to } = folders()
  const packed = await buffer(packFolder(from))
  for (const wrong of [packed.subarray(0, packed.length >> 1), Buffer.alloc(0), Buffer.from('no archive')])
    await expect(unpackInto(to, Readable.from([wrong]))).rejects.toMatchObject({ code: 'archive_invalid' })
  async function* broken() {
    yield packed.subarray(0, 100)
    throw new Error('gone')
  }
  await expect(unpackInto(to, Readable.from(broken()))).rejects.toMatchObject({ code: 'archive_invalid' })
})
