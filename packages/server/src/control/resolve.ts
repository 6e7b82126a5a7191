import { type Contract, type FunctionConfig, ThawError } from '@thaw/protocol'
import type { Driver } from '../drivers/driver.ts'
import type { ResolvedConfig } from './version.ts'

/** Decides what a deploy left open, and refuses what does not fit together. `driver` is the one that it runs on. */
export function resolveConfig(
  config: FunctionConfig,
  { kind: driver, abilities }: Pick<Driver, 'kind' | 'abilities'>,
  codeImage: string | undefined,
): ResolvedConfig {
  const contract = config.contract ?? (config.runtime === 'custom' ? 'custom' : 'handler')
  const refuse = (message: string, fix: string) => new ThawError('invalid_request', message, { fix })
  if (config.snapshot === true && abilities.snapshot !== 'memory') {
    throw refuse(`The driver ${driver} cannot keep memory on this machine.`, 'Leave snapshot out; `thaw doctor` says what it needs.')
  }
  const hookPath = config.env[hookPathVariable]
  if (contract === 'http' && hookPath !== undefined && !hookPath.startsWith('/')) {
    throw refuse(`The variable ${hookPathVariable} of env is no path.`, 'Let it begin with /, or leave it out.')
  }
  if (config.snapshot === true && !hearsOfSnapshots({ contract, env: config.env })) {
    throw contract === 'http'
      ? refuse(
          'A web server starts from memory only where it hears of that.',
          `Set the variable ${hookPathVariable} of env to a path that it serves; docs/snapshots.md says what it is sent.`,
        )
      : refuse(`Programs of the contract ${contract} cannot start from memory.`, 'Leave snapshot out, or use the handler contract.')
  }
  if (contract === 'handler' && config.runtime === 'custom') {
    throw refuse('The custom runtime has no handlers.', 'Set contract to "stdio", "http" or "custom".')
  }
  if (contract === 'handler' && config.command !== undefined) {
    throw refuse('The handler contract takes no command.', 'Set contract to "stdio", "http" or "custom", or give handler instead.')
  }
  if (contract === 'custom' && config.scaling.concurrency > 1) {
    throw refuse(
      'A program of the custom contract takes one invocation at a time.',
      'Leave scaling.concurrency out, and let scaling.max_instances say how many may run.',
    )
  }
  if (contract === 'http' && config.env.PORT !== undefined && !isPort(config.env.PORT)) {
    throw refuse('The variable PORT of env is no port.', 'Set it to a number from 1 to 65535, or leave it out.')
  }
  if (codeImage !== undefined && config.command === undefined) {
    throw refuse('Code that comes with its image needs a command.', 'Give command: the program and its arguments.')
  }
  const image = codeImage ?? config.image ?? defaultImage(config.runtime, driver)
  return { ...config, contract, driver, image, handler: config.handler ?? defaultHandler(config.runtime, contract) }
}

/** Where a web server wants to hear of snapshots. */
const hookPathVariable = 'THAW_HOOK_PATH'

/** Whether copies of an instance can be given their secrets and new randomness: by the runtime, or by the program itself. */
export function hearsOfSnapshots({ contract, env }: Pick<ResolvedConfig, 'contract' | 'env'>): boolean {
  return contract === 'handler' || (contract === 'http' && env[hookPathVariable] !== undefined)
}

/** A program that needs nothing of an image gets the tools of this host, but an engine elsewhere has no view of those. */
function defaultImage(runtime: FunctionConfig['runtime'], driver: ResolvedConfig['driver']): string {
  if (driver === 'process') return 'host'
  if (runtime !== 'custom') return runtime
  return driver === 'docker' ? 'base' : 'host'
}

function isPort(text: string): boolean {
  return /^[1-9]\d{0,4}$/.test(text) && Number(text) <= 65_535
}

function defaultHandler(runtime: FunctionConfig['runtime'], contract: Contract): string {
  if (contract === 'handler') return 'main.handler'
  if (contract === 'custom') return runtime === 'python' || runtime === 'node' ? 'main.handler' : 'bootstrap'
  return { python: 'main.py', node: 'main.mjs', go: 'main.go', custom: './bootstrap' }[runtime]
}
