import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { BuildError, Sandbox, Template, waitForPort } from 'e2b'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { e2bOptions, e2bSandbox, killed } from '../support/e2b.ts'
import { eventually } from '../support/eventually.ts'
import { startChildServer, startServer, type TestServer, whyNoDriver } from '../support/server.ts'
import { tempDir } from '../support/temp.ts'

const skip = await whyNoDriver('oci')

describe.skipIf(skip !== null)(`templates, built with the client e2b${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer
  let options: ReturnType<typeof e2bOptions>

  beforeAll(async () => {
    server = await startServer({ driver: 'oci' })
    options = e2bOptions(server)
  })
  afterAll(() => server[Symbol.asyncDispose]())

  test('every kind of step, a service that starts with each sandbox, and another build in the place of the first', async () => {
    using context = tempDir()
    mkdirSync(join(context.path, 'app/deep'), { recursive: true })
    writeFileSync(join(context.path, 'app/main.py'), 'print("main")\n')
    writeFileSync(join(context.path, 'app/deep/é.txt'), 'deep\n')
    symlinkSync('main.py', join(context.path, 'app/link'))
    writeFileSync(join(context.path, 'one.txt'), 'one\n')
    writeFileSync(join(context.path, 'two.txt'), 'two\n')

    const log: string[] = []
    const template = Template({ fileContextPath: context.path })
      .fromImage('python')
      .setEnvs({ GREETING: 'good day', TWICE: 'a b' })
      .runCmd('echo $GREETING from $(whoami) in $(pwd)')
      .runCmd('echo made by root > /etc/made', { user: 'root' })
      .copy('app', '/srv/app')
      .copy('one.txt', 'renamed.txt')
      .copy('*.txt', '/srv/texts/', { user: 'root', mode: 0o600 })
      .makeDir('/home/user/made')
      .setWorkdir('/srv/work')
      .runCmd('pwd > where')
      .setStartCmd('sleep 1; exec python3 -m http.server 8123 --directory /srv/app', waitForPort(8123))
    const info = await Template.build(template, 'mine', {
      ...options,
      cpuCount: 2,
      memoryMB: 256,
      onBuildLogs: (entry) => void log.push(entry.message),
    })
    expect(info).toMatchObject({ templateId: 'mine', name: 'mine' })
    expect(log).toContain('good day from user in /home/user')
    expect(await Template.exists('mine', options)).toBe(true)
    expect(await Template.exists('not-mine', options)).toBe(false)

    await using sandbox = await e2bSandbox(server, { template: 'mine' })
    // It was waited for: it answers at once.
    const web = await fetch(`${server.url}/main.py`, { headers: { 'e2b-sandbox-id': sandbox.sandboxId, 'e2b-sandbox-port': '8123' } })
    expect(await web.text()).toBe('print("main")\n')
    expect(await sandbox.getInfo()).toMatchObject({ templateId: 'mine', cpuCount: 2, memoryMB: 256 })
    const run = async (command: string) => (await sandbox.commands.run(command)).stdout
    expect(await run('whoami; pwd; echo $GREETING; echo $TWICE; cat /etc/made where')).toBe(
      'user\n/srv/work\ngood day\na b\nmade by root\n/srv/work\n',
    )
    expect(await run('cat /srv/app/link /srv/app/deep/é.txt /home/user/renamed.txt')).toBe('print("main")\ndeep\none\n')
    expect(await run('stat -c "%U %a" /srv/app/main.py /srv/work /home/user/made')).toMatch(/^user \d+\nuser 755\nuser 755\n$/)
    expect((await sandbox.commands.run('stat -c "%U %a" /srv/texts/*.txt', { user: 'root' })).stdout).toBe('root 600\nroot 600\n')
    // What was built in is seen by nobody, and is gone.
    expect((await Sandbox.list(options).nextItems()).map((item) => item.sandboxId)).toEqual([sandbox.sandboxId])

    await Template.build(Template().fromTemplate('mine').runCmd('echo second > /home/user/second'), 'mine', options)
    await using second = await e2bSandbox(server, { template: 'mine' })
    expect((await second.commands.run('cat /home/user/second; echo $GREETING')).stdout).toBe('second\ngood day\n')
    const names = ((await (await fetch(`${server.url}/templates`)).json()) as { names: string[] }[]).flatMap((item) => item.names)
    expect(names).toEqual(['mine'])
    expect((await fetch(`${server.url}/templates/mine`, { method: 'DELETE' })).status).toBe(204)
    expect(await Template.exists('mine', options)).toBe(false)
    expect((await sandbox.commands.run('cat where')).stdout).toBe('/srv/work\n')
  })

  test('tags are names of their own', async () => {
    await Template.build(Template().fromBaseImage().runCmd('echo tagged > ~/tag'), 'tagged:v1', options)
    await using sandbox = killed(await Sandbox.create('tagged:v1', options))
    expect(await sandbox.files.read('tag')).toBe('tagged\n')
    expect(await Template.exists('tagged', options)).toBe(false)
    await expect(Template.assignTags('tagged:v1', 'v2', options)).rejects.toThrow(/tags/)
  })

  test('a step that fails ends the build with its last words, and keeps nothing', async () => {
    const log: string[] = []
    const building = Template.build(Template().fromImage('python').runCmd('true').runCmd('echo oh dear >&2; exit 3'), 'broken', {
      ...options,
      onBuildLogs: (entry) => void log.push(entry.message),
    })
    await expect(building).rejects.toThrow(BuildError)
    await expect(building).rejects.toThrow(/exit code 3.*oh dear/)
    expect(log).toContain('oh dear')
    expect(await Template.exists('broken', options)).toBe(false)
    expect(await Sandbox.list(options).nextItems()).toEqual([])
    expect(
      ((await (await fetch(`${server.url}/v1/snapshots`)).json()) as { items: { name: string }[] }).items.filter((item) =>
        item.name.includes('broken'),
      ),
    ).toEqual([])
  })

  test('a build whose server is killed leaves nothing to the next server', async () => {
    using dir = tempDir()
    const dataDir = join(dir.path, 'data')
    const list = async (url: string) =>
      ((await (await fetch(`${url}/v1/sandboxes`)).json()) as { items: { state: string }[] }).items.map((item) => item.state)
    await using first = await startChildServer(dataDir, { driver: 'oci' })
    await Template.buildInBackground(Template().fromImage('python').runCmd('sleep 600'), 'lost', e2bOptions(first))
    expect(await eventually(async () => (await list(first.url)).includes('running'))).toBe(true)
    await first.kill()
    await using second = await startChildServer(dataDir, { driver: 'oci' })
    expect(await list(second.url)).toEqual([])
    expect(await Template.exists('lost', e2bOptions(second))).toBe(false)
  })

  test('what cannot be built is refused', async () => {
    await expect(Template.build(Template().fromTemplate('nobody-made-this'), 'x', options)).rejects.toThrow(/no template/)
    await expect(Template.build(Template().fromImage('python').setUser('nobody-at-all'), 'x', options)).rejects.toThrow(/nobody-at-all/)
    await expect(Template.build(Template().fromImage('python'), 'no/good', options)).rejects.toThrow(/name/)
    const withKey = Template().fromImage('127.0.0.1:1/x:y', { username: 'a', password: 'b' })
    await expect(Template.build(withKey, 'x', options)).rejects.toThrow(/credentials/)
    // A token for an upload is used once, and is not to be guessed.
    expect((await fetch(`${server.url}/e2b/uploads/${'a'.repeat(32)}`, { method: 'PUT', body: 'x' })).status).toBe(404)
  })
})
