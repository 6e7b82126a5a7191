import { expect, test } from 'vitest'
import { TerminalModes } from './terminal.ts'

const after = (...pieces: string[]) => {
  const modes = new TerminalModes()
  for (const piece of pieces) modes.see(Buffer.from(piece))
  return modes.reset()
}

test('what a program switched on and off again leaves nothing to undo', () => {
  expect(after('plain \x1b[31mtext')).toBe('')
  expect(after('\x1b[?1049h\x1b[?25l', 'screen', '\x1b[?25h\x1b[?1049l')).toBe('')
})

test('what a program left on is undone', () => {
  expect(after('\x1b[?1049h\x1b[?25l\x1b[?1000;1006h')).toBe('\x1b[?1049l\x1b[?25h\x1b[?1000l\x1b[?1006l')
})

test('sequences are known when they come in pieces', () => {
  expect(after('a\x1b', '[?10', '49h b')).toBe('\x1b[?1049l')
  expect(after('\x1b[?2004h', '\x1b[?20', '04l')).toBe('')
})

test('modes of which nothing is known are left alone', () => {
  expect(after('\x1b[?12h\x1b[?5h')).toBe('')
})
