import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, expect, test } from 'vitest'
import { deployInput } from './deploy-input.ts'
import { guessFunction } from './guess.ts'

const made: string[] = []

afterEach(async () => {
  for (const path of made.splice(0)) await rm(path, { recursive: true, force: true })
})

async function folderOf(files: Record<string, string>): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'thaw-guess-'))
  made.push(root)
  for (const [name, content] of Object.entries(files)) {
    await mkdir(dirname(join(root, name)), { recursive: true })
    await writeFile(join(root, name), content, { mode: content.startsWith('#!') ? 0o755 : 0o644 })
  }
  return root
}

test.each([
  ['a Python handler', { 'main.py': 'def handler(event, context):\n  return 1' }, 'python', 'handler', 'main.handler'],
  ['an async Python handler', { 'handler.py': 'async def handler(event, context): ...' }, 'python', 'handler', 'handler.handler'],
  ['a Lambda handler', { 'app.py': 'def lambda_handler(event, context): ...' }, 'python', 'handler', 'app.lambda_handler'],
  ['the only Python file', { 'words.py': 'def handler(event, context): ...', 'data.txt': '' }, 'python', 'handler', 'words.handler'],
  ['a Python program', { 'main.py': 'print(input())' }, 'python', 'stdio', 'main.py'],
  ['a nested function named handler', { 'main.py': 'def f():\n  def handler(): ...' }, 'python', 'stdio', 'main.py'],
  ['a Node.js module', { 'main.mjs': 'export async function* handler() {}' }, 'node', 'handler', 'main.handler'],
  ['an arrow function', { 'index.js': 'export const handler = () => 1' }, 'node', 'handler', 'index.handler'],
  ['an export list', { 'index.mjs': 'function run() {}\nexport { run as handler }' }, 'node', 'handler', 'index.handler'],
  ['CommonJS', { 'index.js': 'exports.handler = () => 1' }, 'node', 'handler', 'index.handler'],
  ['a CommonJS object', { 'index.cjs': 'module.exports = { handler }' }, 'node', 'handler', 'index.handler'],
  ['a Node.js program', { 'main.js': 'console.log(1)' }, 'node', 'stdio', 'main.js'],
  ['a Go function', { 'go.mod': 'module x', 'main.go': 'func main() { function.Start(handler) }' }, 'go', 'handler', undefined],
  ['a Go program', { 'main.go': 'func main() {}' }, 'go', 'stdio', undefined],
  ['a bootstrap', { bootstrap: '#!/bin/sh' }, 'custom', 'stdio', './bootstrap'],
])('%s is recognised', async (_what, files: Record<string, string>, runtime, contract, handler) => {
  expect(await guessFunction(await folderOf(files))).toMatchObject({ runtime, contract, handler })
})

test('package.json names the main file', async () => {
  const root = await folderOf({
    'package.json': '{"main": "./src/app.js", "dependencies": {"a": "1"}}',
    'src/app.js': 'exports.handler = f',
    'index.js': '',
  })
  const guess = await guessFunction(root)
  expect(guess.handler).toBe('src/app.handler')
  expect(guess.reasons.join()).toContain('package.json')
  expect(guess.reasons.join()).toContain('dependencies will be installed')
})

test('a handler wins over a program of another language beside it', async () => {
  const root = await folderOf({ 'main.py': 'def handler(e, c): ...', 'package.json': '{}', 'index.js': 'tool()' })
  expect((await guessFunction(root)).runtime).toBe('python')
})

test('two languages with a handler are not chosen between, until a flag says which', async () => {
  const root = await folderOf({ 'main.py': 'def handler(e, c): ...', 'main.mjs': 'export const handler = 1' })
  await expect(guessFunction(root)).rejects.toThrow(/python.*node/)
  const { input } = await deployInput(root, { runtime: 'node', name: 'x' })
  expect(input).toMatchObject({ runtime: 'node', handler: 'main.handler' })
})

test('a folder without a program, a file and nothing at all are errors of usage', async () => {
  await expect(guessFunction(await folderOf({ 'README.md': '' }))).rejects.toThrow('no program')
  await expect(guessFunction(join(await folderOf({ 'main.py': '' }), 'main.py'))).rejects.toThrow('is a file')
  await expect(guessFunction('/nowhere/at/all')).rejects.toThrow('no folder')
})

test('flags win over thaw.json, and thaw.json over the guess', async () => {
  const root = await folderOf({
    'main.py': 'def handler(e, c): ...',
    'tool.py': '',
    'thaw.json': '{"name": "from-file", "timeout_ms": 1000, "env": {"A": "1", "B": "2"}, "resources": {"memory_mib": 64, "cpus": 2}}',
  })
  const { input, guess } = await deployInput(root, { memory: 256, env: ['B=3=3'] })
  expect(guess?.handler).toBe('main.handler')
  expect(input).toEqual({
    name: 'from-file',
    runtime: 'python',
    contract: 'handler',
    handler: 'main.handler',
    timeout_ms: 1000,
    env: { A: '1', B: '3=3' },
    resources: { memory_mib: 256, cpus: 2 },
    code: { dir: root },
  })
})

test('the stdio contract by flag takes the main file for the handler', async () => {
  const root = await folderOf({ 'main.py': 'def handler(e, c): ...' })
  expect((await deployInput(root, { contract: 'stdio', name: 'x' })).input).toMatchObject({ contract: 'stdio', handler: 'main.py' })
})

test('the name of the folder becomes a name that a function may have', async () => {
  const root = join(await folderOf({}), '_my function v1.2_')
  await mkdir(root)
  await writeFile(join(root, 'main.py'), '')
  expect((await deployInput(root, {})).input.name).toBe('my-function-v1-2')
})

test('a broken thaw.json, or one with code in it, is refused', async () => {
  await expect(deployInput(await folderOf({ 'main.py': '', 'thaw.json': '{' }), {})).rejects.toThrow('not JSON')
  await expect(deployInput(await folderOf({ 'main.py': '', 'thaw.json': '{"code": {}}' }), {})).rejects.toThrow('code')
})

test('--env without a value takes that of this process, and fails when there is none', async () => {
  const root = await folderOf({ 'main.py': '' })
  const { input } = await deployInput(root, { name: 'x', env: ['PATH'] })
  expect(input.env).toEqual({ PATH: process.env.PATH })
  await expect(deployInput(root, { name: 'x', env: ['NO_SUCH_VARIABLE_HERE'] })).rejects.toThrow('has no value')
})

test('a bootstrap that is not executable is an error that says how to make it so', async () => {
  await expect(guessFunction(await folderOf({ bootstrap: 'echo' }))).rejects.toMatchObject({
    message: expect.stringContaining('not executable'),
    fix: expect.stringContaining('chmod +x'),
  })
})

test.each([
  ['a function of a Python file', { 'main.py': 'def slow(event): ...' }, 'main.slow', 'python', 'handler'],
  ['a function of a Node.js file below', { 'api/users.mjs': '' }, 'api/users.create', 'node', 'handler'],
  ['a Python file', { 'tool.py': 'def handler(e, c): ...' }, 'tool.py', 'python', 'stdio'],
  ['a Node.js file', { 'tool.mjs': '' }, 'tool.mjs', 'node', 'stdio'],
  ['a file that looks like a function', { 'main.py': '', 'main.slow': '#!/bin/sh' }, 'main.slow', 'python', 'stdio'],
])('a handler that names %s decides runtime and contract', async (_what, files: Record<string, string>, handler, runtime, contract) => {
  const { input, guess } = await deployInput(await folderOf(files), { name: 'x', handler })
  expect(input).toMatchObject({ handler, runtime, contract })
  // What was said was not guessed.
  expect(guess).toMatchObject({ runtime, contract })
  expect(guess).not.toHaveProperty('handler')
})

test('a handler that names nothing of the folder is refused, with what was looked for', async () => {
  const root = await folderOf({ 'main.py': '', 'both.py': '', 'both.mjs': '' })
  await expect(deployInput(root, { name: 'x', handler: 'nothing.here' })).rejects.toThrow(/no file nothing\.here, nor nothing\.py/)
  await expect(deployInput(root, { name: 'x', handler: 'missing' })).rejects.toThrow('no file missing.')
  await expect(deployInput(root, { name: 'x', handler: 'main.run', contract: 'stdio' })).rejects.toThrow('no file main.run.')
  await expect(deployInput(root, { name: 'x', handler: 'both.run' })).rejects.toThrow('both.py and both.mjs')
  const { input } = await deployInput(root, { name: 'x', handler: 'both.run', runtime: 'node' })
  expect(input).toMatchObject({ runtime: 'node', contract: 'handler' })
})

test('where everything was said nothing is guessed, and a custom runtime may name what its build makes', async () => {
  const root = await folderOf({ 'main.py': '' })
  const said = { name: 'x', runtime: 'python', contract: 'handler', handler: 'main.run' }
  expect((await deployInput(root, said)).guess).toBeNull()
  expect((await deployInput(root, { name: 'x', runtime: 'custom', handler: './made' })).guess).toBeNull()
})

test('the http contract takes the main file for its handler', async () => {
  const root = await folderOf({ 'main.py': 'def handler(e, c): ...' })
  expect((await deployInput(root, { contract: 'http', name: 'x' })).input).toMatchObject({ contract: 'http', handler: 'main.py' })
})

test.each([
  ['{"timeout": 5}', 'thaw.json: there is no key timeout; did you mean timeout_ms?'],
  ['{"resources": {"memory": 5}}', 'there is no key resources.memory; did you mean resources.memory_mib?'],
  ['{"colour": "red"}', 'there is no key colour; there are runtime,'],
  ['{"timeout_ms": "5s"}', 'thaw.json: timeout_ms: '],
  ['{"name": ""}', 'thaw.json: name: use 1 to 63 letters'],
  ['{"env": {"A-B": "1"}}', 'thaw.json: env.A-B: use letters, digits and _.'],
])('thaw.json with %s is refused in words', async (text, message) => {
  await expect(deployInput(await folderOf({ 'main.py': '', 'thaw.json': text }), {})).rejects.toThrow(message)
})

test('a flag that does not fit is named as it was written', async () => {
  const root = await folderOf({ 'main.py': '' })
  await expect(deployInput(root, { name: 'x', env: ['A-B=1'] })).rejects.toThrow('--env A-B: use letters, digits and _.')
  await expect(deployInput(root, { name: 'x', memory: 1 })).rejects.toThrow('--memory: ')
  await expect(deployInput(root, { name: 'x', minInstances: 3, maxInstances: 2 })).rejects.toThrow('min_instances must not exceed')
})
