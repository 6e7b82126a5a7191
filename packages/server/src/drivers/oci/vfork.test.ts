import { expect, test } from 'vitest'
import { waitsInVfork } from './vfork.ts'

test.skipIf(process.arch !== 'x64')('who waits in vfork is told by the system call', () => {
  const rest = '0x0 0x0 0x0 0x0 0x0 0x7ffd00000000 0x7f0000000000'
  expect(waitsInVfork(`58 0x0 ${rest}\n`)).toBe(true)
  expect(waitsInVfork(`56 0x4111 ${rest}\n`)).toBe(true)
  expect(waitsInVfork(`56 0x3d0f00 ${rest}\n`)).toBe(false)
  expect(waitsInVfork(`435 0x7ffd00000000 ${rest}\n`)).toBe(true)
  expect(waitsInVfork(`0 0x3 ${rest}\n`)).toBe(false)
  expect(waitsInVfork('running\n')).toBe(false)
  expect(waitsInVfork('-1 0x7ffd00000000 0x7f0000000000\n')).toBe(false)
})
