import { contracts, driverKinds, type FunctionItem, networkModes, runtimes } from '@thaw/sdk'
import { type Command, Option } from 'commander'
import { functionName, urlFlag, wholeNumber, withServer } from '../context.ts'
import { type DeployFlags, deployInput, type Guessed } from '../deploy-input.ts'
import { deployAndFollow } from '../deployment.ts'
import { milliseconds, type Output, printable } from '../output.ts'
import { asTyped } from '../own-name.ts'
import { durationMs, memoryMib } from '../units.ts'

const examples = `
Examples:
  thaw deploy ./hello
  thaw deploy ./shop --secret DATABASE_URL --secret stripe-key=STRIPE_KEY
  thaw deploy ./hello --name hello-eu --memory 256MiB --timeout 10s --env REGION=eu
  thaw deploy ./words --handler words.count      # the function count of words.py, words.mjs, …
  thaw deploy ./tool --handler tool.py           # the file tool.py, run as a program

A thaw.json in the folder may hold the same as the body of POST /v1/functions, without code; flags override it.
What .thawignore names is left out, as are node_modules, .git, __pycache__ and .venv.`

export function register(program: Command, output: Output): void {
  program
    .command('deploy')
    .argument('[dir]', 'folder of the code', '.')
    .description('Create a function from a folder, or make a new version of it.')
    .option('--name <name>', 'default: the name of the folder', functionName)
    .addOption(new Option('--runtime <runtime>', 'default: guessed from the files').choices(runtimes))
    .option('--handler <handler>', 'file.function, or a file: a program')
    .addOption(new Option('--contract <contract>', 'default: handler where there is one, else stdio').choices(contracts))
    .option('--memory <amount>', 'MiB, or with unit: 256MiB, 1GiB', memoryMib)
    .option('--timeout <duration>', 'longest invocation, with its unit: 500ms, 30s, 5m', durationMs)
    .option('--env <name=value>', 'environment variable; can be repeated; without =value: the value here', collect)
    .option(
      '--secret <name=variable>',
      'secret, given as a variable or a file (name=/run/secrets/file); can be repeated; without =variable: under its own name',
      collect,
    )
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
        output.about.function = input.name
        const item = await output.progress.during(`deploying ${input.name}`, () =>
          deployAndFollow(thaw, input, {
            onVersion: (number) => output.note(`building ${input.name} version ${number}`),
            ...(output.json ? {} : { onLog: (line) => output.note(`  ${printable(line)}`) }),
            signal,
          }),
        )
        const tookMs = performance.now() - startedMs
        output.result(item, () => {
          const ready = `${item.name} version ${item.version} is ready (${item.driver}, ${milliseconds(tookMs)})`
          return `${ready}\n${nextStep(item, thaw.url, urlFlag(command))}`
        })
      }),
    )
}

function collect(pair: string, pairs: string[] | undefined): string[] {
  return [...(pairs ?? []), pair]
}

/** How to call it, in words that are true whatever it expects. */
function nextStep(item: FunctionItem, url: string, flag: string): string {
  if (item.contract === 'http') return `call it: curl ${url}/fn/${item.name}/`
  const event = item.contract === 'stdio' ? 'its standard input' : 'the event that its handler expects'
  return `${asTyped(`call it: \`thaw invoke ${item.name} 'JSON'${flag}\``).replaceAll('`', '')}   (JSON: ${event}; text, @file and - work as well)`
}

function guessText({ runtime, contract, handler, reasons }: Guessed): string {
  const kind = contract === undefined ? '' : contract === 'stdio' ? 'program (stdio contract)' : 'function'
  const what = [runtime, kind].filter((part) => part !== undefined && part !== '').join(' ')
  const named = handler === undefined ? '' : `${contract === 'stdio' ? 'main file' : 'handler'} ${handler}`
  return `guessed: ${[what, named].filter((part) => part !== '').join(', ')}, because ${reasons.join(', ')}`
}
