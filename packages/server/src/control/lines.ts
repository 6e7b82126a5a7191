import { StringDecoder } from 'node:string_decoder'

/** Longest line that is kept whole; a longer one is cut into several. */
const maxLineLength = 16 * 1024

/** Cuts a stream of bytes into lines of text. Invalid UTF-8 becomes U+FFFD. */
export class LineSplitter {
  readonly #onLine: (line: string) => void
  readonly #decoder = new StringDecoder('utf8')
  #rest = ''

  constructor(onLine: (line: string) => void) {
    this.#onLine = onLine
  }

  push(bytes: Buffer): void {
    const parts = (this.#rest + this.#decoder.write(bytes)).split('\n')
    this.#rest = parts.pop() ?? ''
    for (const line of parts) this.#emit(line)
    while (this.#rest.length >= maxLineLength) {
      this.#onLine(this.#rest.slice(0, maxLineLength))
      this.#rest = this.#rest.slice(maxLineLength)
    }
  }

  #emit(line: string): void {
    for (let offset = 0; offset === 0 || offset < line.length; offset += maxLineLength)
      this.#onLine(line.slice(offset, offset + maxLineLength))
  }
}
