import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { buffer, text } from 'node:stream/consumers'
import type { Thaw } from '@thaw/sdk'
import { onTestFinished } from 'vitest'
import { tempDir } from './temp.ts'

export interface Ended {
  code: number | null
  stdout: Buffer
  stderr: string
}

/** OpenSSH's own clients with an account that has nothing but one key; `s` is the name of the server for them. */
export class SshClient implements Disposable {
  readonly dir: string
  readonly #folder = tempDir()

  constructor(server: { port: number; host_key: string }, privateKey: string) {
    this.dir = this.#folder.path
    writeFileSync(`${this.dir}/key`, privateKey, { mode: 0o600 })
    writeFileSync(`${this.dir}/known`, `[127.0.0.1]:${server.port} ${server.host_key}\n`)
    const lines = [
      'Host s',
      'HostName 127.0.0.1',
      `Port ${server.port}`,
      `IdentityFile ${this.dir}/key`,
      'IdentitiesOnly yes',
      'IdentityAgent none',
      'BatchMode yes',
      `UserKnownHostsFile ${this.dir}/known`,
      'StrictHostKeyChecking yes',
    ]
    writeFileSync(`${this.dir}/config`, `${lines.join('\n')}\n`)
  }

  /** A server of the tests, and a client with a new key of it. */
  static async of(thaw: Thaw, limits: { sandbox_id?: string; expires_at?: string } = {}): Promise<SshClient & { keyId: string }> {
    const { ssh } = await thaw.info()
    if (ssh === null) throw new Error('the server does not listen for SSH')
    const { id, private_key } = await thaw.sshKeys.create({ name: 'test', generate: true, ...limits })
    return Object.assign(new SshClient(ssh, private_key ?? ''), { keyId: id })
  }

  [Symbol.dispose](): void {
    this.#folder[Symbol.dispose]()
  }

  command(program: 'ssh' | 'sftp' | 'scp', args: string[]): [string, ...string[]] {
    return [program, '-F', `${this.dir}/config`, ...args]
  }

  start(program: 'ssh' | 'sftp' | 'scp', args: string[], env: NodeJS.ProcessEnv = {}) {
    const [name, ...rest] = this.command(program, args)
    const child = spawn(name, rest, { env: { PATH: process.env.PATH, HOME: this.dir, ...env } })
    onTestFinished(() => void child.kill('SIGKILL'))
    // Whoever refuses to read says so by its exit code.
    child.stdin.on('error', () => undefined)
    const ended: Promise<Ended> = Promise.all([once(child, 'close'), buffer(child.stdout), text(child.stderr)]).then(
      ([[code], stdout, stderr]) => ({ code: code as number | null, stdout, stderr }),
    )
    return { child, ended }
  }

  /** Runs it to its end. */
  run(program: 'ssh' | 'sftp' | 'scp', args: string[], input?: Buffer | string, env?: NodeJS.ProcessEnv): Promise<Ended> {
    const { child, ended } = this.start(program, args, env)
    child.stdin.end(input)
    return ended
  }
}
