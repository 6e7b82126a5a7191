import { contracts, driverKinds, networkModes, runtimes } from '@thaw/sdk'
import { type Command, Option } from 'commander'
import { wholeNumber, withServer } from '../context.ts'
import { type DeployFlags, deployInput } from '../deploy-input.ts'
import { deployAndFollow } from '../deployment.ts'
import type { Guess } from '../guess.ts'
import { milliseconds, type Output } from '../output.ts'
import { durationMs, memoryMib } from '../units.ts'

const examples = `
Examples:
  thaw deploy ./hello
  thaw deploy ./shop --secret DATABASE_URL --secret stripe-key=STRIPE_KEY
  thaw deploy ./hello --name hello-eu --memory 256MiB --timeout 10s --env REGION=eu
  thaw deploy ./tool --runtime python --contract stdio --handler tool.py

A thaw.json in the folder may hold the same as the body of POST /v1/functions, without code; flags override it.
What .thawignore names is left out, as are node_modules, .git, __pycache__ and .venv.`

export function register(program: Command, output: Output): void {
  program
    .command('deploy')
    .argument('[dir]', 'folder of the code', '.')
    .description('Create a function from a folder, or make a new version of it.')
    .option('--name <name>', 'default: the name of the folder')
    .addOption(new Option('--runtime <runtime>', 'default: guessed from the files').choices(runtimes))
    .option('--handler <handler>', 'file.function, or the main file for the stdio contract')
    .addOption(new Option('--contract <contract>', 'default: handler where there is one, else stdio').choices(contracts))
    .option('--memory <amount>', 'MiB, or with unit: 256MiB, 1GiB', memoryMib)
    .option('--timeout <duration>', 'longest invocation: 500ms, 30s, 5m', durationMs)
    .option('--env <name=value>', 'environment variable; can be repeated; without =value: the value here', collect)
    .option('--secret <name=variable>', 'secret, given as a variable; can be repeated; without =variable: under its own name', collect)
    .option('--image <image>', 'host, python, node, go, or an OCI reference')
    .addOption(new Option('--driver <kind>', 'default: the strongest that the server can use').choices(driverKinds))
    .option('--concurrency <n>', 'invocations at a time in one instance', wholeNumber(1, 1000))
    .option('--min-instances <n>', 'instances that never stop', wholeNumber(0, 1000))
    .option('--max-instances <n>', 'most instances at a time', wholeNumber(1, 1000))
    .addOption(new Option('--network <mode>', 'what the function can reach').choices(networkModes))
    .addHelpText('after', examples)
    .action((directory: string, flags: DeployFlags, command: Command) =>
      withServer(command, output, async ({ thaw, signal }) => {
        const startedMs = performance.now()
        const { input, guess } = await deployInput(directory, flags)
        if (guess !== null) output.note(guessText(guess))
        const version = await output.progress.during(`deploying ${input.name}`, () =>
          deployAndFollow(thaw, input, {
            onVersion: (number) => output.note(`building ${input.name} version ${number}`),
            ...(output.json ? {} : { onLog: (line) => output.note(`  ${line}`) }),
            signal,
          }),
        )
        const item = await thaw.functions.get(input.name, { signal })
        const tookMs = performance.now() - startedMs
        output.result(item, () => {
          const ready = `${item.name} version ${version.version} is ready (${version.driver}, ${milliseconds(tookMs)})`
          return `${ready}\ninvoke it: thaw invoke ${item.name} '{}'\nor over HTTP: ${thaw.url}/fn/${item.name}/`
        })
      }),
    )
}

function collect(pair: string, pairs: string[] | undefined): string[] {
  return [...(pairs ?? []), pair]
}

function guessText(guess: Guess): string {
  const what = guess.contract === 'stdio' ? `${guess.runtime} program (stdio contract)` : `${guess.runtime} function`
  const handler = guess.handler === undefined ? '' : `, ${guess.contract === 'stdio' ? 'main file' : 'handler'} ${guess.handler}`
  return `guessed: ${what}${handler}, because ${guess.reasons.join(', ')}`
}
