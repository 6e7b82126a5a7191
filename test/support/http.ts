import { connect } from 'node:net'

export interface RawAnswer {
  status: number
  headers: string
  body: string
  /** The server closed the connection behind its answer. */
  closed: boolean
}

/** Sends bytes as they are, and reads one answer: for requests that no client would send. */
export function sendRaw(url: string, bytes: string | Buffer, options: { end?: boolean } = {}): Promise<RawAnswer> {
  const { hostname, port } = new URL(url)
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname)
    let text = ''
    const answer = (closed: boolean) => {
      const split = text.indexOf('\r\n\r\n')
      const headers = text.slice(0, split)
      resolve({ status: Number(headers.split(' ')[1]), headers, body: text.slice(split + 4), closed })
      socket.destroy()
    }
    socket.setEncoding('latin1').on('data', (more: string) => {
      text += more
      const length = /content-length: (\d+)/i.exec(text)
      const split = text.indexOf('\r\n\r\n')
      const closing = /connection: close/i.test(text.slice(0, Math.max(split, 0)))
      if (!closing && length !== null && split >= 0 && text.length >= split + 4 + Number(length[1])) answer(false)
    })
    socket.once('end', () => answer(true))
    socket.once('error', (error) => (text === '' ? reject(error) : answer(true)))
    socket.write(bytes)
    if (options.end === true) socket.end()
  })
}

/** The error code of an answer. */
export function codeOf(answer: { body: string }): string {
  return (JSON.parse(answer.body) as { error: { code: string } }).error.code
}
