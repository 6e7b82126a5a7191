import { Command } from 'commander'
import { expect, test } from 'vitest'
import { takesCommandLine, withSeparator } from './trailing.ts'

const program = new Command('thaw').option('--json').option('--url <url>')
takesCommandLine(program.command('run').argument('<image>').argument('[command...]').option('-i').option('--env <pair>'), 1)
const sandbox = program.command('sandbox').alias('sbx')
takesCommandLine(sandbox.command('exec').argument('<sandbox>').argument('<command...>').option('--cwd <dir>'), 1)
sandbox.command('ls').option('--state <state>')

const cut = (line: string) => withSeparator(program, line.split(' ')).join(' ')

test('the command line of a sandbox begins behind the arguments of ours', () => {
  expect(cut('run python python3 -V')).toBe('run python -- python3 -V')
  expect(cut('run -i --env A=b python sh -c x')).toBe('run -i --env A=b python -- sh -c x')
  expect(cut('--url http://a sandbox exec id --cwd /tmp ls --json')).toBe('--url http://a sandbox exec id --cwd /tmp -- ls --json')
  expect(cut('sbx exec --cwd=/tmp id ls -la')).toBe('sbx exec --cwd=/tmp id -- ls -la')
})

test('what has its separator, or no command line, stays as it is', () => {
  expect(cut('run python -- python3 -V')).toBe('run python -- python3 -V')
  expect(cut('run python')).toBe('run python')
  expect(cut('sandbox ls --state running')).toBe('sandbox ls --state running')
  expect(cut('run python sh -- -x')).toBe('run python -- sh -- -x')
})

test('a sandbox or an image that is called like a command of ours is none', () => {
  expect(cut('sandbox exec ls ls -l')).toBe('sandbox exec ls -- ls -l')
  expect(cut('run run run')).toBe('run run -- run')
})
