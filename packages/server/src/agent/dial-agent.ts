import { Agent, type AgentOptions, type ClientRequestArgs } from 'node:http'
import type { Duplex } from 'node:stream'

/** Connects to whatever `dial` leads to, whichever host a request names. */
export class DialAgent extends Agent {
  readonly #dial: () => Promise<Duplex>

  constructor(dial: () => Promise<Duplex>, options: AgentOptions) {
    super(options)
    this.#dial = dial
  }

  createConnection(_options: ClientRequestArgs, callback?: (error: Error | null, stream: Duplex) => void): undefined {
    this.#dial().then(
      (stream) => callback?.(null, stream),
      // An error comes without a stream, which the type does not know.
      (error: Error) => (callback as ((error: Error) => void) | undefined)?.(error),
    )
  }
}
