import type { BootMethod } from '@thaw/protocol'
import { jsonLinesOf, linesOf, piecesOf, textOf } from './bytes.ts'
import { invocationOf } from './invoke.ts'

/**
 * A streamed answer. Iterate it once, as bytes, text, lines or JSON lines; leaving the loop early cancels the invocation.
 *
 *     await using stream = await thaw.functions.stream('count', { to: 3 })
 *     for await (const step of stream.json<{ n: number }>()) console.log(step.n)
 *
 * When the function fails half-way, the loop throws the error of the invocation after the pieces that came before it.
 */
export class InvocationStream implements AsyncIterable<Uint8Array>, AsyncDisposable {
  readonly invocation_id: string
  readonly boot_method: BootMethod | null
  readonly content_type: string
  readonly #pieces: AsyncGenerator<Uint8Array>
  readonly #body: ReadableStream<Uint8Array> | null

  constructor(response: Response, onBreak: (error: unknown, invocationId: string) => unknown) {
    const invocation = invocationOf(response.headers)
    this.invocation_id = invocation.invocation_id
    this.boot_method = invocation.boot_method
    this.content_type = invocation.content_type
    this.#body = response.body
    this.#pieces = piecesOf(response.body, (error) => onBreak(error, invocation.invocation_id))
  }

  /** The pieces as they arrive. The network may cut and join what the function yielded; lines() and json() put it right. */
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return this.#pieces
  }

  text(): AsyncGenerator<string> {
    return textOf(this.#pieces)
  }

  lines(): AsyncGenerator<string> {
    return linesOf(this.text())
  }

  json<Value = unknown>(): AsyncGenerator<Value> {
    return jsonLinesOf<Value>(this.lines())
  }

  /** Stops reading and cancels the invocation. Does nothing when the answer is complete. */
  async cancel(): Promise<void> {
    await this.#pieces.return(undefined)
    // A generator that was never started has no reader to cancel.
    if (this.#body !== null && !this.#body.locked) await this.#body.cancel().catch(() => undefined)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.cancel()
  }
}
