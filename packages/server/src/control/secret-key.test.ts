import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openSecretKey, SecretKey } from './secret-key.ts'

const unreadable = expect.objectContaining({ code: 'secret_unreadable' })

function keyPath(): string {
  const dir = mkdtempSync(join(tmpdir(), 'thaw-key-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return join(dir, 'secrets.key')
}

test.each(['', 'text', 'naïve 🔑\n', 'x'.repeat(65_536)])('what was sealed opens again', (value) => {
  const key = openSecretKey(keyPath(), true)
  const sealed = key.seal('NAME', value)
  expect(key.open('NAME', sealed)).toBe(value)
  expect(key.open('NAME', new Uint8Array(sealed))).toBe(value)
  if (value.length > 3) expect(sealed.includes(value)).toBe(false)
})

test('the same value is sealed differently each time, under a nonce of its own', () => {
  const key = openSecretKey(keyPath(), true)
  const nonces = Array.from({ length: 1000 }, () => key.seal('NAME', 'value').subarray(0, 12).toString('hex'))
  expect(new Set(nonces).size).toBe(1000)
})

test('a value does not open under another name', () => {
  const key = openSecretKey(keyPath(), true)
  expect(() => key.open('OTHER', key.seal('NAME', 'value'))).toThrow(unreadable)
})

test('a value that was changed in any byte, or cut off anywhere, does not open', () => {
  const key = openSecretKey(keyPath(), true)
  const sealed = key.seal('NAME', 'value')
  for (let index = 0; index < sealed.length; index++) {
    const changed = Buffer.from(sealed)
    changed[index] = (changed[index] ?? 0) ^ 1
    expect(() => key.open('NAME', changed), `byte ${index}`).toThrow(unreadable)
    expect(() => key.open('NAME', sealed.subarray(0, index)), `length ${index}`).toThrow(unreadable)
  }
})

test('another key has another id, and opens nothing', () => {
  const [one, two] = [openSecretKey(keyPath(), true), openSecretKey(keyPath(), true)]
  expect(one.id).not.toBe(two.id)
  expect(() => two.open('NAME', one.seal('NAME', 'value'))).toThrow(unreadable)
})

test('the key is made once, for its owner only, and nothing else is left beside it', () => {
  const path = keyPath()
  const made = openSecretKey(path, true)
  expect(statSync(path)).toMatchObject({ size: 32, nlink: 1 })
  expect(statSync(path).mode & 0o777).toBe(0o600)
  expect(readdirSync(join(path, '..'))).toEqual(['secrets.key'])
  const bytes = readFileSync(path)
  expect(openSecretKey(path, true).open('NAME', made.seal('NAME', 'value'))).toBe('value')
  expect(readFileSync(path).equals(bytes)).toBe(true)
  expect(bytes.includes(made.id) || new SecretKey(bytes).id !== made.id).toBe(false)
})

test('a crash while the key was written leaves nothing that stops the next start', () => {
  const path = keyPath()
  writeFileSync(`${path}.new`, 'torn')
  openSecretKey(path, true)
  expect(readdirSync(join(path, '..'))).toEqual(['secrets.key'])
})

test('a key that others may read, as after a restore, is closed to them', () => {
  const path = keyPath()
  openSecretKey(path, true)
  chmodSync(path, 0o644)
  openSecretKey(path, false)
  expect(statSync(path).mode & 0o777).toBe(0o600)
})

test('a key that is missing although it is needed is not made anew, and one of another size is none', () => {
  const path = keyPath()
  expect(() => openSecretKey(path, false)).toThrow(unreadable)
  expect(readdirSync(join(path, '..'))).toEqual([])
  writeFileSync(path, 'short')
  expect(() => openSecretKey(path, true)).toThrow(unreadable)
  expect(readFileSync(path, 'utf8')).toBe('short')
})
