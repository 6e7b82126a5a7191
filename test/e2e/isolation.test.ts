import { existsSync, readdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { networkInterfaces } from 'node:os'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { findProcesses } from '../../packages/server/src/drivers/processes.ts'
import { eventually } from '../support/eventually.ts'
import { startServer, type TestServer, whyNoDriver } from '../support/server.ts'

/** What a function in a container can and cannot do, tried from inside. */
const skip = await whyNoDriver('oci')

// One function that runs what it is sent: each test reads as what the code inside does.
const probe = `
import os, socket, subprocess, sys, ctypes, errno, glob

def handler(event, context):
    scope = {}
    try:
        exec(event["code"], globals(), scope)
    except Exception as error:
        return {"error": type(error).__name__, "errno": errno.errorcode.get(getattr(error, "errno", None)), "text": str(error)}
    return scope.get("result")
`

interface Failure {
  error: string
  errno: string | null
  text: string
}

describe.skipIf(skip !== null)(`a function in a container${skip === null ? '' : ` (skipped: ${skip})`}`, () => {
  let server: TestServer

  beforeAll(async () => {
    server = await startServer({ driver: 'oci', pools: { size: 0 } })
    await server.thaw.functions.create({
      name: 'probe',
      runtime: 'python',
      code: { inline: probe },
      resources: { memory_mib: 64, pids: 24, tmp_mib: 4 },
      timeout_ms: 20_000,
    })
  })
  afterAll(() => server[Symbol.asyncDispose]())

  const inside = async <Result>(code: string): Promise<Result> => (await server.thaw.functions.invoke<Result>('probe', { code })).value

  test('sees only its own processes', async () => {
    const pids = await inside<number[]>('result = sorted(int(p) for p in os.listdir("/proc") if p.isdigit())')
    expect(pids).toContain(1)
    expect(pids.length).toBeLessThan(5)
    const names = await inside<string[]>('result = [open(f"/proc/{p}/comm").read().strip() for p in os.listdir("/proc") if p.isdigit()]')
    expect(names.every((name) => name.startsWith('python'))).toBe(true)
  })

  test('sees none of the files of the host', async () => {
    writeFileSync('/var/tmp/thaw-host-secret', 'secret')
    expect(
      await inside(
        'result = [os.path.exists(p) for p in ("/var/tmp/thaw-host-secret", "/root/.bashrc", "/var/cache/thaw/images", "/etc/shadow", "/var/lib/thaw")]',
      ),
    ).toEqual([false, false, false, expect.any(Boolean), false])
    // The image has a shadow file of its own; it is not readable.
    expect(await inside<Failure>('open("/etc/shadow").read()')).toMatchObject({
      error: expect.stringMatching(/PermissionError|FileNotFoundError/),
    })
    expect(await inside<string[]>('result = os.listdir("/function")')).toEqual(['main.py'])
  })

  test('is an ordinary user inside, and another ordinary user outside', async () => {
    expect(await inside('result = [os.getuid(), os.geteuid(), os.getgid()]')).toEqual([1000, 1000, 1000])
    const map = (await inside<string>('result = open("/proc/self/uid_map").read()')).trim().split(/\s+/).map(Number)
    expect(map[0]).toBe(0)
    expect(map[1]).toBeGreaterThanOrEqual(1_048_576)
  })

  test('cannot become root', async () => {
    expect(await inside<Failure>('os.setuid(0)')).toMatchObject({ errno: 'EPERM' })
    const status = await inside<string>('result = open("/proc/self/status").read()')
    for (const set of ['CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb']) expect(status).toMatch(new RegExp(`${set}:\\s+0000000000000000`))
    expect(status).toMatch(/NoNewPrivs:\s+1/)
    expect(status).toMatch(/Seccomp:\s+2/)
    expect(
      await inside<string[]>(
        'result = subprocess.run("find / -xdev -perm -4000 2>/dev/null", shell=True, capture_output=True, text=True).stdout.split()',
      ),
    ).toEqual([])
  })

  test('cannot mount, unshare, trace, load programs into the kernel or use io_uring (fault 46)', async () => {
    const call = (number: number, ...args: number[]) =>
      inside<string>(
        `libc = ctypes.CDLL(None, use_errno=True); r = libc.syscall(${[number, ...args].join(', ')}); result = "ok" if r >= 0 else errno.errorcode[ctypes.get_errno()]`,
      )
    if (process.arch !== 'x64') return
    expect(await call(165, 0, 0, 0, 0, 0)).toBe('EPERM') // mount
    expect(await call(272, 0x10000000)).toBe('EPERM') // unshare(CLONE_NEWUSER)
    expect(await call(101, 0, 0, 0, 0)).toBe('EPERM') // ptrace
    expect(await call(321, 0, 0, 0)).toBe('EPERM') // bpf
    expect(await call(425, 1, 0)).toBe('EPERM') // io_uring_setup
    expect(await call(250, 0, 0, 0)).toBe('EPERM') // keyctl
    expect(await call(323, 0)).toBe('EPERM') // userfaultfd
    expect(await inside<Failure>('socket.socket(38, socket.SOCK_SEQPACKET)')).toMatchObject({ errno: 'EPERM' }) // AF_ALG
  })

  test('cannot change the image, its code, or the kernel', async () => {
    for (const path of ['/usr/bin/evil', '/etc/evil', '/function/evil', '/evil', '/thaw/runtime/evil']) {
      expect(await inside<Failure>(`open(${JSON.stringify(path)}, "w")`)).toMatchObject({ errno: expect.stringMatching(/EROFS|EACCES/) })
    }
    expect(await inside<Failure>('open("/proc/sys/kernel/hostname", "w").write("x")')).toMatchObject({
      errno: expect.stringMatching(/EROFS|EACCES/),
    })
    expect(await inside<Failure>('open("/proc/kcore", "rb").read(1)[0]')).toMatchObject({
      error: expect.stringMatching(/IndexError|PermissionError|FileNotFoundError/),
    })
  })

  test('cannot use more of /tmp than it has, in bytes or in files (fault 38)', async () => {
    expect(await inside<Failure>('open("/tmp/big", "wb").write(b"x" * (8 << 20))')).toMatchObject({ errno: 'ENOSPC' })
    expect(await inside<Failure>('os.remove("/tmp/big")\nfor i in range(100000): open(f"/tmp/{i}", "w").close()')).toMatchObject({
      errno: 'ENOSPC',
    })
  })

  test('cannot start more processes than it may (fault 36)', async () => {
    const code = `
import threading
children = []
try:
    for _ in range(100):
        children.append(subprocess.Popen(["sleep", "60"]))
    result = "unlimited"
except OSError as error:
    result = [errno.errorcode[error.errno], len(children)]
finally:
    for child in children: child.kill()
    for child in children: child.wait()
`
    const [name, started] = await inside<[string, number]>(code)
    expect(name).toBe('EAGAIN')
    expect(started).toBeLessThan(24)
  })

  test('is ended when it uses more memory than it may, and the answer says so (fault 37)', async () => {
    await expect(inside('result = len(b"x" * (512 << 20))')).rejects.toMatchObject({ code: 'out_of_memory' })
    expect(await inside('result = 1')).toBe(1)
  })

  test('a child that uses too much memory takes the instance with it, although the handler coped (fault 37)', async () => {
    const code = 'result = subprocess.run([sys.executable, "-c", "x = b\'x\' * (512 << 20)"]).returncode'
    const first = await server.thaw.functions.invoke<number>('probe', { code })
    expect(first.value).toBe(-9)
    const next = await server.thaw.functions.invoke<number>('probe', { code: 'result = 2' })
    expect(next).toMatchObject({ value: 2, boot_method: 'cold' })
  })

  test('cannot open more files than it may (fault 39)', async () => {
    expect(await inside<Failure>('files = [open("/dev/null") for _ in range(100000)]')).toMatchObject({ errno: 'EMFILE' })
  })

  test('reaches no address of this host and no private network (fault 47)', async () => {
    const listener = createServer((socket) => socket.end('reached'))
    await new Promise<void>((resolve) => listener.listen(0, '0.0.0.0', resolve))
    const { port } = listener.address() as { port: number }
    const own = Object.values(networkInterfaces())
      .flat()
      .filter((entry) => entry?.family === 'IPv4')
      .map((entry) => entry?.address)
    try {
      for (const address of [...own, '169.254.169.254', '10.0.0.1']) {
        const outcome = await inside<Failure | string>(
          `s = socket.socket(); s.settimeout(0.5); s.connect((${JSON.stringify(address)}, ${port})); result = s.recv(10).decode()`,
        )
        expect(outcome, `connected to ${address}`).toMatchObject({ error: expect.stringMatching(/Error|timeout/i) })
      }
    } finally {
      listener.close()
    }
  })

  test('with network "none" there is nothing but loopback', async () => {
    await server.thaw.functions.create({
      name: 'offline',
      runtime: 'python',
      network: 'none',
      code: { inline: probe },
    })
    const { value } = await server.thaw.functions.invoke<string[]>('offline', {
      code: 'result = [name for _, name in socket.if_nameindex()]',
    })
    expect(value).toEqual(['lo'])
    await server.thaw.functions.delete('offline')
  })

  test('does not outlive its deletion, daemons included (fault 45)', async () => {
    await server.thaw.functions.create({ name: 'daemon', runtime: 'python', code: { inline: probe } })
    await server.thaw.functions.invoke('daemon', {
      code: 'subprocess.Popen(["sleep", "7654321"], start_new_session=True)\nresult = 1',
    })
    // The kernel tells the parent of the new program before it shows its name.
    expect(await eventually(() => sleepers().length === 1)).toBe(true)
    await server.thaw.functions.delete('daemon')
    expect(sleepers()).toHaveLength(0)
    const left = existsSync(`${server.dataDir}/oci/sandboxes`) ? readdirSync(`${server.dataDir}/oci/sandboxes`) : []
    const names: string[] = []
    for await (const item of server.thaw.functions.list()) names.push(item.name)
    expect(names).toEqual(['probe'])
    expect(left.length).toBeLessThanOrEqual(1)
  })
})

function sleepers(): number[] {
  return findProcesses((pid) => commandLine(pid).includes('7654321'))
}

function commandLine(pid: number): string {
  try {
    return process.getBuiltinModule('fs').readFileSync(`/proc/${pid}/cmdline`, 'latin1')
  } catch {
    return ''
  }
}
