import { Agent, type IncomingHttpHeaders, request } from 'node:http'

export interface Answer {
  status: number
  headers: IncomingHttpHeaders
  body: Buffer
  /** From the first byte sent to the last byte received. */
  ms: number
}

/** A client that keeps its connections, like every contender does. */
export class Client implements Disposable {
  readonly #agent = new Agent({ keepAlive: true, noDelay: true })

  /** One POST. Rejects unless the answer is 2xx. */
  post(url: string, body: string | Buffer, contentType: string): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const started = performance.now()
      const sent = request(
        url,
        { method: 'POST', agent: this.#agent, headers: { 'content-type': contentType, 'content-length': Buffer.byteLength(body) } },
        (response) => {
          const parts: Buffer[] = []
          response.on('data', (part: Buffer) => parts.push(part))
          response.once('error', reject)
          response.once('end', () => {
            const ms = performance.now() - started
            const answer = { status: response.statusCode ?? 0, headers: response.headers, body: Buffer.concat(parts), ms }
            if (answer.status < 200 || answer.status > 299)
              reject(new Error(`${url}: ${answer.status} ${answer.body.toString('utf8', 0, 500)}`))
            else resolve(answer)
          })
        },
      )
      sent.once('error', reject)
      sent.end(body)
    })
  }

  [Symbol.dispose](): void {
    this.#agent.destroy()
  }
}
