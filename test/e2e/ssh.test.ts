import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import type { SandboxItem } from '@thaw/sdk'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { eventually } from '../support/eventually.ts'
import { freePort } from '../support/inside-server.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { SshClient } from '../support/ssh.ts'
import { TestTerminal } from '../support/terminal.ts'

const mib = 1024 * 1024
const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex')

/** Serves the folder that it starts in, and says so. */
const webServer = (port: number) =>
  `python3 -u -c 'import http.server as h; s=h.ThreadingHTTPServer(("127.0.0.1",${port}),h.SimpleHTTPRequestHandler); print("up"); s.serve_forever()'`

for (const driver of ['oci', 'process'] as const) {
  const skip = await whyNoDriver(driver)

  describe.skipIf(skip !== null)(`SSH into sandboxes over ${driver}${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
    let server: TestServer
    let client: SshClient
    let lab: SandboxItem

    beforeAll(async () => {
      server = await startServer({ driver, pools: { size: 0 }, ssh: { port: 0 } })
      client = await SshClient.of(server.thaw)
      lab = (await server.thaw.sandboxes.create({ name: 'lab', driver })).item
    })
    afterAll(async () => {
      client[Symbol.dispose]()
      await server[Symbol.asyncDispose]()
    })

    const ssh = (command: string, input?: Buffer | string) => client.run('ssh', ['lab@s', command], input)

    test('a command gets its exit code, separate streams and the environment that was sent', async () => {
      expect(await ssh('echo out; echo err >&2; exit 7')).toEqual({ code: 7, stdout: Buffer.from('out\n'), stderr: 'err\n' })
      const sent = await client.run('ssh', ['-o', 'SetEnv=LANG=en_GB.UTF-8 TOOL=x', `${lab.id}@s`, 'echo $LANG $TOOL $THAW_SANDBOX_ID'])
      expect(sent.stdout.toString()).toBe(`en_GB.UTF-8 x ${lab.id}\n`)
      // A signal is told as such, which OpenSSH shows as 255.
      expect((await ssh('kill -9 $$')).code).toBe(255)
      expect((await ssh('sh -c "kill -9 \\$\\$"; exit $?')).code).toBe(137)
    })

    test('a shell has a terminal that is resized, interrupted and left', async () => {
      const env = { PATH: process.env.PATH, HOME: client.dir, TERM: 'screen' }
      const terminal = new TestTerminal(client.command('ssh', ['lab@s']), { env, cols: 91, rows: 31 })
      terminal.type('stty size; echo "<$TERM>"\n')
      await terminal.see('31 91')
      await terminal.see('<screen>')
      terminal.resize(120, 44)
      const isResized = await eventually(async () => {
        terminal.type('stty size\n')
        return terminal.see('44 120', 500).then(
          () => true,
          () => false,
        )
      })
      expect(isResized).toBe(true)
      terminal.type('sh -c \'echo "r"un; exec sleep 1000\'\n')
      await terminal.see('run\r\n')
      terminal.type('\x03')
      terminal.type('echo after:$?\n')
      await terminal.see('after:130')
      terminal.type('exit 5\n')
      expect((await terminal.ended()).code).toBe(5)
    })

    test('10 MiB of any bytes go in and out unchanged, and both streams at once', async () => {
      const bytes = randomBytes(10 * mib)
      const back = await ssh('cat', bytes)
      expect(back.code).toBe(0)
      expect(sha256(back.stdout)).toBe(sha256(bytes))
      const { stdout, stderr } = await ssh('tee /dev/stderr | base64 -w0', randomBytes(9 * mib).toString('base64'))
      expect(Buffer.from(stdout.toString(), 'base64').toString()).toBe(stderr)
    })

    test('a process that does not read holds its client up, and nothing is kept of it in between', async () => {
      const { child, ended } = client.start('ssh', ['lab@s', 'echo ready; read line; echo "$line"; cat | wc -c'])
      const line = once(createInterface(child.stdout), 'line')
      expect(String((await line)[0])).toBe('ready')
      child.stdin.write('go\n')
      child.stdin.end(Buffer.alloc(30 * mib))
      expect((await ended).stdout.toString()).toMatch(/\n?31457280\n$/)
    })

    test('sftp moves 50 MiB both ways, and does all that files need', async () => {
      const bytes = randomBytes(50 * mib)
      writeFileSync(`${client.dir}/big`, bytes)
      expect(await client.run('sftp', ['-b', '-', 'lab@s'], `put ${client.dir}/big big\n`)).toMatchObject({ code: 0 })
      expect((await ssh('sha256sum < big')).stdout.toString()).toContain(sha256(bytes))
      expect(await client.run('sftp', ['-b', '-', 'lab@s'], `get big ${client.dir}/back\n`)).toMatchObject({ code: 0 })
      expect(sha256(readFileSync(`${client.dir}/back`))).toBe(sha256(bytes))
      // Goes on in the middle, which needs handles with offsets.
      writeFileSync(`${client.dir}/part`, bytes.subarray(0, 30 * mib))
      expect(await client.run('sftp', ['-b', '-', 'lab@s'], `reget big ${client.dir}/part\n`)).toMatchObject({ code: 0 })
      expect(sha256(readFileSync(`${client.dir}/part`))).toBe(sha256(bytes))
      const batch = ['mkdir d', 'rename big d/b', 'ln -s b d/link', 'ln d/b d/hard', 'chmod 640 d/b', 'ls -l d', 'cd d', 'pwd']
      const { code, stdout } = await client.run('sftp', ['-b', '-', 'lab@s'], `${batch.join('\n')}\n`)
      expect(code).toBe(0)
      expect(stdout.toString()).toMatch(/-rw-r-----\s.*52428800.* b\n/)
      expect((await ssh('readlink d/link; stat -c %h d/b')).stdout.toString()).toBe('b\n2\n')
      const failed = await client.run('sftp', ['-b', '-', 'lab@s'], 'rmdir d\n')
      expect(failed.code).toBe(1)
      expect(await client.run('sftp', ['-b', '-', 'lab@s'], 'rm d/*\nrmdir d\n')).toMatchObject({ code: 0 })
    })

    test('scp copies folders both ways', async () => {
      mkdirSync(`${client.dir}/tree/deep/er`, { recursive: true })
      writeFileSync(`${client.dir}/tree/a ü`, 'a')
      writeFileSync(`${client.dir}/tree/deep/er/b`, randomBytes(100_000), { mode: 0o755 })
      expect(await client.run('scp', ['-r', '-p', `${client.dir}/tree`, 'lab@s:'])).toMatchObject({ code: 0 })
      expect(await client.run('scp', ['-r', '-p', 'lab@s:tree', `${client.dir}/tree-back`])).toMatchObject({ code: 0 })
      expect(readFileSync(`${client.dir}/tree-back/a ü`, 'utf8')).toBe('a')
      expect(readFileSync(`${client.dir}/tree-back/deep/er/b`)).toEqual(readFileSync(`${client.dir}/tree/deep/er/b`))
      expect((await ssh('test -x tree/deep/er/b')).code).toBe(0)
    })

    test('a forwarded port leads to a server inside, and to nowhere else', async () => {
      const inside = await freePort()
      await ssh('mkdir -p web; head -c 3000000 /dev/urandom > web/file')
      const sum = (await ssh('sha256sum < web/file')).stdout.toString().slice(0, 64)
      const local = await freePort()
      const elsewhere = await freePort()
      const options = ['-L', `${local}:localhost:${inside}`, '-L', `${elsewhere}:192.0.2.1:${inside}`]
      const { child } = client.start('ssh', [...options, 'lab@s', `cd web; ${webServer(inside)}`])
      expect(String((await once(createInterface(child.stdout), 'line'))[0])).toBe('up')
      const get = async () => sha256(Buffer.from(await (await fetch(`http://127.0.0.1:${local}/file`)).arrayBuffer()))
      expect(await Promise.all([get(), get(), get()])).toEqual([sum, sum, sum])
      await expect(fetch(`http://127.0.0.1:${elsewhere}/`)).rejects.toThrow()
      child.kill('SIGTERM')
      // What ran on the connection goes with it.
      expect(
        await eventually(
          async () => (await ssh(`python3 -c 'import socket; socket.create_connection(("127.0.0.1",${inside}))'`)).code !== 0,
        ),
      ).toBe(true)
    })

    test('remote forwarding and the agent of the client are refused', async () => {
      const remote = await client.run('ssh', ['-o', 'ExitOnForwardFailure=yes', '-R', '0:127.0.0.1:22', 'lab@s', 'true'])
      expect(remote.code).toBe(255)
      expect(remote.stderr).toContain('remote port forwarding failed')
      const agent = await client.run('ssh', ['-A', 'lab@s', 'echo "<$SSH_AUTH_SOCK>"'])
      expect(agent.stdout.toString()).toBe('<>\n')
    })

    test('another key, an unknown sandbox and a key for another sandbox look the same', async () => {
      await using other = await startServer({ driver: 'process', pools: { size: 0 }, ssh: { port: 0 } })
      using stranger = await SshClient.of(other.thaw)
      const { ssh: info } = await server.thaw.info()
      if (info === null) throw new Error('no SSH')
      using wrong = new SshClient(info, readFileSync(`${stranger.dir}/key`, 'utf8'))
      const second = (await server.thaw.sandboxes.create({ driver })).item
      using limited = await SshClient.of(server.thaw, { sandbox_id: second.id })
      const refused = [
        await wrong.run('ssh', ['lab@s', 'true']),
        await client.run('ssh', ['nowhere@s', 'true']),
        await limited.run('ssh', ['lab@s', 'true']),
      ]
      for (const { code, stderr } of refused) {
        expect(code).toBe(255)
        expect(stderr.replaceAll(/\w+@127\.0\.0\.1/g, '')).toBe(': Permission denied (publickey).\r\n')
      }
      expect((await limited.run('ssh', [`${second.id}@s`, 'true'])).code).toBe(0)
      await server.thaw.sandboxes.delete(second.id)
    })

    test('revoking, rotating and expiring a key end what is open with it', async () => {
      const open = async (who: SshClient) => {
        const { child, ended } = who.start('ssh', ['lab@s', 'echo in; sleep 1000'])
        expect(String((await once(createInterface(child.stdout), 'line'))[0])).toBe('in')
        return { ended }
      }
      using revoked = await SshClient.of(server.thaw)
      using rotated = await SshClient.of(server.thaw)
      using expiring = await SshClient.of(server.thaw, { expires_at: new Date(Date.now() + 3000).toISOString() })
      const sessions = [await open(revoked), await open(rotated), await open(expiring)]
      const [metric] = /^thaw_ssh_connections \d+$/m.exec(await (await fetch(`${server.url}/metrics`)).text()) ?? []
      expect(metric).toBe('thaw_ssh_connections 3')
      await server.thaw.sshKeys.delete(revoked.keyId)
      const { private_key } = await server.thaw.sshKeys.rotate(rotated.keyId, { generate: true })
      for (const session of sessions) {
        expect(await session.ended).toMatchObject({ code: 255, stderr: expect.stringContaining('The SSH key is not valid any more.') })
      }
      for (const who of [revoked, rotated, expiring]) expect((await who.run('ssh', ['lab@s', 'true'])).code).toBe(255)
      writeFileSync(`${rotated.dir}/key`, private_key ?? '')
      expect((await rotated.run('ssh', ['lab@s', 'true'])).code).toBe(0)
    })

    test('a sleeping sandbox wakes, and stays awake while somebody is logged in', async () => {
      const sandbox = await server.thaw.sandboxes.create({ driver, name: 'sleepy', idle_ms: 1000 })
      const { item } = sandbox
      await sandbox.pause()
      expect(await client.run('ssh', ['sleepy@s', 'echo awake'])).toMatchObject({ code: 0, stdout: Buffer.from('awake\n') })
      expect(await eventually(async () => (await server.thaw.sandboxes.get(item.id)).item.state === 'paused')).toBe(true)
      const { child, ended } = client.start('ssh', ['sleepy@s', 'echo in; read line; echo $line'])
      const out = createInterface(child.stdout)
      expect(String((await once(out, 'line'))[0])).toBe('in')
      const states = new Set<string>()
      const end = performance.now() + 2500
      await eventually(async () => {
        states.add((await server.thaw.sandboxes.get(item.id)).item.state)
        return performance.now() > end
      })
      expect([...states]).toEqual(['running'])
      child.stdin.end('still here\n')
      expect(await ended).toMatchObject({ code: 0 })
      await server.thaw.sandboxes.delete(item.id)
    })

    test('the end of a sandbox ends its connections, and says so', async () => {
      const sandbox = await server.thaw.sandboxes.create({ driver })
      const { item } = sandbox
      const { child, ended } = client.start('ssh', [`${item.id}@s`, 'echo in; sleep 1000'])
      expect(String((await once(createInterface(child.stdout), 'line'))[0])).toBe('in')
      await sandbox.stop()
      expect(await ended).toMatchObject({ code: 255, stderr: expect.stringContaining(`thaw: The sandbox ${item.id} is stopped.`) })
      const again = await client.run('ssh', [`${item.id}@s`, 'true'])
      expect(again).toMatchObject({ code: 255, stderr: expect.stringContaining('is stopped') })
    })

    if (driver === 'oci') {
      test('another account inside is chosen before the name of the sandbox', async () => {
        expect((await client.run('ssh', ['nobody+lab@s', 'id -un'])).stdout.toString()).toBe('nobody\n')
        const denied = await client.run('sftp', ['-b', '-', 'nobody+lab@s'], 'ls /root\n')
        expect(denied).toMatchObject({ code: 1, stderr: expect.stringContaining('denied') })
        expect((await client.run('ssh', ['ghost+lab@s', 'true'])).stderr).toContain("'ghost'")
      })

      test('the old protocol of scp works where the image has that program', async () => {
        const { item } = await server.thaw.sandboxes.create({ driver, image: 'host', name: 'tools' })
        writeFileSync(`${client.dir}/old`, randomBytes(mib))
        expect(await client.run('scp', ['-O', '-p', `${client.dir}/old`, 'tools@s:/tmp/there'])).toMatchObject({ code: 0 })
        expect(await client.run('scp', ['-O', '-p', 'tools@s:/tmp/there', `${client.dir}/old-back`])).toMatchObject({ code: 0 })
        expect(readFileSync(`${client.dir}/old-back`)).toEqual(readFileSync(`${client.dir}/old`))
        await server.thaw.sandboxes.delete(item.id)
      })

      test('a session goes on after a snapshot of memory, and loses nothing', async () => {
        const { child, ended } = client.start('ssh', ['lab@s', 'echo in; cat'])
        const out = createInterface(child.stdout)
        expect(String((await once(out, 'line'))[0])).toBe('in')
        const lines = Array.from({ length: 200 }, (_, i) => `line ${i} ${'x'.repeat(2000)}\n`)
        const typing = (async () => {
          for (const line of lines) {
            child.stdin.write(line)
            await new Promise(setImmediate)
          }
        })()
        const snapshot = await fetch(`${server.url}/v1/sandboxes/lab/snapshot`, {
          method: 'POST',
          headers: { 'content-type': 'application/json' },
          body: JSON.stringify({ kind: 'memory' }),
        })
        expect(snapshot.status).toBe(201)
        await typing
        child.stdin.end()
        expect((await ended).stdout.toString()).toBe(`in\n${lines.join('')}`)
      })
    }
  })
}

test('a server goes on without SSH where the port that nobody chose is taken, and does not start where somebody chose it', async () => {
  const taken = createServer().listen(0, '127.0.0.1')
  await once(taken, 'listening')
  const { port } = taken.address() as { port: number }
  await expect(startServer({ driver: 'process', pools: { size: 0 }, ssh: { port } })).rejects.toThrow(`Port ${port}`)
  taken.close()
  // Both want the default port, and so may others on this machine: at most one can have it.
  await using one = await startServer({ driver: 'process', pools: { size: 0 }, ssh: { port: 2222 } })
  await using two = await startServer({ driver: 'process', pools: { size: 0 } })
  const ports = [(await one.thaw.info()).ssh?.port, (await two.thaw.info()).ssh?.port]
  expect([
    [2222, undefined],
    [undefined, undefined],
    [undefined, 2222],
  ]).toContainEqual(ports)
  await using off = await startServer({ driver: 'process', pools: { size: 0 }, ssh: { enabled: false } })
  expect((await off.thaw.info()).ssh).toBeNull()
})

test('limits: keys that are tried, connections of a key, silence', async () => {
  await using server = await startServer({
    driver: 'process',
    pools: { size: 0 },
    ssh: { port: 0, idle_ms: 1000, connections_per_key: 2 },
  })
  using client = await SshClient.of(server.thaw)
  await server.thaw.sandboxes.create({ name: 'lab' })
  const open = async () => {
    const { child, ended } = client.start('ssh', ['lab@s', 'echo in; sleep 1000'])
    expect(String((await once(createInterface(child.stdout), 'line'))[0])).toBe('in')
    return { ended }
  }
  const both = [await open(), await open()]
  const third = await client.run('ssh', ['lab@s', 'true'])
  expect(third).toMatchObject({ code: 255, stderr: expect.stringContaining('too many connections') })
  for (const { ended } of both) expect(await ended).toMatchObject({ code: 255, stderr: expect.stringContaining('idle for too long') })
  // What they held is free again.
  expect((await client.run('ssh', ['lab@s', 'true'])).code).toBe(0)

  const { port = 0 } = (await server.thaw.info()).ssh ?? {}
  const others = Array.from({ length: 6 }, (_, i) => {
    const path = `${client.dir}/other${i}`
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', path])
    return ['-i', path]
  })
  const sixth = await client.run('ssh', [...others.flat(), '-i', `${client.dir}/key`, ...bare(client, port), 'true'])
  expect(sixth.code).toBe(255)
  expect(sixth.stderr).not.toContain('Permission denied')
  const fifth = await client.run('ssh', [...others.slice(1).flat(), '-i', `${client.dir}/key`, ...bare(client, port), 'true'])
  expect(fifth.code).toBe(0)
})

/** Options without those of a file, which would put its key first. */
function bare(client: SshClient, port: number): string[] {
  const options = ['IdentitiesOnly=yes', 'IdentityAgent=none', 'BatchMode=yes', `UserKnownHostsFile=${client.dir}/known`]
  return [...options.flatMap((option) => ['-o', option]), '-p', String(port), 'lab@127.0.0.1']
}
