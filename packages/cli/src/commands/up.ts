import { type Info, Thaw } from '@thaw/sdk'
import type { Command } from 'commander'
import { exitCodes, Interrupted, UsageError } from '../errors.ts'
import type { Output } from '../output.ts'
import { ownName } from '../own-name.ts'
import { runQuickstart } from '../quickstart.ts'
import { startForQuickstart, startServer } from '../server.ts'
import { addServerOptions, type ServerFlags, serverFlags } from '../server-options.ts'

interface Options extends ServerFlags {
  quickstart?: boolean
  once?: boolean
}

export function register(program: Command, output: Output): void {
  addServerOptions(program.command('up'))
    .description('Start the platform and serve until Ctrl-C.')
    .option('--quickstart', 'deploy examples in Python, Node.js and Go, call them and check their answers')
    .option('--once', 'with --quickstart: stop afterwards; the exit code says whether all answers were right')
    .addHelpText('after', '\nExamples:\n  thaw up\n  thaw up --port 9000 --data-dir ./data --driver process\n  thaw up --quickstart --once')
    .action((options: Options) => up(options, output))
}

async function up(options: Options, output: Output): Promise<void> {
  if (options.once === true && options.quickstart !== true) throw new UsageError('--once belongs to --quickstart.')
  const flags = serverFlags(options)
  const stop = stopRequest(output)
  const server = await (options.quickstart === true ? startForQuickstart(flags, output) : startServer(flags, output))
  try {
    stop.signal.throwIfAborted()
    const thaw = new Thaw({ url: server.url })
    if (options.quickstart === true) {
      if (!(await runQuickstart(thaw, output, stop.signal))) process.exitCode = exitCodes.failed
    } else {
      await announce(server.url, await server.info(), output)
    }
    if (options.once !== true) {
      if (options.quickstart === true && !output.json) output.line(`\n${invitation(server.url)}`)
      await Promise.race([server.closed, aborted(stop.signal)])
    }
  } catch (error) {
    // Being asked to stop is how a server ends, so it is no failure; an unfinished quickstart with --once is.
    if (!(error instanceof Interrupted) || options.once === true) throw error
  } finally {
    await server.close()
    stop.dispose()
  }
}

async function announce(url: string, info: Info, output: Output): Promise<void> {
  const chosen = info.drivers.find((driver) => driver.default)
  output.result({ url, version: info.version, data_dir: info.data_dir, driver: chosen?.kind ?? null }, () =>
    [
      `thaw ${info.version} is serving on ${url}`,
      `  driver ${chosen?.kind ?? 'none'} (isolation: ${chosen?.abilities.isolation ?? 'none'}), data in ${info.data_dir}`,
      `  API: ${url}/docs`,
    ].join('\n'),
  )
}

function invitation(url: string): string {
  return `serving on ${url} until Ctrl-C, try:
  curl -d '{"text": "to be or not to be"}' ${url}/v1/functions/quickstart-python/invoke
  curl -N -H 'Thaw-Mode: stream' -d '{"from": 27}' ${url}/v1/functions/quickstart-stream/invoke
  ${ownName} ls --url ${url}
API: ${url}/docs`
}

/** The first SIGINT or SIGTERM asks for a clean end; the second finds no handler of ours and ends the process at once. */
function stopRequest(output: Output): { signal: AbortSignal; dispose: () => void } {
  const abort = new AbortController()
  const signals = ['SIGINT', 'SIGTERM'] as const
  const dispose = () => {
    for (const signal of signals) process.off(signal, request)
  }
  const request = () => {
    dispose()
    output.note('stopping; once more to end at once')
    abort.abort(new Interrupted())
  }
  for (const signal of signals) process.on(signal, request)
  return { signal: abort.signal, dispose }
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}
