import { readFile } from 'node:fs/promises'
import type { FunctionInput, Thaw } from '@thaw/sdk'

export interface QuickstartFunction {
  name: string
  runtime: 'python' | 'node' | 'go'
  /** Below examples/quickstart. */
  source: string
  payload: unknown
  /** What the function must answer; for a streaming one, its JSON lines. */
  expected: unknown
  streams: boolean
}

export const quickstartFunctions: readonly QuickstartFunction[] = [
  {
    name: 'quickstart-python',
    runtime: 'python',
    source: 'hello-python/main.py',
    payload: { text: 'The quick brown fox jumps over the lazy dog, and the dog sleeps on.' },
    expected: { words: 14, distinct: 11, most_common: { word: 'the', times: 3 }, longest: 'sleeps' },
    streams: false,
  },
  {
    name: 'quickstart-node',
    runtime: 'node',
    source: 'hello-node/main.mjs',
    payload: { numbers: [3, 1, 4, 1, 5, 9, 2, 6] },
    expected: { total: 31, sha256: '0a1e71f369be04257e22612a8f6b8c56307ae8556e0fa2a1e3f4882569789490' },
    streams: false,
  },
  {
    name: 'quickstart-go',
    runtime: 'go',
    source: 'hello-go/main.go',
    payload: { below: 100_000 },
    expected: { primes: 9592, largest: 99_991 },
    streams: false,
  },
  {
    name: 'quickstart-stream',
    runtime: 'node',
    source: 'stream-node/main.mjs',
    payload: { from: 6 },
    expected: [6, 3, 10, 5, 16, 8, 4, 2, 1].map((value, step) => ({ step, value })),
    streams: true,
  },
]

export async function inputOf(definition: QuickstartFunction): Promise<FunctionInput> {
  const path = new URL(`../../../examples/quickstart/${definition.source}`, import.meta.url)
  return { name: definition.name, runtime: definition.runtime, code: { inline: await readFile(path, 'utf8') } }
}

export interface Call {
  answer: unknown
  boot_method: string | null
  /** As the caller sees it: over HTTP, until the answer is complete. */
  duration_ms: number
}

export async function call(thaw: Thaw, definition: QuickstartFunction, signal: AbortSignal): Promise<Call> {
  const startedMs = performance.now()
  if (!definition.streams) {
    const { value, boot_method } = await thaw.functions.invoke(definition.name, definition.payload, { signal })
    return { answer: value, boot_method, duration_ms: performance.now() - startedMs }
  }
  const stream = await thaw.functions.stream(definition.name, definition.payload, { signal })
  const answer: unknown[] = []
  for await (const line of stream.json()) answer.push(line)
  return { answer, boot_method: stream.boot_method, duration_ms: performance.now() - startedMs }
}
