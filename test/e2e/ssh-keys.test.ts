import { execFileSync, spawn } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { Thaw } from '@thaw/sdk'
import ssh2 from 'ssh2'
import { describe, expect, test } from 'vitest'
import { startServer } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const script = fileURLToPath(new URL('../../packages/cli/bin/thaw.mjs', import.meta.url))
const small = { driver: 'process', pools: { size: 0 }, ssh: { port: 0 } } as const

async function thaw(args: string[], env: Record<string, string>) {
  const outer = Object.entries(process.env).filter(([name]) => !name.startsWith('THAW_'))
  const child = spawn(process.execPath, [script, ...args], { env: { ...Object.fromEntries(outer), ...env } })
  child.stdin.end()
  const [stdout, stderr, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  return { code, stdout, stderr }
}

/** A key pair by ssh-keygen: the private key lies at the path, the public one beside it. */
function keygen(path: string, ...args: string[]): string {
  execFileSync('ssh-keygen', ['-q', '-N', '', '-f', path, ...args])
  return readFileSync(`${path}.pub`, 'utf8')
}

const fingerprint = (path: string) => execFileSync('ssh-keygen', ['-l', '-f', path], { encoding: 'utf8' }).split(' ')[1]

/** A public RSA key of any size, as OpenSSH would refuse to make it. */
function rsaLine(bits: number): string {
  const { n = '', e = '' } = generateKeyPairSync('rsa', { modulusLength: bits }).publicKey.export({ format: 'jwk' })
  const field = (bytes: Buffer) => {
    const length = Buffer.alloc(4)
    length.writeUInt32BE(bytes.length)
    return Buffer.concat([length, bytes])
  }
  const number = (value: string) => field(Buffer.concat([Buffer.from([0]), Buffer.from(value, 'base64url')]))
  return `ssh-rsa ${Buffer.concat([field(Buffer.from('ssh-rsa')), number(e), number(n)]).toString('base64')}`
}

describe('SSH keys', () => {
  test('public keys of every type that may log in are taken, with the fingerprint that ssh-keygen prints', async () => {
    await using server = await startServer(small)
    using dir = tempDir()
    for (const [name, ...args] of [
      ['ed25519', '-t', 'ed25519', '-C', 'me at home'],
      ['p256', '-t', 'ecdsa', '-b', '256'],
      ['p521', '-t', 'ecdsa', '-b', '521'],
      ['rsa', '-t', 'rsa', '-b', '2048'],
    ] as const) {
      const path = join(dir.path, name)
      const item = await server.thaw.sshKeys.create({ name, public_key: keygen(path, ...args) })
      expect(item).toMatchObject({ name, fingerprint: fingerprint(path), private_key: null, sandbox_id: null, expires_at: null })
      expect(await server.thaw.sshKeys.get(item.id)).toMatchObject({ fingerprint: item.fingerprint, rotated_at: null })
    }
    const again = server.thaw.sshKeys.create({ name: 'again', public_key: readFileSync(join(dir.path, 'p256.pub'), 'utf8') })
    await expect(again).rejects.toMatchObject({ code: 'ssh_key_exists', status: 409 })
    expect((await server.thaw.sshKeys.list().all()).map(({ name }) => name)).toEqual(['ed25519', 'p256', 'p521', 'rsa'])
  })

  test('what cannot log in is refused, and it is said what it is', async () => {
    await using server = await startServer(small)
    using dir = tempDir()
    const good = keygen(join(dir.path, 'k'), '-t', 'ed25519').trim()
    const [type, blob = ''] = good.split(' ')
    const bad: [string, RegExp][] = [
      [readFileSync(join(dir.path, 'k'), 'utf8'), /private key/],
      [rsaLine(1024), /1024 bits is too weak/],
      [`ssh-dss ${blob}`, /"ssh-dss" is not a type/],
      [`sk-ssh-ed25519@openssh.com ${blob}`, /hardware tokens/],
      [`ssh-ed25519-cert-v01@openssh.com ${blob}`, /certificate/],
      [`${good}\n${good}`, /one line/],
      [`${type} ${blob} home\nssh-ed25519 ${blob}`, /line breaks/],
      [`${type} ${blob.slice(0, 40)}`, /cut off/],
      [`${type} ${blob.slice(0, -8)}*&^%`, /cut off/],
      [`ecdsa-sha2-nistp256 ${blob}`, /what its type says/],
      [`command="sh" ${good}`, /is not a type/],
    ]
    for (const [public_key, message] of bad) {
      await expect(server.thaw.sshKeys.create({ name: 'bad', public_key }), public_key).rejects.toMatchObject({
        code: 'ssh_key_invalid',
        status: 400,
        message: expect.stringMatching(message),
      })
    }
    for (const rest of [{}, { generate: true as const, public_key: good }]) {
      await expect(server.thaw.sshKeys.create({ name: 'bad', ...rest })).rejects.toMatchObject({ code: 'invalid_request' })
    }
    const past = { name: 'bad', public_key: good, expires_at: '2020-01-01T00:00:00Z' }
    await expect(server.thaw.sshKeys.create(past)).rejects.toMatchObject({ code: 'invalid_request' })
    const nowhere = { name: 'bad', public_key: good, sandbox_id: 'nowhere' }
    await expect(server.thaw.sshKeys.create(nowhere)).rejects.toMatchObject({ code: 'sandbox_not_found' })
    await expect(server.thaw.sshKeys.delete('sshk-none')).rejects.toMatchObject({ code: 'ssh_key_not_found', status: 404 })
    expect(await server.thaw.sshKeys.list().all()).toEqual([])
  })

  test('pairs that the server makes are what OpenSSH reads, each of them', async () => {
    await using server = await startServer(small)
    using dir = tempDir()
    for (let i = 0; i < 30; i++) {
      const { private_key, fingerprint: told } = await server.thaw.sshKeys.create({ name: `key ü ${i}`, generate: true })
      const path = join(dir.path, String(i))
      writeFileSync(path, private_key ?? '', { mode: 0o600 })
      writeFileSync(`${path}.pub`, execFileSync('ssh-keygen', ['-y', '-f', path]))
      expect(fingerprint(`${path}.pub`)).toBe(told)
    }
  })

  test('keys belong to a tenant, and the host key to the data directory', async () => {
    await using server = await startServer(small)
    const admin = new Thaw({ url: server.url, apiKey: (await server.thaw.keys.create({ name: 'admin' })).key })
    const web = new Thaw({ url: server.url, apiKey: (await admin.keys.create({ name: 'web', tenant: 'web' })).key })
    const { id } = await admin.sshKeys.create({ name: 'mine', generate: true })
    expect(await web.sshKeys.list().all()).toEqual([])
    await expect(web.sshKeys.get(id)).rejects.toMatchObject({ code: 'ssh_key_not_found' })
    await expect(web.sshKeys.rotate(id, { generate: true })).rejects.toMatchObject({ code: 'ssh_key_not_found' })
    await expect(web.sshKeys.delete(id)).rejects.toMatchObject({ code: 'ssh_key_not_found' })

    const path = join(server.dataDir, 'ssh_host_ed25519_key')
    expect(statSync(path).mode & 0o777).toBe(0o600)
    const key = ssh2.utils.parseKey(readFileSync(path))
    if (key instanceof Error) throw key
    const { ssh } = await web.info()
    expect(ssh?.host_key).toBe(`ssh-ed25519 ${key.getPublicSSH().toString('base64')}`)
    expect(ssh?.fingerprint).toMatch(/^SHA256:[\w+/]{43}$/)
  })

  test('the command registers, makes, lists, rotates and revokes keys', async () => {
    await using server = await startServer(small)
    using dir = tempDir()
    const at = { THAW_URL: server.url, HOME: dir.path }
    expect((await thaw(['ssh-key', 'add', 'laptop'], at)).stderr).toContain('no public key in ~/.ssh')
    mkdirSync(join(dir.path, '.ssh'))
    keygen(join(dir.path, '.ssh/id_ed25519'), '-t', 'ed25519')
    const added = await thaw(['ssh-key', 'add', 'laptop', '--expires-in', '90d'], at)
    expect(added).toMatchObject({ code: 0, stdout: expect.stringMatching(/^sshk-\w{26}\n$/) })
    expect(added.stderr).toContain(fingerprint(join(dir.path, '.ssh/id_ed25519')))

    const out = join(dir.path, 'made')
    const made = await thaw(['ssh-key', 'generate', 'ci', '--out', out], at)
    expect(made.code).toBe(0)
    expect(statSync(out).mode & 0o777).toBe(0o600)
    expect(made.stderr).toContain(fingerprint(out))
    expect(await thaw(['ssh-key', 'generate', 'ci', '--out', out], at)).toMatchObject({ code: 2 })
    const rotated = await thaw(['ssh-key', 'rotate', made.stdout.trim()], at)
    expect(rotated.stdout).toMatch(/^-----BEGIN OPENSSH PRIVATE KEY-----\n/)
    const listed = await thaw(['ssh-key', 'ls'], at)
    expect(listed.stdout).toMatch(/laptop +ssh-ed25519 +SHA256:\S+ +all[\s\S]*ci +ssh-ed25519 +SHA256:\S+ +all/)
    expect(listed.stdout).not.toContain(fingerprint(out))
    expect(await thaw(['ssh-key', 'rm', made.stdout.trim()], at)).toMatchObject({ code: 0, stdout: `revoked ${made.stdout}` })
    expect(await server.thaw.sshKeys.list().all()).toHaveLength(1)
  })
})
