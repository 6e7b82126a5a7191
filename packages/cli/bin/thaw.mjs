#!/usr/bin/env node
// Plain JavaScript for any Node.js: it finds one that runs the rest, which is TypeScript.
import { spawn } from 'node:child_process'
import { existsSync, realpathSync } from 'node:fs'
import * as nodeModule from 'node:module'
import { constants } from 'node:os'
import { fileURLToPath } from 'node:url'

const neededMajor = 24
const script = realpathSync(fileURLToPath(import.meta.url))

if (Number(process.versions.node.split('.')[0]) >= neededMajor) {
  nodeModule.enableCompileCache?.()
  const { main } = await import('../src/main.ts')
  await main(process.argv.slice(2))
} else {
  // Pinned by the package `node`, a dev dependency of the checkout.
  const pinned = fileURLToPath(new URL('../../../node_modules/node/bin/node', import.meta.url))
  if (existsSync(pinned)) {
    runWith(pinned)
  } else {
    console.error(`error: thaw needs Node.js ${neededMajor} or newer; this is ${process.versions.node}.`)
    console.error(`fix: install Node.js ${neededMajor}, or run \`npm install\` in the checkout, which brings its own.`)
    process.exitCode = 1
  }
}

function runWith(node) {
  const child = spawn(node, [script, ...process.argv.slice(2)], { stdio: 'inherit' })
  child.on('error', (error) => {
    console.error(`error: ${node} cannot be started: ${error.message}`)
    process.exitCode = 1
  })
  // A terminal sends Ctrl-C to both processes; sent on from here it would arrive twice, and twice means "at once".
  const terminal = process.stdin.isTTY || process.stdout.isTTY
  process.on('SIGINT', () => terminal || child.kill('SIGINT'))
  process.on('SIGTERM', () => child.kill('SIGTERM'))
  child.on('exit', (code, signal) => {
    process.exitCode = code ?? 128 + (constants.signals[signal] ?? 0)
    process.exit()
  })
}
