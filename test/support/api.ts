import type { ExecResult, SandboxItem } from '@thaw/protocol'

export interface Answer {
  status: number
  headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: tests look into answers of every shape
  body: any
}

/** The HTTP API without a client: what a test sends is what goes over the wire. */
export class Api {
  readonly url: string

  constructor(url: string) {
    this.url = url
  }

  async send(method: string, path: string, body?: unknown): Promise<Answer> {
    const json = body !== undefined && !(typeof body === 'string' || body instanceof Uint8Array)
    const answer = await fetch(this.url + path, {
      method,
      ...(json ? { headers: { 'content-type': 'application/json' } } : {}),
      ...(body === undefined ? {} : { body: (json ? JSON.stringify(body) : body) as string | Uint8Array<ArrayBuffer> }),
    })
    const text = await answer.text()
    const isJson = answer.headers.get('content-type')?.includes('json') === true
    return { status: answer.status, headers: answer.headers, body: isJson && text !== '' ? JSON.parse(text) : text }
  }

  /** A new sandbox; throws with the error's text when there is none. */
  async sandbox(request: object = {}): Promise<SandboxItem> {
    const { status, body } = await this.send('POST', '/v1/sandboxes', request)
    if (status !== 201 && status !== 200) throw new Error(`${status}: ${JSON.stringify(body)}`)
    return body.item
  }

  async exec(id: string, command: string | string[], rest: object = {}): Promise<ExecResult> {
    const { status, body } = await this.send('POST', `/v1/sandboxes/${id}/exec`, { command, ...rest })
    if (status !== 200) throw new Error(`${status}: ${JSON.stringify(body)}`)
    return body
  }

  async stdout(id: string, command: string | string[], rest: object = {}): Promise<string> {
    const result = await this.exec(id, command, rest)
    if (result.exit_code !== 0) throw new Error(`${JSON.stringify(command)} ended with ${result.exit_code}: ${result.stderr}`)
    return result.stdout
  }

  async item(id: string): Promise<SandboxItem> {
    return (await this.send('GET', `/v1/sandboxes/${id}`)).body.item
  }
}
