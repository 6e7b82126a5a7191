import type { ExecuteRequest } from '@thaw/sdk'
import type { Context } from '../context.ts'
import { environment } from '../deploy-input.ts'
import { UsageError } from '../errors.ts'
import { milliseconds } from '../output.ts'
import { resourcesOf, type SandboxFlags } from './sandbox-input.ts'

interface Flags extends SandboxFlags {
  cacheTtl?: number
  cwd?: string
}

/** As of `timeout` (coreutils). */
const timedOutCode = 124

/** What a sandbox that nobody sees cannot have. */
const refused = ['name', 'port', 'onTimeout', 'idle', 'hibernate', 'metadata', 'keep', 'tty', 'user'] as const

/** The result of an earlier run of the very same, or of this one. Resolves with the exit code of the command. */
export async function runCached(
  context: Context,
  image: string,
  line: string[],
  flags: Flags & Partial<Record<(typeof refused)[number], unknown>>,
  stdin: Uint8Array | undefined,
): Promise<number> {
  const { output, thaw, signal } = context
  const other = refused.filter((name) => flags[name] !== undefined).map((name) => `--${name.replace('onTimeout', 'on-timeout')}`)
  if (other.length > 0) throw new UsageError(`${other.join(', ')} cannot be given with --cached.`, 'Leave them out, or leave out --cached.')
  const request: ExecuteRequest = {
    mode: 'cached',
    image,
    command: line,
    driver: flags.driver,
    network: flags.network,
    resources: resourcesOf(flags),
    env: flags.env === undefined ? undefined : environment(flags.env),
    cwd: flags.cwd,
    timeout_ms: flags.timeout,
    cache_ttl_ms: flags.cacheTtl,
    // Output is not always text.
    encoding: 'base64',
    stdin: stdin === undefined ? undefined : Buffer.from(stdin).toString('base64'),
  }
  const result = await output.progress.during(`running ${line[0]} in ${image}`, () => thaw.execute(request, { signal }))
  const [stdout, stderr] = [Buffer.from(result.stdout, 'base64'), Buffer.from(result.stderr, 'base64')]
  if (output.json) {
    output.line(JSON.stringify({ ...result, encoding: 'utf8', stdout: stdout.toString('utf8'), stderr: stderr.toString('utf8') }))
  } else {
    await output.bytes(stdout)
    await output.errorBytes(stderr)
    if (result.cached) output.note(`kept from an earlier run, which took ${milliseconds(result.duration_ms)}`)
    if (result.truncated) output.note('there was more output than is kept')
  }
  if (result.timed_out) output.note(`the command was killed: its ${flags.timeout ?? 60_000} ms were over`)
  return result.exit_code ?? timedOutCode
}
