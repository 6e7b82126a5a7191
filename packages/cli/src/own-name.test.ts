import { expect, test } from 'vitest'
import { asTyped, nameFor } from './own-name.ts'

test('the command is npx thaw in a checkout and where npx runs it, else thaw', () => {
  expect(nameFor({}, true)).toBe('npx thaw')
  expect(nameFor({ npm_command: 'exec' }, false)).toBe('npx thaw')
  expect(nameFor({ npm_lifecycle_event: 'npx' }, false)).toBe('npx thaw')
  expect(nameFor({ npm_command: 'run-script' }, false)).toBe('thaw')
})

test.each([
  ['List functions with `thaw ls`, or use `thaw deploy`.', 'List functions with `npx thaw ls`, or use `npx thaw deploy`.'],
  ['\nExamples:\n  thaw ls\n  cat a | thaw invoke x -', '\nExamples:\n  npx thaw ls\n  cat a | npx thaw invoke x -'],
  ['  THAW_PORT=9000 thaw config show', '  THAW_PORT=9000 npx thaw config show'],
  ['source <(thaw completion bash)', 'source <(npx thaw completion bash)'],
  ['No thaw server answers, and thaw needs one.', 'No thaw server answers, and thaw needs one.'],
])('%j tells what to type', (text, expected) => {
  expect(asTyped(text, 'npx thaw')).toBe(expected)
})
