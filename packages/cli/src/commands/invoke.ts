import { readFile } from 'node:fs/promises'
import { extname } from 'node:path'
import { buffer } from 'node:stream/consumers'
import type { InvokeResult } from '@thaw/sdk'
import type { Command } from 'commander'
import { type Context, functionName, wholeNumber, withServer } from '../context.ts'
import { UsageError } from '../errors.ts'
import { milliseconds, type Output } from '../output.ts'

interface Options {
  stream?: boolean
  timeoutMs?: number
  contentType?: string
}

export function register(program: Command, output: Output): void {
  program
    .command('invoke')
    .argument('<name>', 'function', functionName)
    .argument('[payload]', 'text or JSON, @FILE, or - for standard input')
    .description('Invoke a function and print its answer.')
    .option('--stream', 'print the answer as it arrives')
    .option('--timeout-ms <n>', 'give up earlier than the function itself does', wholeNumber(1, 86_400_000))
    .option('--content-type <type>', 'of the payload; default: JSON if it is JSON, else text, else bytes')
    .addHelpText(
      'after',
      `
Examples:
  thaw invoke hello '{"name": "world"}'
  thaw invoke hello @event.json
  cat picture.png | thaw invoke thumbnail - > small.png
  thaw invoke countdown 10 --stream

The exit code is 4 when the function itself fails.`,
    )
    .action((name: string, text: string | undefined, options: Options, command: Command) =>
      withServer(command, output, async (context) => {
        const payload = await readPayload(text, options.contentType)
        await (options.stream === true ? printStream(context, name, payload, options) : printAnswer(context, name, payload, options))
      }),
    )
}

interface TypedPayload {
  body: string | Uint8Array | undefined
  contentType: string | undefined
}

async function printAnswer({ output, thaw, signal }: Context, name: string, payload: TypedPayload, options: Options): Promise<void> {
  const result = await output.progress.during(`invoking ${name}`, () =>
    thaw.functions.invoke(name, payload.body, { signal, timeoutMs: options.timeoutMs, contentType: payload.contentType }),
  )
  if (output.json) {
    output.line(JSON.stringify({ ...result, value: jsonValue(result.value) }))
    return
  }
  if (result.value instanceof Uint8Array) await output.bytes(result.value)
  else if (typeof result.value === 'string' && !isJson(result.content_type)) output.line(result.value)
  else output.line(JSON.stringify(result.value, null, process.stdout.isTTY ? 2 : 0))
  // Only for eyes: a script that joins both outputs should get the answer alone.
  if (process.stderr.isTTY) output.note(output.dim(summary(result)))
}

async function printStream({ output, thaw, signal }: Context, name: string, payload: TypedPayload, options: Options): Promise<void> {
  const stream = await output.progress.during(`invoking ${name}`, () =>
    thaw.functions.stream(name, payload.body, { signal, timeoutMs: options.timeoutMs, contentType: payload.contentType }),
  )
  if (output.json) {
    for await (const chunk of stream.text()) output.line(JSON.stringify({ chunk }))
    const { invocation_id, boot_method, content_type } = stream
    output.line(JSON.stringify({ invocation_id, boot_method, content_type }))
    return
  }
  for await (const chunk of stream) await output.bytes(chunk)
}

async function readPayload(text: string | undefined, contentType: string | undefined): Promise<TypedPayload> {
  if (text === undefined) return { body: undefined, contentType: undefined }
  if (text === '-') return typed(await buffer(process.stdin), contentType)
  if (!text.startsWith('@'))
    return { body: text, contentType: contentType ?? (parses(text) ? 'application/json' : 'text/plain; charset=utf-8') }
  const path = text.slice(1)
  const bytes = await readFile(path).catch((error: Error) => {
    throw new UsageError(`The payload cannot be read: ${error.message}`, 'Name a file that exists behind @.')
  })
  return typed(bytes, contentType ?? (extname(path) === '.json' ? 'application/json' : undefined))
}

function typed(bytes: Uint8Array, contentType: string | undefined): TypedPayload {
  if (contentType !== undefined) return { body: bytes, contentType }
  const text = utf8(bytes)
  if (text === null) return { body: bytes, contentType: 'application/octet-stream' }
  return { body: bytes, contentType: parses(text) ? 'application/json' : 'text/plain; charset=utf-8' }
}

function utf8(bytes: Uint8Array): string | null {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch {
    return null
  }
}

function parses(text: string): boolean {
  try {
    JSON.parse(text)
    return true
  } catch {
    return false
  }
}

function isJson(contentType: string): boolean {
  return /^application\/(?:.*\+)?json\b/.test(contentType)
}

/** Bytes have no place in JSON; as base64 they can be had back. */
function jsonValue(value: unknown): unknown {
  return value instanceof Uint8Array ? { base64: Buffer.from(value).toString('base64') } : value
}

function summary(result: InvokeResult): string {
  const run = result.timing === null ? '' : `, ran ${milliseconds(result.timing.run_ms)}`
  return `${result.invocation_id}, ${result.boot_method ?? 'unknown'}${run}`
}
